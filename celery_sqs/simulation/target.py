"""Backlog per instance, as KEDA and the Kubernetes HorizontalPodAutoscaler keep it.

Sources: the HPA's documentation ("Algorithm details", "Scaling policies", "Stabilization window") and KEDA's on
ScaledObject (`activationThreshold`, `cooldownPeriod`) and on its AWS SQS scaler (`queueLength`). Defaults are theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from celery_sqs.scaler.policies.base import Decision, Observation
from celery_sqs.scaler.policies.crew import Crew
from celery_sqs.scaler.policies.steady import Highest, Since, SteadyClock
from celery_sqs.scaler.policies.tunables import Tunables, number, whole


@dataclass(frozen=True, kw_only=True)
class TargetTunables(Tunables):
    """The metric is the outstanding messages: visible and in flight."""

    max_instances: int = whole(15, 0, 100_000)
    target_messages: float = number(5.0, 0.01, 1_000_000)
    """Outstanding messages for each instance (KEDA: queueLength)."""
    activation_messages: int = whole(0, 0, 1_000_000)
    """More than so many start the first instance (KEDA: activationQueueLength)."""
    tolerance: float = number(0.1, 0, 1)
    """Nothing changes while the backlog per instance is this close to its target."""
    in_window_s: float = number(300.0, 0, 3600)
    """Scaling in goes to the highest recommendation of this window."""
    out_instances: int = whole(4, 1, 100_000)
    out_percent: float = number(100.0, 0, 100_000)
    """In one period, so many instances or percent may be added, whichever is more."""
    out_period_s: float = number(15.0, 1, 1800)
    cooldown_s: float = number(300.0, 0, 86_400)
    """The last instance goes when there was nothing to do for so long."""


class Target:
    """ceil(outstanding / target), damped."""

    name = "target"

    def __init__(self, tunables: TargetTunables | None = None) -> None:
        self.tunables = tunables or TargetTunables()
        self.max_instances = self.tunables.max_instances
        self._clock = SteadyClock()
        self._recommended = Highest(self.tunables.in_window_s)
        self._inactive = Since()
        self._new = True

    def decide(self, observation: Observation) -> Decision:
        """What to do now."""
        now_s = self._clock.advance(observation.now_s)
        crew, counts = Crew.of(observation), observation.counts
        if counts is None or self._clock.jumped:
            return Decision(wanted=crew.live, reason="hold: the counts are missing or the clock jumped")
        if self._new:
            # As the HPA does after its own restart: what is there was recommended by somebody.
            self._new = False
            self._recommended.add(now_s, crew.live)
        outstanding = counts.outstanding
        inactive_s = self._inactive.update(now_s, outstanding <= self.tunables.activation_messages)
        wanted = self._wanted(now_s, crew, outstanding, inactive_s)
        start = min(max(0, wanted - crew.live), crew.room(self.max_instances))
        drain = self._drain(crew, crew.live - wanted)
        reason = (
            f"{outstanding} outstanding for {crew.live} instances, {self.tunables.target_messages:g} each are the"
            f" target: {wanted} wanted"
        )
        if crew.dead:
            reason += f", {len(crew.dead)} never came up"
        return Decision(wanted=wanted, start=start, drain=drain, replace=crew.dead_ids, reason=reason)

    def _wanted(self, now_s: float, crew: Crew, outstanding: int, inactive_s: float) -> int:
        current = crew.live
        recommended = self._recommendation(current, outstanding)
        highest = self._recommended.add(now_s, recommended)
        if self._inactive.times > 1 and inactive_s >= self.tunables.cooldown_s:
            return 0
        if recommended > current:
            return min(recommended, self._most(crew), self.max_instances)
        return min(current, highest, self.max_instances)

    def _recommendation(self, current: int, outstanding: int) -> int:
        """KEDA's part is between none and one, the HPA's is above."""
        tunables = self.tunables
        if current == 0:
            return 1 if outstanding > tunables.activation_messages else 0
        ratio = outstanding / (tunables.target_messages * current)
        if abs(ratio - 1) <= tunables.tolerance:
            return current
        return max(1, math.ceil(outstanding / tunables.target_messages))

    def _most(self, crew: Crew) -> int:
        """What may be there after this period's additions; what was added in it is known by its age."""
        before = crew.live - crew.younger_than(self.tunables.out_period_s)
        by_percent = math.ceil(before * (1 + self.tunables.out_percent / 100))
        return max(crew.live, before + self.tunables.out_instances, by_percent)

    def _drain(self, crew: Crew, surplus: int) -> tuple[str, ...]:
        """Those that do not work yet first, as ReplicaSets do, and the last one only when it has no task."""
        going = [*crew.newest_boots(), *crew.by_idleness()][: max(0, surplus)]
        if going and len(going) == crew.live and going[-1].idle_s == 0:
            going.pop()
        return tuple(each.id for each in going)
