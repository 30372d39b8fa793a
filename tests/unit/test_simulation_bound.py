"""The lower bound: what it is on paper, and that no policy that keeps the SLO is billed less."""

from __future__ import annotations

import pytest

from faceapp.errors import ConfigError
from faceapp.scaling.simulation import contest, workloads
from faceapp.scaling.simulation.bound import lower_bound
from faceapp.scaling.simulation.contest import CONTESTANTS
from faceapp.scaling.simulation.engine import Simulation
from faceapp.scaling.simulation.workloads import Workload
from faceapp.scaling.simulation.world import World

WORLD = World()
"""Boots take at least 20 s, a start is billed for at least 60 s, and the SLO is 120 s."""
LIMIT_S = 2.0
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
        ([10.0, 200.0], 20 + 201 - 129),  # Kept from the first one's deadline to the second one's arrival.
        ([10.0, 230.0], 120),  # Two minutes are less than that.
    ],
)
def test_the_bound_is_what_it_is_on_paper(arrivals_s: list[float], billed_s: float) -> None:
    bound = lower_bound(of(arrivals_s), WORLD, time_limit_s=LIMIT_S)
    # Time comes in steps of five seconds, which can hide as much of a boot or of a minute; never the other way.
    assert billed_s - 5 * 4 <= bound.billed_s <= billed_s + 1e-6
    assert bound.gap >= 0


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("policy", CONTESTANTS)
def test_no_policy_that_keeps_the_slo_is_billed_less(policy: str, name: str) -> None:
    workload = of(SMALL[name])
    chosen = CONTESTANTS[policy]
    result = Simulation(WORLD, workload, chosen.make(WORLD), force=chosen.force).run()
    if result.misses == 0:
        assert lower_bound(workload, WORLD, time_limit_s=LIMIT_S).billed_s <= result.billed_s + 1e-6
    else:
        assert policy in ("target-tracking", "naive", "keda")


def test_the_bound_of_a_whole_workload_lies_between_its_work_and_the_best_policy() -> None:
    workload = workloads.make("bursts-50", 3, WORLD)
    bound = lower_bound(workload, WORLD, time_limit_s=LIMIT_S)
    best = Simulation(WORLD, workload, CONTESTANTS["work/eco"].make(WORLD)).run()
    assert sum(workload.service_s) < bound.billed_s < best.billed_s


def test_what_no_fleet_can_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="no 2 instances can answer small within 120 s"):
        lower_bound(of([10.0] * 1000), World(max_instances=2), time_limit_s=LIMIT_S)


def test_without_scipy_a_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faceapp.scaling.simulation.bound", None)
    with pytest.raises(ConfigError, match=r"the lower bound needs scipy.*pip install scipy"):
        contest.bound(contest.BoundTask(workload="trickle", seed=1, world=WORLD, time_limit_s=LIMIT_S))
