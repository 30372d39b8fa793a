"""What holds for every policy, whatever it sees, and what each makes of a whole burst."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_sqs.scaler.policies import Counts, Decision, Instance, Observation, Policy
from celery_sqs.scaler.policies.depth import Depth, DepthTunables
from celery_sqs.scaler.policies.work import MODES, Work, WorkTunables
from celery_sqs.simulation.step import Step, StepTunables
from celery_sqs.simulation.target import Target, TargetTunables

MOST = 8
TICK_S = 3.0

MAKERS: dict[str, Callable[[int], Policy]] = {
    **{
        mode: lambda most, mode=mode: Work(  # type: ignore[misc]
            WorkTunables.of_mode(mode, max_instances=most, slo_s=120.0, tick_s=TICK_S)
        )
        for mode in MODES
    },
    "depth": lambda most: Depth(DepthTunables(max_instances=most)),
    "target": lambda most: Target(TargetTunables(max_instances=most, in_window_s=30.0, cooldown_s=30.0)),
    "step": lambda most: Step(StepTunables(max_instances=most, in_after_s=6.0, warm_up_s=30.0, in_cooldown_s=6.0)),
}
every_policy = pytest.mark.parametrize("name", MAKERS)

instances = st.lists(
    st.builds(
        Instance,
        id=st.sampled_from([f"i-{n}" for n in range(2 * MOST)]),
        phase=st.sampled_from(["booting", "ready", "ready", "ready", "draining"]),
        billed_s=st.floats(0, 1000),
        idle_s=st.one_of(st.none(), st.just(0.0), st.floats(0, 400)),
    ),
    max_size=MOST,
    unique_by=lambda each: each.id,
).map(tuple)
counts = st.one_of(
    st.none(),
    st.builds(
        Counts,
        visible=st.one_of(st.just(0), st.integers(0, 2000)),
        in_flight=st.integers(0, 3 * MOST),
        delayed=st.integers(0, 3),
        oldest_age_s=st.floats(0, 500),
    ),
)
steps = st.lists(
    st.tuples(
        st.one_of(st.just(TICK_S), st.sampled_from([0.0, 12.0, 45.0, -5.0, 1e7, -1e7])),
        counts,
        st.one_of(st.just(1.0), st.floats(0, 1e6)),
        st.floats(1, 60),
        st.lists(st.floats(0, 500), max_size=12).map(tuple),
        instances,
    ),
    min_size=1,
    max_size=12,
)
days = steps.map(lambda drawn: list(observations(drawn)))


def observations(
    drawn: list[tuple[float, Counts | None, float, float, tuple[float, ...], tuple[Instance, ...]]],
) -> list[Observation]:
    now_s, made = 1e6, []
    for step_s, seen, service_s, boot_s, arrivals, here in drawn:
        now_s += step_s
        made.append(
            Observation(
                now_s=now_s,
                counts=seen,
                service_s=service_s,
                boot_p50_s=boot_s,
                boot_p90_s=1.3 * boot_s,
                arrivals=arrivals,
                instances=here,
            )
        )
    return made


@every_policy
@settings(max_examples=25, deadline=None)
@given(day=days)
def test_never_more_than_the_most(name: str, day: list[Observation]) -> None:
    policy = MAKERS[name](MOST)
    for seen in day:
        decision = policy.decide(seen)
        assert decision.start >= 0
        assert len(seen.instances) + decision.start <= MOST
        assert 0 <= decision.wanted <= MOST


@every_policy
@settings(max_examples=25, deadline=None)
@given(day=days)
def test_drains_only_who_is_there_and_once(name: str, day: list[Observation]) -> None:
    policy = MAKERS[name](MOST)
    for seen in day:
        decision = policy.decide(seen)
        live = {each.id for each in seen.instances if each.phase != "draining"}
        going = [*decision.drain, *decision.replace]
        assert set(going) <= live
        assert len(going) == len(set(going))
        assert {each.phase for each in seen.instances if each.id in decision.replace} <= {"booting"}
        assert not (decision.start and decision.drain)


@every_policy
@settings(max_examples=25, deadline=None)
@given(day=days)
def test_nothing_is_done_without_counts_or_without_a_reason(name: str, day: list[Observation]) -> None:
    policy = MAKERS[name](MOST)
    for seen in day:
        decision = policy.decide(seen)
        if seen.counts is None:
            assert (decision.start, decision.drain, decision.replace) == (0, (), ())
        assert decision.reason


@every_policy
@settings(max_examples=25, deadline=None)
@given(day=days)
def test_the_same_observations_give_the_same_decisions(name: str, day: list[Observation]) -> None:
    one, other = MAKERS[name](MOST), MAKERS[name](MOST)
    assert [one.decide(seen) for seen in day] == [other.decide(seen) for seen in day]


def needed(name: str, seen: Observation) -> int:
    """The instances that the work in flight needs, as each policy promises it."""
    assert seen.counts is not None
    busy = sum(each.phase == "ready" and each.idle_s == 0 for each in seen.instances)
    if name == "depth":
        return min(MOST, seen.counts.outstanding)
    if name == "target":
        return min(MOST, math.ceil(seen.counts.outstanding / TargetTunables().target_messages))
    if name == "step":
        return busy
    return 1 if seen.counts.in_flight and busy else 0


@every_policy
@settings(max_examples=40, deadline=None)
@given(day=days)
def test_never_below_what_the_work_in_flight_needs(name: str, day: list[Observation]) -> None:
    policy = MAKERS[name](MOST)
    for seen in day:
        decision = policy.decide(seen)
        live = {each.id for each in seen.instances if each.phase != "draining"} - set(decision.replace)
        if decision.drain:
            assert len(live - set(decision.drain)) >= min(len(live), needed(name, seen))


@every_policy
@settings(max_examples=25, deadline=None)
@given(here=instances, seen=counts)
def test_a_fresh_object_drains_nobody_at_once(name: str, here: tuple[Instance, ...], seen: Counts | None) -> None:
    first = observations([(TICK_S, seen, 1.0, 35.0, (), here)])[0]
    decision = MAKERS[name](MOST).decide(first)
    quiet = all(each.idle_s and each.idle_s >= 9 for each in here if each.phase == "ready")
    assert not decision.drain or quiet


@dataclass
class Toy:
    """A queue and a fleet in exact seconds: a tick each, boots of 20 s, a message a second for each instance."""

    policy: Policy
    boot_s: int = 20
    restart_at_s: int | None = None
    remake: Callable[[], Policy] | None = None
    visible: int = 0
    now_s: int = 0
    made: int = 0
    ages_s: dict[str, int] = field(default_factory=dict)
    busy: set[str] = field(default_factory=set)
    idle_s: dict[str, int] = field(default_factory=dict)
    draining: set[str] = field(default_factory=set)
    answered: list[int] = field(default_factory=list)
    peak: int = 0
    running: list[int] = field(default_factory=list)

    def run(self, arrivals: dict[int, int], seconds: int) -> None:
        for self.now_s in range(seconds):
            self.visible += arrivals.get(self.now_s, 0)
            if self.remake and self.now_s == self.restart_at_s:
                self.policy = self.remake()
            if self.now_s % int(TICK_S) == 0:
                self.apply(self.policy.decide(self.observe()))
            self.work()
            self.peak = max(self.peak, len(self.ages_s))
            self.running.append(len(self.ages_s))

    def work(self) -> None:
        self.answered += [self.now_s] * len(self.busy)
        self.busy.clear()
        for id_ in list(self.ages_s):
            self.ages_s[id_] += 1
            if id_ in self.draining:
                del self.ages_s[id_]
            elif self.ages_s[id_] > self.boot_s:
                took = self.visible > 0
                self.visible -= took
                self.idle_s[id_] = 0 if took else self.idle_s.get(id_, 0) + 1
                if took:
                    self.busy.add(id_)

    def observe(self) -> Observation:
        return Observation(
            now_s=float(self.now_s),
            counts=Counts(visible=self.visible, in_flight=len(self.busy)),
            service_s=1.0,
            boot_p50_s=float(self.boot_s),
            boot_p90_s=float(self.boot_s),
            instances=tuple(
                Instance(
                    id=id_,
                    phase="draining" if id_ in self.draining else "ready" if age_s > self.boot_s else "booting",
                    billed_s=float(age_s),
                    idle_s=float(self.idle_s[id_]) if id_ in self.idle_s else None,
                )
                for id_, age_s in self.ages_s.items()
            ),
        )

    def apply(self, decision: Decision) -> None:
        self.draining |= set(decision.drain)
        for _ in range(decision.start):
            self.made += 1
            self.ages_s[f"i-{self.made}"] = 0


@every_policy
def test_a_burst_goes_from_none_to_some_to_none(name: str) -> None:
    toy = Toy(policy=MAKERS[name](15))
    toy.run({10: 100}, 700)
    assert len(toy.answered) == 100
    assert 1 <= toy.peak <= 15
    assert toy.running[-1] == 0


def test_depth_peaks_at_exactly_the_most_and_is_gone_ten_seconds_after_the_last_answer() -> None:
    toy = Toy(policy=MAKERS["depth"](15))
    toy.run({10: 100}, 120)
    assert len(toy.answered) == 100
    assert toy.peak == 15
    assert toy.running[max(toy.answered) + 10] == 0


@every_policy
@pytest.mark.parametrize("restart_at_s", [12, 25, 33, 36, 60])
def test_a_restart_in_a_burst_costs_no_more_instances(name: str, restart_at_s: int) -> None:
    plain = Toy(policy=MAKERS[name](15))
    plain.run({10: 100}, 700)
    toy = Toy(policy=MAKERS[name](15), restart_at_s=restart_at_s, remake=lambda: MAKERS[name](15))
    toy.run({10: 100}, 700)
    assert len(toy.answered) == 100
    assert toy.peak <= plain.peak
    assert max(toy.answered) <= max(plain.answered)
    assert toy.running[-1] == 0
