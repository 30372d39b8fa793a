"""Which instances start when some are wanted: a pure function, shared by the fleet and its dry run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from celery_sqs.scaler.machine import Machine, free_numbers


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How `count` instances are to be started."""

    stopped: tuple[Machine, ...]
    new: tuple[int, ...]
    """The numbers of new ones."""


def plan(
    machines: Sequence[Machine],
    count: int,
    *,
    max_instances: int,
    per_minute: int,
    pool_is_dry: bool = False,
    latest: int = 0,
) -> Plan:
    """Stopped instances first, then new ones under the lowest free numbers, then those whose last boot failed.

    Never more than `max_instances` run, and never more than `per_minute` starts lie within a minute. There are more
    than `max_instances` in all only when the stopped ones cannot start (`pool_is_dry`: no capacity where they are), or
    while those are still listed that were made from an older version of the launch template than `latest` (0: not
    known): they are not started again.
    """
    ours = [each for each in machines if each.ours or each.nameless]
    room = max_instances - sum(each.billed for each in ours)
    rate = per_minute - sum(each.age_s < 60 for each in ours)
    count = max(0, min(count, room, rate))
    stopped = [each for each in ours if each.state == "stopped" and each.ours]
    old = [each for each in stopped if each.outdated(latest)]
    pool = sorted((each for each in stopped if each not in old), key=lambda each: each.number or 0)
    if pool_is_dry:
        pool = []
    good = [each for each in pool if not each.failed][:count]
    free = (2 if pool_is_dry else 1) * max_instances - (len(ours) - len(old))
    new = max(0, min(count - len(good), free))
    again = [each for each in pool if each.failed][: count - len(good) - new]
    return Plan(stopped=(*good, *again), new=tuple(free_numbers(machines, new)))
