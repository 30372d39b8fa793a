"""Instances by the work that waits and the work that comes, against the time it may take and the money it costs.

`decide` reads in this order: what is there and how far it is believed, what the backlog and the arrivals need, how many
to start, how many were too many for long enough. What the parts that are not obvious are worth is in their comments:
billed seconds, in the geometric mean over the nine workloads of `benchmarks.scaler`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from celery_sqs.scaler.policies.base import BIN_S, BINS, Counts, Decision, Instance, Observation
from celery_sqs.scaler.policies.crew import Crew, finite, slow_boot_s
from celery_sqs.scaler.policies.steady import Gaps, Highest, Rises, Since, SteadyClock
from celery_sqs.scaler.policies.tunables import Tunables, number, whole

MIN_DEADLINE_S = 15.0
"""A backlog is never to be done faster than this: nobody could, and asking for it starts the whole fleet."""
MIN_TO_WORK_S = 10.0
"""What a new instance is taken to work at least before the deadline, however late it comes."""
WORTH_A_BOOT_S = 45.0
"""Where boots are slow, a backlog may take so much longer than one of them, as far as the SLO lets it: with less for
each to work, the same backlog starts many."""
MIN_BOOT_LEFT_S = 3.0
"""A boot that takes longer than expected is expected at the next tick."""
FORECAST_FROM = 0.15
"""Less than this many instances' worth of arrivals keeps none running."""
QUIET_S = 9.0
"""When every worker has had nothing to do for so long, nothing is there to do, whatever the counts say (three ticks:
an event may be lost, three in a row are not). Without it stale counts keep idle fleets: 4 % dearer."""
STALE_S = 60.0
"""How old SQS's counts can be. Source: the API reference on GetQueueAttributes."""
AGREEING = 2
"""So many counts in a row must tell of a backlog that an old answer could tell of: one answer in fifty is old, and two
in a row are not. With 1, each old answer starts instances for work that is done."""
STALE_SHARE = 0.15
"""Counts that differ by less may be the same ones."""
MOST = 1e9
"""Messages in a bin that are still a count; more is a bug somewhere."""
RATE_BINS = 12
"""Bins that show a rate: a minute."""
RECENT_BINS = 4
"""Bins that show whether a rate has just begun: all but one must reach it, so that a burst that falls into two is none.
Without them the minute's median comes too late: 2 % cheaper, but on-off traffic waits 1.5 times as long."""
GAPS = 20
"""So many of the last gaps say how long the last instance is kept."""
ENOUGH_GAPS = 3
"""Fewer of them say nothing yet."""
MIN_BILLED_S = 60.0
"""AWS bills each start for a minute at least, so an idle instance is free until then.
Source: EC2 user guide, "Billing of On-Demand Instances"."""


@dataclass(frozen=True, kw_only=True)
class WorkTunables(Tunables):
    """A mode: what a second of waiting is worth against a second of an instance."""

    max_instances: int = whole(15, 0, 100_000)
    slo_s: float = number(120.0, 1, 86_400)
    tick_s: float = number(3.0, 0.1, 60)
    deadline_s: float = number(95.0, 1, 86_400)
    """D: a backlog is to be done within this time. With 85 s, 0.7 % dearer and a step is done 5 s sooner."""
    keep_s: float = number(12.0, 0, 86_400)
    """tau: an instance goes when none needed it for so long. With 25 s, 4 % dearer."""
    keep_last_s: float = number(9.0, 0, 86_400)
    """tau_last: the last one goes after it had nothing to do for so long, until the gaps between work are known."""
    restart_worth: float = number(1.5, 0, 100)
    """Once they are, it is kept while that costs less than so many boots: one is paid for, the rest is for those that
    wait for it."""
    forecast_share: float = number(0.9, 0, 2)
    """phi: how much of the measured arrival rate is taken to go on."""
    utilisation: float = number(1.0, 0.1, 1)
    """rho: how busy the instances that the arrivals need may be."""
    spare_share: float = number(0.25, 0, 0.9)
    """An instance is not started for less than this share of what one can do before the deadline."""
    boot_quantile: float = number(0.5, 0.5, 0.9)
    """Which of the last boots a new one is taken to last: 0.5 or 0.9, and between them in proportion."""
    margin_s: float = number(5.0, 0, 3600)
    """Kept back from the SLO."""
    hold_s: float = number(10.0, 0, 3600)
    """With more than this many seconds of work waiting for each instance, none is drained."""
    blind_s: float = number(90.0, 0, 86_400)
    """Seconds that the queue must look empty before the last worker goes of which nobody knows what it does: longer
    than SQS's counts are old (a minute)."""

    @classmethod
    def of_mode(cls, mode: str, *, max_instances: int, slo_s: float, tick_s: float) -> WorkTunables:
        """The tunables of a mode in `MODES`."""
        return replace(MODES[mode], max_instances=max_instances, slo_s=slo_s, tick_s=tick_s)


