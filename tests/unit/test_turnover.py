"""After an upgrade: who goes when. Pure."""

from __future__ import annotations

import pytest

from celery_sqs.scaler.policies.base import Counts, Decision, Instance, Observation
from celery_sqs.scaler.turnover import turn_over

MOST = 4


def observation(*phases: str, waiting: int | None = 5) -> Observation:
    """Instances i0, i1 ... in these phases."""
    return Observation(
        now_s=0.0,
        counts=None if waiting is None else Counts(visible=waiting, in_flight=0),
        service_s=1.0,
        boot_p50_s=30.0,
        boot_p90_s=40.0,
        instances=tuple(
            Instance(id=f"i{n}", phase=phase, billed_s=100.0)  # type: ignore[arg-type]
            for n, phase in enumerate(phases)
        ),
    )


def ids(*numbers: int) -> tuple[str, ...]:
    return tuple(f"i{n}" for n in numbers)


@pytest.mark.parametrize(
    ("phases", "waiting", "old", "start", "drain"),
    [
        (["ready", "ready"], 5, [], 0, []),  # nothing is old
        (["ready", "ready"], 5, [0, 1], 1, []),  # one more comes first
        (["ready", "ready", "booting"], 5, [0, 1], 0, []),  # it boots
        (["ready", "ready", "ready"], 5, [0, 1], 0, [0]),  # it is there: one goes
        (["draining", "ready", "ready"], 5, [0, 1], 0, []),  # one goes already
        (["ready", "ready"], 5, [0], 1, []),  # as many as are wanted: another one comes first
        (["ready"] * 4, 5, [0, 1, 2, 3], 0, [0]),  # no room: one goes first
        (["ready"] * 3 + ["draining"], 5, [0, 1, 2], 0, [0]),  # nor while a new one still drains
        (["ready"] * 3 + ["draining"], 5, [0, 1, 2, 3], 0, []),  # but never a second time
        (["ready", "ready"], 0, [0, 1], 0, [0, 1]),  # nothing waits
        (["booting", "ready"], 0, [0, 1], 0, [0, 1]),
        (["ready", "ready"], None, [0, 1], 0, []),  # nobody knows
    ],
)
def test_old_instances_give_way(
    phases: list[str], waiting: int | None, old: list[int], start: int, drain: list[int]
) -> None:
    seen = observation(*phases, waiting=waiting)
    found = turn_over(Decision(wanted=2, reason="why"), seen, old=ids(*old), max_instances=MOST)
    assert (found.start, found.drain) == (start, ids(*drain))
    assert found.reason.startswith("why")


def test_a_quarter_of_many_goes_at_once() -> None:
    seen = observation(*["ready"] * 10)
    found = turn_over(Decision(wanted=7), seen, old=ids(*range(9)), max_instances=15)
    assert found.drain == ids(0, 1)
    found = turn_over(Decision(wanted=9), seen, old=ids(*range(9)), max_instances=15)
    assert found.drain == ids(0)


def test_what_the_policy_drains_is_old_first() -> None:
    seen = observation(*["ready"] * 4)
    found = turn_over(Decision(wanted=1, drain=ids(0, 1, 2)), seen, old=ids(2, 3), max_instances=MOST)
    assert found.drain == ids(2, 3, 1)


def test_starts_of_the_policy_are_enough() -> None:
    seen = observation("ready", "ready")
    found = turn_over(Decision(wanted=4, start=2), seen, old=ids(0, 1), max_instances=MOST)
    assert found == Decision(wanted=4, start=2)


def test_a_dead_boot_is_not_drained_too() -> None:
    seen = observation("booting", waiting=0)
    decision = Decision(wanted=0, replace=ids(0))
    assert turn_over(decision, seen, old=ids(0), max_instances=MOST) == decision
