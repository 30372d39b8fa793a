"""A table of thresholds, as EC2 Auto Scaling's step policies have them.

Source: the EC2 Auto Scaling user guide, "Step and simple scaling policies": an alarm must last before it counts, the
step that the metric reaches says by how much to change, instances that warm up count towards the next step, and nothing
is taken away while some do.
"""

from __future__ import annotations

from dataclasses import dataclass

from celery_sqs.errors import ConfigurationError
from celery_sqs.scaler.policies.base import Decision, Observation
from celery_sqs.scaler.policies.crew import Crew
from celery_sqs.scaler.policies.steady import Since, SteadyClock
from celery_sqs.scaler.policies.tunables import Tunables, number, whole


@dataclass(frozen=True, kw_only=True)
class Threshold(Tunables):
    """One row: at so many outstanding messages, change by so many instances."""

    messages: int = whole(0, 0, 100_000_000)
    instances: int = whole(1, 1, 100_000)


OUT = (
    Threshold(messages=1, instances=1),
    Threshold(messages=10, instances=2),
    Threshold(messages=50, instances=5),
    Threshold(messages=200, instances=10),
)
IN = (Threshold(messages=0, instances=5), Threshold(messages=2, instances=1))


@dataclass(frozen=True, kw_only=True)
class StepTunables(Tunables):
    """The metric is the outstanding messages: visible and in flight."""

    max_instances: int = whole(15, 0, 100_000)
    add: tuple[Threshold, ...] = OUT
    """From `messages` on, add `instances`; the last row that fits counts."""
    remove: tuple[Threshold, ...] = IN
    """Down to `messages`, take `instances` away; the first row that fits counts."""
    out_after_s: float = number(0.0, 0, 3600)
    """How long there must be so many messages before instances are added."""
    in_after_s: float = number(60.0, 0, 3600)
    """How long there must be so few before some are taken away. SQS's counts can be a minute old."""
    warm_up_s: float = number(60.0, 0, 3600)
    """An instance younger than this counts towards what a step adds, and nothing is taken away beside it."""
    in_cooldown_s: float = number(60.0, 0, 3600)
    """After instances were taken away, none are for so long."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("add", "remove"):
            rows: tuple[Threshold, ...] = getattr(self, name)
            bounds = [row.messages for row in rows]
            if not rows or bounds != sorted(set(bounds)):
                raise ConfigurationError(
                    f"{name}={bounds!r} cannot be used: it takes rows with rising messages, at least one"
                )
        if self.add[0].messages == 0:
            raise ConfigurationError(
                "add=0 messages cannot be used: it takes at least 1, so that an empty queue adds nothing"
            )


class Step:
    """Adds and takes away by the table."""

    name = "step"

    def __init__(self, tunables: StepTunables | None = None) -> None:
        self.tunables = tunables or StepTunables()
        self.max_instances = self.tunables.max_instances
        self._clock = SteadyClock()
        self._many = Since()
        self._few = Since()
        self._taken_s: float | None = None

    def decide(self, observation: Observation) -> Decision:
        """What to do now."""
        now_s = self._clock.advance(observation.now_s)
        crew, counts = Crew.of(observation), observation.counts
        if counts is None or self._clock.jumped:
            return Decision(wanted=crew.live, reason="hold: the counts are missing or the clock jumped")
        outstanding = counts.outstanding
        add, remove = self._rows(outstanding)
        many_s, few_s = self._many.update(now_s, add > 0), self._few.update(now_s, remove > 0)
        # By their age, so that a scaler that restarts does not add them once more.
        warming = crew.younger_than(self.tunables.warm_up_s)
        start, drain = 0, tuple[str, ...]()
        if add and many_s >= self.tunables.out_after_s:
            start = min(max(0, add - warming), crew.room(self.max_instances))
        elif remove and few_s >= self.tunables.in_after_s and not warming:
            drain = self._drain(now_s, crew, remove)
        wanted = min(self.max_instances, crew.live + start - len(drain))
        reason = f"{outstanding} outstanding: the table adds {add} and takes {remove}, {crew.live} are there"
        if crew.dead:
            reason += f", {len(crew.dead)} never came up"
        return Decision(wanted=wanted, start=start, drain=drain, replace=crew.dead_ids, reason=reason)

    def _rows(self, outstanding: int) -> tuple[int, int]:
        add = next((row.instances for row in reversed(self.tunables.add) if outstanding >= row.messages), 0)
        remove = next((row.instances for row in self.tunables.remove if outstanding <= row.messages), 0)
        return add, remove

    def _drain(self, now_s: float, crew: Crew, remove: int) -> tuple[str, ...]:
        """Idle ones, and those of which nobody knows; one that is known to work stays."""
        if self._taken_s is not None and now_s - self._taken_s < self.tunables.in_cooldown_s:
            return ()
        going = [each.id for each in crew.by_idleness() if each.idle_s != 0][:remove]
        if going:
            self._taken_s = now_s
        return tuple(going)