MODES = {
    "fast": WorkTunables(
        deadline_s=45, keep_s=30, keep_last_s=120, restart_worth=4, forecast_share=1.0, utilisation=0.9
    ),
    "balanced": WorkTunables(),
    "eco": WorkTunables(
        deadline_s=105, keep_s=9, keep_last_s=5, restart_worth=0.5, forecast_share=0.8, spare_share=0.5
    ),
}


@dataclass(frozen=True, kw_only=True)
class Need:
    """The numbers that decide, all about one moment."""

    visible: int
    in_flight: int
    backlog_s: float
    """W: seconds of one instance in the messages that are there."""
    load: float
    """lambda * S: instances that the arrivals keep busy; no more than are, when nothing waits. Old counts look like
    arrivals when tasks get done meanwhile, but keep nobody busy."""
    rate: float
    """The same by the arrivals alone, however idle the workers are."""
    deadline_s: float
    """D: within what time this and what comes meanwhile is to be done."""
    due: tuple[tuple[float, float], ...]
    """Seconds of an instance that are to be done within so many seconds to keep the SLO, with its margin: first what
    has waited longest, then that and what came after it, and so on to all that waits."""
    boot_s: float
    """b: how long a boot is taken to last."""
    slow_boot_s: float
    """How long nine in ten last at most."""
    service_s: float

    @property
    def left_s(self) -> float:
        """Until what waits longest is to be done."""
        return self.due[0][1]

    @property
    def demand_s(self) -> float:
        """Seconds of an instance that are to be done before the deadline."""
        return self.backlog_s + self.load * self.deadline_s


