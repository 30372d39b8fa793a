"""After an upgrade: running instances of an older launch template give way to new ones, with no task lost.

A pure function on top of the policy's decision. Every instance leaves by draining, so it finishes what it holds; what
is decided here is only when, so that there is always somebody to take the next task.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from celery_sqs.scaler.policies.base import Decision, Instance, Observation

AT_ONCE = 4
"""A quarter of the old ones, one at least, leaves at a time."""


def turn_over(decision: Decision, seen: Observation, *, old: Collection[str], max_instances: int) -> Decision:
    """The decision, with the instances whose ids are `old` replaced step by step.

    Whatever the policy drains is an old one, as far as there are some. While messages wait, old ones are drained once
    new ones are ready and there are more than are wanted: one more is started for that, or, where `max_instances` run
    already, one old one makes room. While nothing waits, all of them are drained.
    """
    staying = [each for each in seen.instances if each.phase != "draining" and each.id not in decision.replace]
    leavers = [each for each in staying if each.id in old]
    if not leavers or seen.counts is None:
        return decision
    drain = _old_first(decision.drain, leavers)
    decision = replace(decision, drain=drain)
    if any(each.phase == "draining" and each.id in old for each in seen.instances) or set(drain) & set(old):
        return decision
    fresh = [each for each in staying if each.id not in old]
    if not seen.counts.outstanding:
        return _drain(decision, leavers)
    spare = sum(each.phase == "ready" for each in staying) - decision.wanted
    if spare > 0 and any(each.phase == "ready" for each in fresh):
        return _drain(decision, leavers[: min(spare, max(1, len(leavers) // AT_ONCE))])
    if decision.start or any(each.phase == "booting" for each in fresh):
        return decision
    if len(seen.instances) < max_instances:
        reason = f"{decision.reason}; one more, to replace {len(leavers)} of an older template"
        return replace(decision, wanted=decision.wanted + 1, start=1, reason=reason)
    return _drain(decision, leavers[:1])


def _drain(decision: Decision, leavers: list[Instance]) -> Decision:
    reason = f"{decision.reason}; {len(leavers)} of an older template go"
    return replace(decision, drain=(*decision.drain, *(each.id for each in leavers)), reason=reason)


def _old_first(drain: tuple[str, ...], leavers: list[Instance]) -> tuple[str, ...]:
    """As many as the policy drains, and of the old ones first."""
    old = [each.id for each in leavers]
    named = [each for each in drain if each in old]
    others = [each for each in drain if each not in old]
    instead = [each for each in old if each not in named][: len(others)]
    return (*named, *instead, *others[len(instead) :])
