"""The simulator: messages are conserved, seconds are billed as AWS bills them, and tiny days come out as on paper."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest

from celery_sqs import events
from celery_sqs import pace as sqs_pace
from celery_sqs.errors import ConfigurationError
from celery_sqs.scaler import core, estimates, loop, workers
from celery_sqs.scaler.core import Orders
from celery_sqs.scaler.fleet import ec2
from celery_sqs.scaler.policies.base import Decision, Observation
from celery_sqs.simulation import contest, engine, workloads
from celery_sqs.simulation.bound import lower_bound
from celery_sqs.simulation.contest import CONTESTANTS, Task
from celery_sqs.simulation.engine import Simulation
from celery_sqs.simulation.gauges import EventPath
from celery_sqs.simulation.workloads import Workload
from celery_sqs.simulation.world import USUAL, Faults, Result, World
from faceapp import broker
from faceapp.config import Settings
from faceapp.stack import data_tier as stack

EXACT = World(exact_counts=True, boot_min_s=20, boot_max_s=20, service_spread=0, max_instances=4)
SHORT = ("bursts-50", "trickle")


class Scripted:
    """Does at each time what it was told to do from then on, once."""

    name = "scripted"
    max_instances = 4

    def __init__(self, *script: tuple[float, Decision]) -> None:
        self._script = list(script)
        self.seen: list[Observation] = []

    def decide(self, observation: Observation) -> Decision:
        self.seen.append(observation)
        if self._script and observation.now_s >= self._script[0][0]:
            return self._script.pop(0)[1]
        return Decision(wanted=0)


def start(count: int) -> Decision:
    return Decision(wanted=count, start=count)


def drain(*ids: str) -> Decision:
    return Decision(wanted=0, drain=ids)


def day(*arrivals_s: float, service_s: float = 1.0) -> Workload:
    return Workload(name="day", seed=1, arrivals_s=arrivals_s, service_s=tuple(service_s for _ in arrivals_s))


def run(policy: Scripted, workload: Workload, *, world: World = EXACT, force: bool = False) -> Result:
    return Simulation(world, workload, policy, force=force).run()


def counted(result: Result) -> int:
    return len(result.latencies_s) + result.dead_letters + result.unanswered


@pytest.mark.slow
@pytest.mark.parametrize("policy", CONTESTANTS)
@pytest.mark.parametrize("faults", ["none", "all"])
def test_every_message_ends_once_under_every_policy(policy: str, faults: str) -> None:
    for workload in SHORT:
        result = contest.simulate(
            Task(policy=policy, workload=workload, seed=5, world=World(faults=Faults.named(faults)))
        )
        assert result.messages > 100
        assert counted(result) == result.messages
        assert result.unanswered == 0
        assert len(result.done_s) == len(result.latencies_s)
        assert min(result.latencies_s) > 0
        assert result.billed_s >= 60 * result.launches
        if not CONTESTANTS[policy].force:
            assert result.kills == 0
            assert result.dead_letters <= 0.01 * result.messages


def test_the_same_seed_is_the_same_run_and_another_is_not() -> None:
    task = Task(policy="work/balanced", workload="mmpp", seed=7, world=World(faults=Faults.named("all")))
    first = contest.simulate(task)
    assert contest.simulate(task) == first
    assert contest.simulate(replace(task, seed=8)) != first


def test_other_processes_give_the_same_results() -> None:
    tasks = [Task(policy=name, workload="bursts-10", seed=1, world=World()) for name in ("work/eco", "naive")]
    here = {result.policy: result for result in map(contest.simulate, tasks)}
    there = list(contest.run_all(tasks, processes=2))
    assert {result.policy: result for result in there if isinstance(result, Result)} == here


def test_three_messages_on_one_instance_come_out_as_on_paper() -> None:
    # Started at 0, ready at 20, three seconds of work, told to drain at 24: done at 21, 22, 23, billed for a minute.
    result = run(Scripted((0, start(1)), (24, drain("i-1"))), day(5, 6, 7))
    assert result.latencies_s == pytest.approx((16, 16, 16))
    assert result.billed_s == 60
    assert (result.launches, result.kills, result.misses) == (1, 0, 0)


def test_seconds_beyond_the_first_minute_are_billed_one_by_one() -> None:
    result = run(Scripted((0, start(2)), (90, drain("i-1")), (99, drain("i-2"))), day(1))
    assert result.billed_s == 90 + 99


def test_a_drained_instance_finishes_what_it_works_on_and_gives_back_the_rest() -> None:
    # Ready at 20 with two of four messages of ten seconds each; the drain at 21 leaves it the first one. The other
    # instance, started at 21, is ready at 41 and does the rest.
    policy = Scripted((0, start(1)), (21, Decision(wanted=1, start=1, drain=("i-1",))), (84, drain("i-2")))
    result = run(policy, day(0, 0, 0, 0, service_s=10))
    assert result.done_s == pytest.approx((30, 51, 61, 71))
    assert result.kills == 0
    phases = [{each.id: each.phase for each in seen.instances} for seen in policy.seen if 21 < seen.now_s < 30]
    assert phases == [{"i-2": "booting"}] * len(phases), "EC2 lists it as stopping"
    assert phases
    assert result.billed_s == 60 + (84 - 21)


def test_a_kill_in_mid_task_costs_the_visibility_timeout() -> None:
    policy = Scripted((0, start(1)), (24, drain("i-1")), (60, start(1)), (129, drain("i-1")))
    result = run(policy, day(0, service_s=10), force=True)
    assert result.kills == 1
    assert result.done_s == pytest.approx((20 + 90 + 10,))


def test_a_message_that_came_back_three_times_is_a_dead_letter() -> None:
    script = [
        (at_s, decision) for n in range(4) for at_s, decision in ((n * 150, start(1)), (n * 150 + 24, drain("i-1")))
    ]
    result = run(Scripted(*script), day(0, service_s=20), force=True)
    assert (result.dead_letters, result.kills, len(result.latencies_s)) == (1, 3, 0)
    assert result.misses == result.messages == 1


def test_the_next_start_takes_the_next_of_the_boots_that_the_bound_knows() -> None:
    world, workload = replace(EXACT, boot_max_s=50), day(0, 201)
    first_s, second_s = islice(workloads.boots_s(workload.name, workload.seed, world), 2)
    script = [(0, start(1)), (60, drain("i-1")), (201, start(1)), (270, drain("i-1"))]
    assert first_s != second_s
    assert run(Scripted(*script), workload, world=world).done_s == pytest.approx((first_s + 1, 201 + second_s + 1))


def test_an_instance_that_is_stopping_cannot_be_started() -> None:
    world = replace(EXACT, max_instances=1, stop_min_s=30, stop_max_s=30)
    policy = Scripted((0, start(1)), (3, drain("i-1")), (6, start(1)), (36, start(1)), (90, drain("i-1")))
    result = run(policy, day(0), world=world)
    assert result.launches == 2
    assert result.done_s == pytest.approx((36 + 20 + 1,))


def test_there_are_never_more_than_the_world_has() -> None:
    policy = Scripted((0, start(100)), (60, drain("i-1", "i-2", "i-3", "i-4")))
    assert run(policy, day(0)).launches == 4


def test_unanswered_messages_are_misses_and_the_run_still_ends() -> None:
    result = run(Scripted(), day(0, 1, 2))
    assert (result.unanswered, result.misses, result.billed_s) == (3, 3, 0)


def test_an_instance_left_running_is_billed_to_the_end() -> None:
    result = run(Scripted((0, start(1))), day(0), world=replace(EXACT, tail_s=500))
    assert result.billed_s == pytest.approx(500, abs=EXACT.tick_s)


def test_what_a_policy_sees() -> None:
    policy = Scripted((0, start(1)), (60, drain("i-1")))
    run(policy, day(1, 1, 1, 1, 1, 1))
    by_time = {round(seen.now_s): seen for seen in policy.seen}
    waiting, working, idle = by_time[3], by_time[24], by_time[45]
    assert waiting.counts is not None
    assert (waiting.counts.visible, waiting.counts.in_flight) == (6, 0)
    assert [each.phase for each in waiting.instances] == ["booting"]
    assert working.counts is not None
    assert (working.counts.visible, working.counts.in_flight) == (1, 2)
    assert [(each.phase, each.idle_s) for each in working.instances] == [("ready", 0.0)]
    # Its last event came a second and some tenths after its last answer, and its first one as late after its boot.
    assert idle.instances[0].idle_s == pytest.approx(45 - 26 - 1.3, abs=0.3)
    assert idle.instances[0].billed_s == pytest.approx(45, abs=1)
    assert idle.boot_p50_s == idle.boot_p90_s == pytest.approx(24, abs=1)
    assert idle.service_s == pytest.approx(1)
    # Its events come later than SQS's counts fall.
    assert sum(idle.arrivals) == pytest.approx(6, abs=1)


def under(
    faults: Faults, *, arrivals: int = 1, at_s: float = 0.0, exact: bool = True
) -> tuple[Result, list[Observation]]:
    """Two instances are started at once and told to stop after three minutes."""
    policy = Scripted((0, start(2)), (180, drain("i-1", "i-2")))
    world = replace(EXACT, faults=faults, exact_counts=exact)
    return run(policy, day(*[at_s] * arrivals), world=world), policy.seen


def test_without_faults_the_two_instances_work() -> None:
    result, seen = under(Faults())
    assert result.done_s == pytest.approx((21,))
    assert (result.launches, result.losses, result.duplicates) == (2, 0, 0)
    assert [each.phase for each in seen[9].instances] == ["ready", "ready"]


def test_dead_starts_are_billed_and_never_ready() -> None:
    result, seen = under(Faults(dead_starts=1))
    assert {each.phase for observation in seen for each in observation.instances} == {"booting"}
    assert (result.unanswered, result.billed_s) == (1, 360)


def test_throttled_calls_start_less() -> None:
    assert under(Faults(throttling=1))[0].launches in (0, 1)


def test_slow_boots_take_three_times_as_long() -> None:
    assert under(Faults(slow_boots=1))[0].done_s == pytest.approx((61,))


def test_spot_losses_take_instances_before_their_time() -> None:
    result, _ = under(Faults(spot_losses=360))
    assert result.billed_s < under(Faults())[0].billed_s
    tasks = [
        Task(policy="self-stop", workload="on-off", seed=seed, world=World(faults=Faults(spot_losses=40)))
        for seed in range(3)
    ]
    assert sum(contest.simulate(task).losses for task in tasks) > 0


def test_duplicates_are_done_again_and_counted_once() -> None:
    result, _ = under(Faults(duplicates=0.4), arrivals=50)
    assert result.duplicates > 5
    assert len(result.latencies_s) == 50


def test_without_events_the_scaler_is_only_more_careful() -> None:
    """E1: none arrives but its own; an instance that was never heard stays one that boots."""
    result, seen = under(Faults(lost_events=1))
    assert result.done_s == pytest.approx((21,))
    assert {each.phase for observation in seen for each in observation.instances} == {"booting"}
    assert seen[-1].service_s == 1.0


def test_events_are_lost_doubled_and_late_on_their_way() -> None:
    faults = Faults(lost_events=0.1, doubled_events=0.1, disordered_events=1.0)
    path = EventPath(World(faults=faults), random.Random(1))
    sent = [{"n": n} for n in range(1000)]
    arrived = [(late_s, event["n"]) for late_s, events in path.carry(sent) for event in events]
    numbers = [n for _, n in sorted(arrived)]
    assert 0.85 < len(set(numbers)) / 1000 < 0.95
    assert len(numbers) > len(set(numbers))
    assert numbers != sorted(numbers)
    assert max(late_s for late_s, _ in arrived) < 2.6
    [(late_s, whole)] = EventPath(World(), random.Random(1)).carry(sent)
    assert whole == sent
    assert late_s < 1


def test_lying_counts_say_what_is_not_there_or_nothing() -> None:
    def visible(faults: Faults) -> set[int | None]:
        _, seen = under(faults, at_s=170, exact=False)
        early = [observation.counts for observation in seen if observation.now_s < 170]
        return {None if counts is None else counts.visible for counts in early}

    assert visible(Faults()) == {0}
    assert {None, 29, 100} <= visible(Faults(lying_counts=1))


def test_a_count_can_be_a_minute_old_and_no_older() -> None:
    _, seen = under(Faults(), arrivals=1000, exact=False)
    visible = [observation.counts.visible for observation in seen if observation.counts]
    assert max(visible) != 1000  # A few percent off, besides.
    assert max(visible) == pytest.approx(1000, rel=0.15)


def test_faults_have_names() -> None:
    assert Faults.named("none") == Faults.named("") == Faults()
    assert Faults.named("all") == Faults(**USUAL)
    assert Faults.named("dead-starts, spot-losses") == Faults(dead_starts=0.05, spot_losses=1.0)
    with pytest.raises(ConfigurationError, match=r"no fault 'rain': faults are lying-counts, .* all and none"):
        Faults.named("dead-starts,rain")


@pytest.mark.parametrize("shape", workloads.SHAPES)
def test_workloads_are_made_from_their_seed(shape: str) -> None:
    made = workloads.make(shape, 3, World())
    assert made == workloads.make(shape, 3, World())
    assert made != workloads.make(shape, 4, World())
    assert made.arrivals_s == tuple(sorted(made.arrivals_s))
    assert 0 <= made.arrivals_s[0] < made.arrivals_s[-1] < 7300
    assert sum(made.service_s) / len(made.service_s) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [("kubernetes", "no policy 'kubernetes' to simulate"), ("work/quick", "there are work/fast")],
)
def test_a_policy_with_a_typo_is_refused(policy: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        contest.simulate(Task(policy=policy, workload="trickle", seed=1, world=World()))


# What is simulated is what runs (C10).


def test_the_simulator_runs_the_scalers_own_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """C10: no copied estimator, no second picture of the workers: the same classes, and the same numbers."""
    simulated, live = vars(engine), vars(loop)
    assert simulated["Core"] is live["Core"] is core.Core
    assert simulated["Workers"] is live["Workers"] is workers.Workers
    assert simulated["plan"] is vars(ec2)["plan"]
    for name in ("Believed", "Arrivals", "Boots", "Phases", "Spent", "turn_over"):
        assert vars(core)[name].__module__.startswith("celery_sqs.scaler."), name
    assert vars(workers)["ServiceTime"] is estimates.ServiceTime
    assert simulated["HEARTBEAT_S"] is vars(events)["HEARTBEAT_S"] is sqs_pace.HEARTBEAT_S
    assert simulated["EVENTS_WITHIN_S"] is vars(events)["EVENTS_WITHIN_S"] is sqs_pace.EVENTS_WITHIN_S
    conf = broker.create_app(Settings()).conf
    assert World().prefetch == sqs_pace.PREFETCH == conf.worker_prefetch_multiplier
    defaults = Settings()
    assert World().tick_s == defaults.scaler_tick_s
    assert World().slo_s == defaults.scaler_slo_s
    assert World().assumed_service_s == defaults.scaler_service_s
    made: list[object] = []
    monkeypatch.setattr(core.Core, "decide", _counting(made, core.Core.decide))
    Simulation(EXACT, day(1), Scripted()).run()
    assert made


def _counting(made: list[object], method: Callable[..., Orders]) -> Callable[..., Orders]:
    def call(self: object, *arguments: Any, **named: Any) -> Orders:
        made.append(self)
        return method(self, *arguments, **named)

    return call


def test_the_queue_is_the_templates() -> None:
    """C10: its visibility timeout and its tries."""
    template = stack.template()
    assert f"maxReceiveCount: {World().max_receives}" in template
    assert float(stack.parameters(Settings())["VisibilityTimeout"]) == World().visibility_s


# What the policy makes of the days that went wrong (E2 to E6).


def billed_of(workload: Workload, world: World, policy: str = "work/balanced") -> Result:
    return Simulation(world, workload, contest.contestant(policy).make(world)).run()


def every(gap_s: float, times: int, *, count: int = 1, service_s: float = 1.0) -> Workload:
    arrivals_s = tuple(30 + n * gap_s + k / 1000 for n in range(times) for k in range(count))
    return day(*arrivals_s, service_s=service_s)


NORMAL = World(service_spread=0)


def test_bursts_that_overlap_start_no_spiral() -> None:
    """E2: 40 messages every minute are two thirds of an instance; 203 starts, 4.98 times the bound."""
    result = billed_of(every(60, 30, count=40), NORMAL)
    assert result.launches <= 10
    assert result.misses == 0


def test_three_messages_start_no_crowd_where_boots_are_slow() -> None:
    """E2: it went from two instances to over fifteen."""
    slow = replace(NORMAL, boot_min_s=60, boot_max_s=90)
    result = billed_of(every(300, 6, count=3), slow)
    assert result.launches <= 12


def test_a_message_every_75_seconds_is_not_hidden_by_old_counts() -> None:
    """E4: 44 s at the mean, 97 at most."""
    result = billed_of(every(75, 40), NORMAL)
    assert result.mean_s <= 30
    assert max(result.latencies_s) <= 70


def test_a_new_stack_finds_out_what_a_photo_takes() -> None:
    """E5: three bursts of a thousand photos of 0.035 s started up to twenty instances, 7.7 times the bound."""
    photos = tuple(at_s + k / 1000 for at_s in (60.0, 700.0, 1400.0) for k in range(1000))
    world = replace(NORMAL, service_s=0.035, remembers=False)
    result = billed_of(day(*photos, service_s=0.035), world)
    assert result.misses == 0
    assert result.billed_s <= 2 * lower_bound(day(*photos, service_s=0.035), world).billed_s


def test_a_message_every_four_seconds_keeps_one_instance() -> None:
    """E6: it stopped and started fourteen times."""
    assert billed_of(every(4, 600), NORMAL).launches == 1


def test_eco_is_not_dearer_than_balanced() -> None:
    """E6: it was, on twenty messages every half minute."""
    workload = every(30, 60, count=20)
    eco, balanced = (billed_of(workload, NORMAL, f"work/{mode}").billed_s for mode in ("eco", "balanced"))
    assert eco <= balanced


@pytest.mark.parametrize("workload", ["flash-crowd", "bursts-50"])
def test_lost_doubled_and_disordered_events_make_nobody_late(workload: str) -> None:
    """E1: with a tenth lost 11.7 % of a flash crowd were late, with two seconds of disorder 32.9 %."""
    faults = Faults(lost_events=0.1, doubled_events=0.1, disordered_events=1.0, old_counts=0.1)
    result = contest.simulate(Task(policy="work/balanced", workload=workload, seed=3, world=World(faults=faults)))
    assert result.miss_share <= 0.001