class Work:
    """Starts what the work needs, all at once, and drains what it has not needed for a while."""

    name = "work"

    def __init__(self, tunables: WorkTunables | None = None) -> None:
        self.tunables = tunables or WorkTunables()
        self.max_instances = self.tunables.max_instances
        self._clock = SteadyClock()
        self._kept = Highest(self.tunables.keep_s)
        self._empty = Since()
        self._denied = Since()
        self._waiting = Since()
        self._risen = Rises(old_s=STALE_S, agreeing=AGREEING)
        self._stale: tuple[float, int] | None = None
        self._gaps = Gaps(GAPS)
        self._new = True

    def decide(self, observation: Observation) -> Decision:
        """What to do now."""
        now_s = self._clock.advance(observation.now_s)
        crew, counts = Crew.of(observation), observation.counts
        if counts is None or self._clock.jumped:
            return Decision(wanted=crew.live, reason="hold: the counts are missing or the clock jumped")
        if self._new:
            # What ran before this object was made was needed as far as it knows: a restart in a burst drains nobody.
            self._new = False
            self._kept.add(now_s, crew.live)
        told, counts = counts, self._believed(now_s, counts, crew)
        waiting_s = self._waiting.update(now_s, told.visible > 0)
        need = self._need(observation, counts, crew, waiting_s)
        quiet_s = crew.quiet_s if crew.ready and all(each.idle_s is not None for each in crew.ready) else None
        self._gaps.update(now_s, quiet_s, waits=quiet_s == 0 or (not crew.ready and counts.visible > 0))
        empty_s = self._empty.update(now_s, counts.outstanding == 0)
        # A count that is not enough to start instances may be enough not to drain those who work.
        keep = self._keep(need, crew, hold_for=counts.visible if crew.quiet_s else told.visible)
        kept = self._kept.add(now_s, keep)
        if crew.quiet_s >= (QUIET_S if told.outstanding else self.tunables.tick_s):
            kept = keep
        start = min(self._missing(need, crew), crew.room(self.max_instances))
        drain = self._drain(need, crew, len(crew.ready) - kept, empty_s) if start == 0 else ()
        wanted = min(self.max_instances, crew.expected + start - len(drain))
        return Decision(
            wanted=wanted, start=start, drain=drain, replace=crew.dead_ids, reason=_reason(need, crew, kept)
        )

    def _believed(self, now_s: float, counts: Counts, crew: Crew) -> Counts:
        """The counts, unless every worker has said for a while that there is nothing to do: then they are stale, and
        stay so while they tell the same, for as long as SQS's counts can be old."""
        if any(not each.idle_s for each in crew.ready):
            self._stale = None
        if self._denied.update(now_s, crew.quiet_s > 0 and counts.outstanding > 0) >= QUIET_S:
            self._stale = (now_s, counts.outstanding)
        too_many = counts.outstanding - self._risen.update(now_s, counts.outstanding)
        if self._stale is not None:
            since_s, told = self._stale
            if now_s - since_s < STALE_S and abs(counts.outstanding - told) <= STALE_SHARE * told:
                return Counts(visible=0, in_flight=0)
        return replace(counts, visible=max(0, counts.visible - too_many))

    def _need(self, observation: Observation, counts: Counts, crew: Crew, waiting_s: float) -> Need:
        tunables = self.tunables
        service_s = finite(observation.service_s)
        usual_s, slow_s = finite(observation.boot_p50_s), slow_boot_s(observation)
        boot_s = usual_s + (slow_s - usual_s) * (tunables.boot_quantile - 0.5) / 0.4
        longest_s = max(MIN_DEADLINE_S, tunables.slo_s - tunables.margin_s)
        rate = tunables.forecast_share * rate_per_s(observation.arrivals) * service_s
        waiting = [
            (age_s, messages + counts.in_flight / 2)
            for age_s, messages in ages_s(observation.arrivals, counts, waiting_s)
        ]
        return Need(
            visible=counts.visible,
            in_flight=counts.in_flight,
            backlog_s=(counts.visible + counts.in_flight / 2) * service_s,
            load=rate if counts.visible or not crew.ready else min(rate, crew.active(QUIET_S)),
            rate=rate,
            deadline_s=min(max(tunables.deadline_s, boot_s + WORTH_A_BOOT_S), longest_s),
            due=tuple(
                (messages * service_s, max(MIN_DEADLINE_S, tunables.slo_s - tunables.margin_s - age_s))
                for age_s, messages in waiting
            ),
            boot_s=boot_s,
            slow_boot_s=slow_s,
            service_s=service_s,
        )

    def _missing(self, need: Need, crew: Crew) -> int:
        """How many to start."""
        if need.visible == 0:
            return 0
        there = crew.expected
        missing = 1 if there == 0 else 0
        missing = max(missing, _short(need.demand_s, need.deadline_s, need.boot_s, crew, self.tunables.spare_share))
        # The spare share and the shorter boot may cost time, but not the SLO of what waits. What is yet to come has an
        # SLO of its own: with both in one sum, as in the design, starts came twice (6 % dearer).
        # It is due by its age: with all of it due with the oldest, bursts that come faster than they are done start
        # ever more (40 messages every 60 s: 4.5 times the bound).
        missing = max(missing, *(_short(work_s, left_s, need.slow_boot_s, crew) for work_s, left_s in need.due))
        if need.load > there:
            missing = max(missing, math.ceil(need.load / self.tunables.utilisation - there - 0.5))
        return missing

    def _keep(self, need: Need, crew: Crew, *, hold_for: int) -> int:
        """How many this moment needs, ready ones and booting ones."""
        keep = 1 if need.visible + need.in_flight > 0 else 0
        if need.load > FORECAST_FROM:
            keep = max(keep, math.ceil(need.load / self.tunables.utilisation))
        if need.visible > 0:
            keep = max(keep, math.ceil(need.demand_s / need.deadline_s))
            keep = max(keep, *(math.ceil(work_s / left_s) for work_s, left_s in need.due))
        if hold_for * need.service_s > self.tunables.hold_s * max(1, len(crew.ready)):
            keep = max(keep, crew.expected)
        return keep

    def _drain(self, need: Need, crew: Crew, surplus: int, empty_s: float) -> tuple[str, ...]:
        """The `surplus` that can best be missed. One that works finishes first, and what it has paid for is used up."""
        paid = [each for each in crew.by_idleness() if each.billed_s >= MIN_BILLED_S - self.tunables.tick_s]
        going = paid[: max(0, surplus)]
        if going and len(going) == len(crew.ready) and not self._may_be_last(need, going[-1], empty_s):
            going.pop()
        return tuple(each.id for each in going)

    def _may_be_last(self, need: Need, last: Instance, empty_s: float) -> bool:
        """Whether even this one may go. What its worker says counts: an empty queue may be a stale count."""
        if last.idle_s is None:
            return empty_s >= max(self.tunables.blind_s, self.tunables.keep_last_s)
        return last.idle_s > 0 and last.idle_s >= self._keep_last_s(need, last)

    def _keep_last_s(self, need: Need, last: Instance) -> float:
        """For how long the last one is kept with nothing to do."""
        if len(self._gaps) < ENOUGH_GAPS:
            return self.tunables.keep_last_s
        paid_s = max(0.0, MIN_BILLED_S - last.billed_s + (last.idle_s or 0.0))
        restart_s = self.tunables.restart_worth * need.boot_s
        keep_s = self._gaps.keep_s(paid_s=paid_s, restart_s=restart_s, slack_s=3 * self.tunables.tick_s)
        return max(self.tunables.tick_s, keep_s)


