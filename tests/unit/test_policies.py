"""What each policy decides in the situations that matter, one row each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from celery_sqs import ScalerOptions
from celery_sqs.errors import ConfigurationError
from celery_sqs.scaler.policies import Counts, Decision, Instance, Observation, Policy, create
from celery_sqs.scaler.policies.depth import Depth, DepthTunables
from celery_sqs.scaler.policies.work import MODES, Work, WorkTunables, ages_s, rate_per_s
from celery_sqs.simulation.step import Step, StepTunables, Threshold
from celery_sqs.simulation.target import Target, TargetTunables

TICK_S = 3.0


def policy_options(**changes: Any) -> ScalerOptions:
    return ScalerOptions(**changes)


def fleet(
    ready: int = 0,
    booting: int = 0,
    draining: int = 0,
    *,
    idle_s: float | None = 0.0,
    billed_s: float = 300.0,
    boot_age_s: float = 10.0,
) -> tuple[Instance, ...]:
    return (
        *(Instance(id=f"ready-{n}", phase="ready", billed_s=billed_s, idle_s=idle_s) for n in range(ready)),
        *(Instance(id=f"booting-{n}", phase="booting", billed_s=boot_age_s) for n in range(booting)),
        *(Instance(id=f"draining-{n}", phase="draining", billed_s=billed_s) for n in range(draining)),
    )


def see(
    visible: int = 0,
    in_flight: int = 0,
    instances: Sequence[Instance] = (),
    *,
    now_s: float = 0.0,
    known: bool = True,
    delayed: int = 0,
    age_s: float = 0.0,
    service_s: float = 1.0,
    arrivals: tuple[float, ...] = (),
) -> Observation:
    counts = Counts(visible=visible, in_flight=in_flight, delayed=delayed, oldest_age_s=age_s)
    return Observation(
        now_s=now_s,
        counts=counts if known else None,
        service_s=service_s,
        boot_p50_s=35.0,
        boot_p90_s=47.0,
        arrivals=arrivals,
        instances=tuple(instances),
    )


def watch(policy: Policy, seconds: float, observe: Callable[[float], Observation]) -> list[Decision]:
    """What the policy decides while it sees `observe(now_s)` every tick."""
    return [policy.decide(observe(n * TICK_S)) for n in range(int(seconds / TICK_S) + 1)]


def work(mode: str = "balanced", most: int = 20) -> Work:
    return Work(WorkTunables.of_mode(mode, max_instances=most, slo_s=120.0, tick_s=TICK_S))


# --- create -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["work", "depth"])
def test_create_makes_the_policy_that_the_settings_name(name: str) -> None:
    policy = create(policy_options(policy=name, max_instances=7))
    assert (policy.name, policy.max_instances) == (name, 7)


@pytest.mark.parametrize("name", ["work", "depth"])
def test_a_message_that_is_delayed_is_no_work_yet(name: str) -> None:
    """An erasure that waits for its hour started an instance, or kept one running for all of it."""
    policy = create(policy_options(policy=name))
    waiting = watch(policy, 900, lambda now_s: see(delayed=20, now_s=now_s))
    assert {(each.wanted, each.start) for each in waiting} == {(0, 0)}

    policy, here = create(policy_options(policy=name)), fleet(ready=1, idle_s=500.0)
    went = watch(policy, 900, lambda now_s: see(delayed=20, instances=here, now_s=now_s))
    assert any(each.drain for each in went)

    policy = create(policy_options(policy=name))
    due = watch(policy, 60, lambda now_s: see(visible=int(now_s > 30), delayed=int(now_s <= 30), now_s=now_s))
    assert [each.start for each in due][:11] == [0] * 11
    assert any(each.start for each in due)


def test_modes_trade_time_for_money() -> None:
    starts = [create(policy_options(mode=mode)).decide(see(visible=300)).start for mode in ("fast", "balanced", "eco")]
    assert starts == sorted(starts, reverse=True)
    assert len(set(starts)) > 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"policy": "wrok"}, "no policy 'wrok': policies are work, depth"),
        ({"mode": "cheap"}, "no mode 'cheap'.*fast, balanced, eco"),
    ],
)
def test_create_refuses_a_name_with_a_typo(change: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        create(policy_options(**change))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: WorkTunables(deadline_s=-1), r"deadline_s=-1 cannot be used: it takes a number from 1 to 86400"),
        (lambda: WorkTunables(utilisation=1.5), r"utilisation=1.5 .* from 0.1 to 1"),
        (lambda: WorkTunables(boot_quantile=math.nan), r"boot_quantile=nan"),
        (lambda: WorkTunables(max_instances=True), r"max_instances=True .* whole number"),
        (lambda: DepthTunables(max_instances=-1), r"max_instances=-1 .* whole number from 0"),
        (lambda: DepthTunables(idle_s=math.inf), r"idle_s=inf"),
        (lambda: TargetTunables(target_messages=0), r"target_messages=0"),
        (lambda: TargetTunables(tolerance=2), r"tolerance=2 .* from 0 to 1"),
        (lambda: Threshold(instances=0), r"instances=0 .* whole number from 1"),
        (lambda: StepTunables(add=()), r"add=\[\] .* at least one"),
        (lambda: StepTunables(add=(Threshold(messages=9), Threshold(messages=3))), r"add=\[9, 3\] .* rising"),
        (lambda: StepTunables(add=(Threshold(messages=0),)), r"add=0 messages .* at least 1"),
    ],
)
def test_tunables_refuse_what_cannot_work(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        make()


# --- depth ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("visible", "in_flight", "instances", "start"),
    [
        (100, 0, (), 15),
        (3, 2, (), 5),
        (100, 0, fleet(booting=15), 0),
        (100, 0, fleet(ready=4, booting=6), 5),
        (100, 0, fleet(ready=4, draining=8), 3),
        (0, 0, (), 0),
    ],
)
def test_depth_starts_one_instance_a_message(
    visible: int, in_flight: int, instances: tuple[Instance, ...], start: int
) -> None:
    assert Depth().decide(see(visible, in_flight, instances)).start == start


def test_depth_drains_everybody_two_observations_after_the_last_message() -> None:
    decisions = watch(Depth(), 6, lambda now_s: see(instances=fleet(ready=15, idle_s=now_s + 5), now_s=now_s))
    assert [len(each.drain) for each in decisions] == [0, 15, 15]
    assert decisions[-1].wanted == 0


def test_depth_stops_what_still_boots_once_all_is_done() -> None:
    here = fleet(ready=2, booting=3, idle_s=5.0)
    last = watch(Depth(), 3, lambda now_s: see(instances=here, now_s=now_s))[-1]
    assert set(last.drain) == {each.id for each in here}


@pytest.mark.parametrize(
    "instances",
    [fleet(ready=15, idle_s=0.0), fleet(booting=15), fleet(ready=3, idle_s=1.0), fleet(ready=15, idle_s=None)],
    ids=["busy", "booting", "idle for a moment", "unknown"],
)
def test_depth_believes_no_zero_alone(instances: tuple[Instance, ...]) -> None:
    decisions = watch(Depth(), 60, lambda now_s: see(instances=instances, now_s=now_s))
    assert [each.drain for each in decisions] == [()] * len(decisions)


def test_depth_stops_unknown_workers_when_the_queue_stays_empty_for_long() -> None:
    decisions = watch(Depth(), 120, lambda now_s: see(instances=fleet(ready=4, idle_s=None), now_s=now_s))
    assert next(len(each.drain) for each in decisions if each.drain) == 4
    assert not any(each.drain for each in decisions[: int(90 / TICK_S)])


def test_depth_is_not_moved_by_counts_that_lie() -> None:
    policy, busy = Depth(), fleet(ready=15, idle_s=0.0)
    told = [100, 0, 29, 100, 0, 0, 100]
    decisions = [policy.decide(see(visible, 0, busy, now_s=n * TICK_S)) for n, visible in enumerate(told)]
    assert [(each.start, each.drain) for each in decisions] == [(0, ())] * len(told)


# --- work -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("visible", "in_flight", "instances", "start"),
    [
        (1, 0, (), 1),
        (0, 1, (), 0),
        (50, 0, (), 1),
        (10_000, 0, (), 20),
        (10_000, 0, fleet(ready=5, draining=10), 5),
        (50, 0, fleet(booting=1), 0),
        (50, 10, fleet(ready=1), 0),
        (1, 0, fleet(draining=3), 1),
        (1, 0, fleet(draining=20), 0),
    ],
)
def test_work_starts_what_the_backlog_needs(
    visible: int, in_flight: int, instances: tuple[Instance, ...], start: int
) -> None:
    assert work().decide(see(visible, in_flight, instances)).start == start


def test_work_is_due_by_its_age() -> None:
    """E2: one message that has waited for long does not make all that came since as urgent."""
    arrivals = (1.0, *(0.0,) * 15, 40.0, 0.0)
    here = fleet(ready=1)
    policy = work()
    watch(policy, 81, lambda now_s: see(1, 1, here, now_s=now_s))
    assert policy.decide(see(41, 1, here, now_s=84.0, arrivals=arrivals)).start == 0
    assert ages_s(arrivals, Counts(visible=41, in_flight=1), 84.0) == [(84.0, 1.0), (10.0, 41.0)]


def test_what_boots_counts_as_much_as_what_would_be_started() -> None:
    """E2: three messages, boots of a minute and more: what was started is not started again."""
    slow = fleet(booting=2, boot_age_s=40.0)
    seen = dataclasses.replace(see(3, 0, slow, age_s=90.0), boot_p50_s=75.0, boot_p90_s=88.0)
    assert work().decide(seen).start == 0


def test_work_starts_more_for_messages_that_have_waited() -> None:
    fresh, old = (work().decide(see(200, 0, age_s=age_s)).start for age_s in (0.0, 60.0))
    assert 0 < fresh < old


def test_a_burst_is_no_rate() -> None:
    assert rate_per_s((0,) * 11 + (100,)) < 0.1
    assert rate_per_s((25,) * 12) == pytest.approx(5.0)
    assert rate_per_s(()) == 0.0
    assert rate_per_s((25, 25)) < 0.1


def test_work_counts_late_boots_as_nothing_and_replaces_dead_ones() -> None:
    late = work().decide(see(100, 0, fleet(booting=3, boot_age_s=70.0)))
    assert late.start == work().decide(see(100, 0)).start
    assert late.replace == ()
    dead = work().decide(see(100, 0, fleet(booting=3, boot_age_s=121.0)))
    assert dead.replace == ("booting-0", "booting-1", "booting-2")
    assert dead.start == late.start


@pytest.mark.parametrize("policy", [work(), Depth(), Target(), Step()], ids=lambda policy: str(policy.name))
def test_dead_boots_are_replaced_within_the_most_there_may_be(policy: Policy) -> None:
    here = fleet(booting=policy.max_instances, boot_age_s=500.0)
    decision = policy.decide(see(1000, 0, here))
    assert set(decision.replace) == {each.id for each in here}
    assert decision.start == 0
    assert "never came up" in decision.reason


def test_work_does_not_drain_in_a_burst() -> None:
    here = fleet(ready=10)
    decisions = watch(work(), 120, lambda now_s: see(visible=500, in_flight=40, instances=here, now_s=now_s))
    assert not any(each.drain for each in decisions)


def test_work_lets_the_last_one_wait_and_the_others_go() -> None:
    policy = Work(WorkTunables(keep_last_s=30.0))
    decisions = watch(policy, 60, lambda now_s: see(instances=fleet(ready=8, idle_s=now_s + 1), now_s=now_s))
    first = next(each for each in decisions if each.drain)
    assert len(first.drain) == 7
    assert len(decisions[-1].drain) == 8


def test_work_keeps_the_last_one_for_gaps_like_those_that_were() -> None:
    """E6: gaps of 20 s are worth an instance that waits, gaps of 300 s are not."""

    def kept_s(gap_s: float) -> float:
        policy, now_s = work(), 0.0
        for _ in range(6):
            for idle_s in (0.0, *(n * TICK_S for n in range(1, int(gap_s / TICK_S) + 1))):
                now_s += TICK_S
                if policy.decide(see(0, 0, fleet(ready=1, idle_s=idle_s), now_s=now_s)).drain and idle_s < gap_s - 60:
                    return idle_s
        return math.inf

    assert kept_s(21) == math.inf
    assert kept_s(300) <= 12


def test_work_uses_up_the_minute_that_is_paid() -> None:
    young = fleet(ready=4, idle_s=20.0, billed_s=40.0)
    assert not any(each.drain for each in watch(work(), 60, lambda now_s: see(instances=young, now_s=now_s)))


def test_work_keeps_what_the_arrivals_need() -> None:
    here = fleet(ready=10, idle_s=0.0)
    steady = (20.0,) * 12
    last = watch(work(), 90, lambda now_s: see(0, 4, here, now_s=now_s, arrivals=steady))[-1]
    assert 10 - len(last.drain) == 4


def test_work_drains_idle_ones_before_busy_ones() -> None:
    here = (
        Instance(id="busy-old", phase="ready", billed_s=900, idle_s=0.0),
        Instance(id="idle-short", phase="ready", billed_s=200, idle_s=4.0),
        Instance(id="idle-long", phase="ready", billed_s=100, idle_s=30.0),
        Instance(id="busy-new", phase="ready", billed_s=80, idle_s=0.0),
    )
    last = watch(work(), 60, lambda now_s: see(0, 1, here, now_s=now_s))[-1]
    assert last.drain == ("idle-long", "idle-short", "busy-old")


def test_work_measures_the_wait_itself_when_nobody_tells() -> None:
    booting = fleet(booting=1, boot_age_s=20.0)
    decisions = watch(work(), 60, lambda now_s: see(40, 0, booting, now_s=now_s))
    assert decisions[0].start == 0
    assert decisions[-1].start > 0


def test_work_waits_for_more_answers_when_one_may_be_old() -> None:
    policy, here = work(), fleet(ready=2)
    told = [400, 20, 20, 20, 20, 20, 390, 390, 390, 390]
    starts = [policy.decide(see(visible, 2, here, now_s=n * TICK_S)).start for n, visible in enumerate(told)]
    assert starts[0] > 0
    assert starts[1:7] == [0] * 6
    assert starts[7] > 0


def test_work_starts_at_once_for_more_than_ever() -> None:
    policy, here = work(), fleet(ready=1)
    starts = [policy.decide(see(visible, 1, here, now_s=n * TICK_S)).start for n, visible in enumerate([5, 400])]
    assert starts[0] == 0
    assert starts[1] > 2


def test_work_believes_idle_workers_rather_than_frozen_counts() -> None:
    decisions = watch(
        work(), 30, lambda now_s: see(700, 60, fleet(ready=20, idle_s=now_s + 1), now_s=now_s, arrivals=(50.0,) * 12)
    )
    assert not any(each.drain for each in decisions[:3])
    assert len(decisions[-1].drain) >= 19


def test_work_waits_no_longer_when_every_worker_is_idle() -> None:
    policy = work("fast")
    busy = watch(policy, 30, lambda now_s: see(300, 20, fleet(ready=20), now_s=now_s))
    assert not any(each.drain for each in busy)
    decision = policy.decide(see(instances=fleet(ready=20, idle_s=10.0), now_s=33.0))
    assert len(decision.drain) == 19


def test_work_does_not_take_the_last_one_for_idle_while_nobody_knows() -> None:
    decisions = watch(work(), 150, lambda now_s: see(instances=fleet(ready=1, idle_s=None), now_s=now_s))
    drained = [n * TICK_S for n, each in enumerate(decisions) if each.drain]
    assert drained[0] >= 90


def test_work_is_not_moved_by_counts_that_lie() -> None:
    policy, busy = work(), fleet(ready=20, idle_s=0.0)
    told = [100, 0, 29, 100, 0, 0, 100] * 3
    decisions = [policy.decide(see(visible, 20, busy, now_s=n * TICK_S)) for n, visible in enumerate(told)]
    assert all(20 - len(each.drain) >= 1 and not each.start for each in decisions)


# --- target -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outstanding", "instances", "start", "why"),
    [
        (500, (), 1, "KEDA makes the first one"),
        (500, fleet(ready=1), 4, "four in a period"),
        (500, fleet(ready=6), 6, "or as many as there are"),
        (500, fleet(ready=6, booting=4, boot_age_s=3.0), 2, "what was added in this period counts"),
        (500, fleet(booting=6, boot_age_s=3.0), 0, "more than that were added in this period"),
        (21, fleet(ready=4), 0, "within the tolerance"),
        (23, fleet(ready=4), 1, "out of it"),
        (500, fleet(ready=10, draining=4), 1, "no room"),
        (0, (), 0, "nothing to do"),
    ],
)
def test_target_adds_as_keda_and_the_hpa_do(
    outstanding: int, instances: tuple[Instance, ...], start: int, why: str
) -> None:
    decision = Target().decide(see(outstanding, 0, instances))
    assert (decision.start, decision.drain) == (start, ()), why


def test_target_scales_in_to_the_highest_of_its_window() -> None:
    here = fleet(ready=10)
    decisions = watch(Target(), 330, lambda now_s: see(20 if now_s > 100 else 50, 0, here, now_s=now_s))
    drained = {n * TICK_S: len(each.drain) for n, each in enumerate(decisions) if each.drain}
    assert drained == {}
    decisions = watch(Target(), 330, lambda now_s: see(20, 0, here, now_s=now_s))
    drained = {n * TICK_S: len(each.drain) for n, each in enumerate(decisions) if each.drain}
    assert min(drained) == 300.0
    assert set(drained.values()) == {6}


def test_target_keeps_the_last_one_for_its_cooldown() -> None:
    decisions = watch(Target(), 330, lambda now_s: see(0, 0, fleet(ready=1, idle_s=now_s + 1), now_s=now_s))
    assert next(n * TICK_S for n, each in enumerate(decisions) if each.drain) == 300.0


def test_target_stops_boots_before_workers() -> None:
    here = fleet(ready=2, booting=2)
    last = watch(Target(), 330, lambda now_s: see(10, 0, here, now_s=now_s))[-1]
    assert set(last.drain) == {"booting-0", "booting-1"}


# --- step -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outstanding", "instances", "start"),
    [
        (0, (), 0),
        (1, (), 1),
        (9, (), 1),
        (10, (), 2),
        (199, (), 5),
        (10_000, (), 10),
        (10_000, fleet(ready=10), 5),
        (199, fleet(booting=2), 3),
        (9, fleet(booting=2), 0),
    ],
)
def test_step_adds_what_its_table_says(outstanding: int, instances: tuple[Instance, ...], start: int) -> None:
    assert Step().decide(see(outstanding, 0, instances)).start == start


def test_step_takes_away_after_its_alarm_and_then_cools_down() -> None:
    here = fleet(ready=12, idle_s=30.0)
    decisions = watch(Step(), 130, lambda now_s: see(0, 0, here, now_s=now_s))
    assert [(n * TICK_S, len(each.drain)) for n, each in enumerate(decisions) if each.drain] == [(60.0, 5), (120.0, 5)]


def test_step_takes_nobody_who_works_and_none_while_others_warm_up() -> None:
    busy = fleet(ready=3, idle_s=0.0)
    assert not any(each.drain for each in watch(Step(), 130, lambda now_s: see(0, 0, busy, now_s=now_s)))
    warming = fleet(ready=3, booting=1, idle_s=30.0)
    assert not any(each.drain for each in watch(Step(), 130, lambda now_s: see(0, 0, warming, now_s=now_s)))


# --- all of them ------------------------------------------------------------------------------------------------------

MAKERS: list[Callable[[int], Policy]] = [
    *(lambda most, mode=mode: work(mode, most) for mode in MODES),
    lambda most: Depth(DepthTunables(max_instances=most)),
    lambda most: Target(TargetTunables(max_instances=most)),
    lambda most: Step(StepTunables(max_instances=most)),
]
every_policy = pytest.mark.parametrize("make", MAKERS, ids=[*MODES, "depth", "target", "step"])


@every_policy
def test_missing_counts_hold(make: Callable[[int], Policy]) -> None:
    policy, here = make(20), fleet(ready=10, booting=2, idle_s=50.0)
    decisions = watch(policy, 600, lambda now_s: see(instances=here, now_s=now_s, known=False))
    assert {(each.start, each.drain, each.replace, each.wanted) for each in decisions} == {(0, (), (), 12)}


@every_policy
@pytest.mark.parametrize("jump_s", [-1e6, -1.0, 86_400.0, 1e12])
@pytest.mark.parametrize("outstanding", [0, 5000])
def test_a_clock_that_jumps_moves_nothing(make: Callable[[int], Policy], jump_s: float, outstanding: int) -> None:
    policy, here = make(50), fleet(ready=10, idle_s=0.0)
    assert policy.decide(see(40, 10, here, now_s=1000.0)).drain == ()
    decision = policy.decide(see(outstanding, 0, here, now_s=1000.0 + jump_s))
    assert (decision.start, decision.drain) == (0, ())
    after = policy.decide(see(40, 10, here, now_s=1003.0 + jump_s))
    assert after.drain == ()


@every_policy
def test_no_instances_allowed(make: Callable[[int], Policy]) -> None:
    decisions = watch(make(0), 60, lambda now_s: see(100, 0, now_s=now_s))
    assert {(each.start, each.wanted) for each in decisions} == {(0, 0)}


@every_policy
def test_a_lowered_most_starts_nothing(make: Callable[[int], Policy]) -> None:
    assert make(4).decide(see(1000, 8, fleet(ready=8))).start == 0


@every_policy
@pytest.mark.parametrize("service_s", [0.0, 1e9, math.inf, math.nan])
def test_odd_service_times_start_something_and_not_too_much(make: Callable[[int], Policy], service_s: float) -> None:
    decision = make(20).decide(see(3, 0, service_s=service_s, arrivals=(math.inf, math.nan, 5.0)))
    assert 1 <= decision.start <= 20


@every_policy
def test_a_restart_in_a_burst_moves_nothing(make: Callable[[int], Policy]) -> None:
    decision = make(20).decide(see(0, 0, fleet(ready=14, booting=6, idle_s=2.0), now_s=9e5))
    assert (decision.start, decision.drain) == (0, ())
    decision = make(20).decide(see(900, 60, fleet(ready=14, booting=6), now_s=9e5))
    assert (decision.start, decision.drain) == (0, ())
