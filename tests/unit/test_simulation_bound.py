"""The lower bound: what it is on paper, and that no schedule and no policy that keeps the SLO is billed less."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, combinations_with_replacement, islice, permutations

import pytest

from celery_sqs.errors import ConfigurationError
from celery_sqs.simulation import workloads
from celery_sqs.simulation.bound import lower_bound
from celery_sqs.simulation.contest import CONTESTANTS
from celery_sqs.simulation.engine import Simulation
from celery_sqs.simulation.workloads import Workload, boots_s
from celery_sqs.simulation.world import World

WORLD = World()
"""Boots take at least 20 s, a start is billed for at least 60 s, and the SLO is 120 s."""
EVEN = World(boot_max_s=20.0)
"""All boots take 20 s."""
TINY = World(max_instances=2, slo_s=8, boot_min_s=2, boot_max_s=6, min_billed_s=8)
SMALL = {
    "one": [10.0],
    "fifty": [10.0] * 50,
    "two bursts": [10.0] * 30 + [700.0] * 30,
    "a minute": [float(second) for second in range(60)],
}


def of(arrivals_s: list[float]) -> Workload:
    return Workload(name="small", seed=1, arrivals_s=tuple(arrivals_s), service_s=tuple(1.0 for _ in arrivals_s))


@pytest.mark.parametrize(
    ("arrivals_s", "billed_s"),
    [
        ([], 0),
        ([10.0], 60),  # The billed minimum.
        ([10.0] * 30, 60),
        ([10.0] * 100, 20 + 100),  # One boot and the work, started before anybody asked.
        ([10.0] * 200, 200 + 2 * 20),  # Two instances: one would need 200 s.
        ([10.0] * 20 + [1000.0] * 20, 120),  # Stopped in between.
        ([10.0, 100.0], 60),  # One minute serves both: the first one can wait.
        ([10.0] * 60 + [140.0] * 60, 20 + 60 + 10 + 60),  # Kept from the first ones' deadline to the others' arrival.
        ([10.0] * 60 + [200.0] * 60, 2 * (20 + 60)),  # A second boot is less than that.
        ([10.0, 230.0], 120),  # Two minutes are less than that.
    ],
)
def test_the_bound_is_what_it_is_on_paper(arrivals_s: list[float], billed_s: float) -> None:
    bound = lower_bound(of(arrivals_s), EVEN)
    # Two of the program's steps for each start may be missing; never the other way.
    assert billed_s - 2 <= bound.billed_s <= billed_s + 1e-6


def runs_at_best(arrivals_s: Sequence[int], service_s: Sequence[int]) -> Iterator[tuple[tuple[int, int], ...]]:
    """Each way in which at most two starts, ready from one second to another, can answer everything in time."""
    end_s = max(arrivals_s) + int(TINY.slo_s)
    stopped_while_booting = (0, 0)
    every = [stopped_while_booting, *combinations(range(end_s + 1), 2)]
    for count in (1, 2):
        for runs in combinations_with_replacement(every, count):
            done_s = 0
            for now_s in range(end_s + 1):
                due_s, here_s = (
                    sum(each for at_s, each in zip(arrivals_s, service_s, strict=True) if at_s <= now_s - late_s)
                    for late_s in (TINY.slo_s, 0)
                )
                if done_s < due_s:
                    break
                ready = sum(ready_s <= now_s < stop_s for ready_s, stop_s in runs)
                done_s = min(here_s, done_s + ready)
            else:
                yield runs


@pytest.mark.parametrize("seed", range(20))
def test_no_schedule_at_all_is_billed_less(seed: int) -> None:
    rng = random.Random(seed)
    arrivals_s = sorted(rng.randrange(9) for _ in range(rng.randrange(1, 6)))
    service_s = [rng.randrange(1, 4) for _ in arrivals_s]
    workload = Workload(name="tiny", seed=seed, arrivals_s=tuple(arrivals_s), service_s=tuple(service_s))
    boots = list(islice(boots_s("tiny", seed, TINY), 2))
    billed_s = [
        sum(
            max(TINY.min_billed_s, boot_s + stop_s - ready_s)
            for boot_s, (ready_s, stop_s) in zip(order, runs, strict=True)
        )
        for runs in runs_at_best(arrivals_s, service_s)
        for order in permutations(boots[: len(runs)])
    ]
    assert min(billed_s) <= 3 * TINY.min_billed_s  # More starts cannot be cheaper.
    assert TINY.min_billed_s <= lower_bound(workload, TINY).billed_s <= min(billed_s) + 1e-6


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("policy", CONTESTANTS)
def test_no_policy_that_keeps_the_slo_is_billed_less(policy: str, name: str) -> None:
    workload = of(SMALL[name])
    chosen = CONTESTANTS[policy]
    result = Simulation(WORLD, workload, chosen.make(WORLD), force=chosen.force).run()
    if result.misses == 0:
        assert lower_bound(workload, WORLD).billed_s <= result.billed_s + 1e-6
    else:
        assert policy in ("target-tracking", "naive", "keda")


def test_the_bound_of_a_whole_workload_lies_between_its_work_and_the_best_policy() -> None:
    workload = workloads.make("bursts-50", 3, WORLD)
    bound = lower_bound(workload, WORLD)
    best = Simulation(WORLD, workload, CONTESTANTS["work/eco"].make(WORLD)).run()
    assert sum(workload.service_s) < bound.billed_s < best.billed_s


def test_what_no_fleet_can_do_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no 2 instances can answer small within 120 s"):
        lower_bound(of([10.0] * 1000), World(max_instances=2))


def test_the_bound_knows_the_boots_and_not_only_the_shortest() -> None:
    workload = workloads.make("trickle", 1, WORLD)
    known, even = (lower_bound(workload, world).billed_s for world in (WORLD, EVEN))
    assert known > 1.05 * even


def test_a_workload_too_large_for_the_program_is_billed_its_work_and_a_boot() -> None:
    workload = of([10.0] * 100_000)
    assert lower_bound(workload, replace(EVEN, max_instances=1000)).billed_s == pytest.approx(100_020)