def rate_per_s(arrivals: Sequence[float]) -> float:
    """Arrivals a second that may go on: their mean, but one burst is not a rate. A rate of the last bins is one."""
    bins = [finite(each, MOST) / BIN_S for each in arrivals[-RATE_BINS:]]
    bins = [0.0] * (RATE_BINS - len(bins)) + bins
    mean, middle = sum(bins) / RATE_BINS, median(bins)
    minute = min(mean, 1.5 * middle) if mean > 1 else min(mean, 3 * middle + 0.05)
    return max(minute, sorted(bins[-RECENT_BINS:])[1])


def ages_s(arrivals: Sequence[float], counts: Counts, waiting_s: float) -> list[tuple[float, float]]:
    """How long the visible messages have waited, when some have for `waiting_s`: an age, the oldest first, and how many
    are that old or older. SQS does not say, so they are the last that arrived; what the bins do not tell of came when
    the waiting began."""
    visible = float(counts.visible)
    oldest_s = max(waiting_s, finite(counts.oldest_age_s))
    cohorts: list[tuple[float, float]] = []
    left, age_s = visible, 0.0
    for count in reversed(arrivals[-BINS:]):
        age_s += BIN_S
        if left <= 0 or age_s >= oldest_s:
            break
        if count > 0:
            cohorts.append((age_s, left))
            left -= finite(count, MOST)
    cohorts.append((oldest_s, max(left, 0.0)))
    return cohorts[::-1]


def _short(work_s: float, within_s: float, boot_s: float, crew: Crew, spare: float = 0.0) -> int:
    """How many are missing to do that work within that time, when a boot takes so long."""
    gap_s = work_s - len(crew.ready) * within_s
    # What boots counts for as much as what would be started: with less, it would be started again and again.
    gap_s -= sum(_works_s(within_s, boot_s - each.billed_s) for each in crew.booting)
    return max(0, math.ceil(gap_s / _works_s(within_s, boot_s) - spare))


def _works_s(within_s: float, boot_left_s: float) -> float:
    """What an instance that boots is taken to work within that time."""
    return max(MIN_TO_WORK_S, within_s - max(MIN_BOOT_LEFT_S, boot_left_s))


def _reason(need: Need, crew: Crew, kept: int) -> str:
    dead = f", {len(crew.dead)} never came up" if crew.dead else ""
    return (
        f"{need.visible} waiting and {need.in_flight} in flight are {need.backlog_s:.0f} s of work,"
        f" arrivals keep {need.load:.1f} busy, due in {need.left_s:.0f} s:"
        f" {len(crew.ready)} ready, {len(crew.booting)} booting, {kept} kept{dead}"
    )
