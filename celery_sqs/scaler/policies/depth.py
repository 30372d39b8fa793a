"""One instance for each outstanding message, and none within seconds after the last: the classic course behaviour."""

from __future__ import annotations

from dataclasses import dataclass

from celery_sqs.scaler.policies.base import Decision, Observation
from celery_sqs.scaler.policies.crew import Crew
from celery_sqs.scaler.policies.steady import Since, SteadyClock
from celery_sqs.scaler.policies.tunables import Tunables, number, whole


@dataclass(frozen=True, kw_only=True)
class DepthTunables(Tunables):
    """When an instance counts as not needed any more."""

    max_instances: int = whole(15, 0, 100_000)
    idle_s: float = number(3.0, 0, 3600)
    """A worker goes after so many seconds without a task."""
    agreeing: int = whole(2, 1, 1000)
    """Observations in a row that must show fewer messages than instances: SQS's counts can be wrong for a while."""
    blind_s: float = number(90.0, 0, 86_400)
    """Seconds that the queue must look empty before a worker goes of which nobody knows what it does: longer than SQS's
    counts are old (a minute)."""


class Depth:
    """min(max_instances, outstanding)."""

    name = "depth"

    def __init__(self, tunables: DepthTunables | None = None) -> None:
        self.tunables = tunables or DepthTunables()
        self.max_instances = self.tunables.max_instances
        self._clock = SteadyClock()
        self._surplus = Since()
        self._empty = Since()

    def decide(self, observation: Observation) -> Decision:
        """What to do now."""
        now_s = self._clock.advance(observation.now_s)
        crew, counts = Crew.of(observation), observation.counts
        if counts is None or self._clock.jumped:
            return Decision(wanted=crew.live, reason="hold: the counts are missing or the clock jumped")
        wanted = min(self.max_instances, counts.outstanding)
        self._surplus.update(now_s, wanted < crew.live)
        empty_s = self._empty.update(now_s, counts.outstanding == 0)
        start = min(max(0, wanted - crew.expected), crew.room(self.max_instances))
        drain = self._drain(crew, wanted, empty_s) if start == 0 else ()
        reason = f"{counts.visible} visible and {counts.in_flight} in flight want {wanted}, {crew.expected} are there"
        if crew.dead:
            reason += f", {len(crew.dead)} never came up"
        return Decision(wanted=wanted, start=start, drain=drain, replace=crew.dead_ids, reason=reason)

    def _drain(self, crew: Crew, wanted: int, empty_s: float) -> tuple[str, ...]:
        """Those that nobody needs: idle ones, and once the queue is empty and every worker idle, booting ones too."""
        tunables = self.tunables
        if self._surplus.times < tunables.agreeing:
            return ()
        blind = empty_s > 0 and empty_s >= tunables.blind_s
        idle = [each for each in crew.by_idleness() if (each.idle_s or 0.0) >= tunables.idle_s and each.idle_s]
        unknown = [each for each in crew.ready if each.idle_s is None] if blind else []
        done = self._empty.times >= tunables.agreeing and len(idle) == len(crew.ready) > 0
        boots = crew.newest_boots() if done or blind else []
        surplus = max(0, crew.live - wanted)
        return tuple(each.id for each in (*boots, *idle, *unknown)[:surplus])
