"""The scaler's head: counts, events and instances in, orders out. No AWS, so that the simulator runs this very object.

`Core` joins what is measured (`estimates`, `workers`), what each instance is doing (`observe`), the policy, and the
limits on it: the upgrade's turn-over, the day's budget, and no starts while boots come to nothing. Who carries the
orders out is `loop` on EC2 and `simulation.engine` in the simulator.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from celery_sqs.scaler.budget import Spent
from celery_sqs.scaler.estimates import Arrivals, Believed, Boots
from celery_sqs.scaler.machine import Machine, dead_boots
from celery_sqs.scaler.observe import Phases
from celery_sqs.scaler.policies.base import Counts, Decision, Observation, Policy
from celery_sqs.scaler.turnover import turn_over
from celery_sqs.scaler.workers import Workers

DEAD_BOOTS = 3
QUARANTINE_S = 600.0
"""After so many dead boots in a row nothing is started for so long, then one to see."""


class CoreOptions(Protocol):
    """What `Core` reads of `ScalerOptions`."""

    @property
    def max_instances(self) -> int: ...
    @property
    def boot_s(self) -> float: ...
    @property
    def daily_instance_s(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What is to be done to the fleet now."""

    decision: Decision
    """The policy's, within the limits."""
    start: int = 0
    drain: tuple[str, ...] = ()
    """Ids that finish what they hold and stop."""
    dead: tuple[str, ...] = ()
    """Ids that never came up: they are stopped, as the so many in a row that `dead_boots` says."""
    dead_boots: int = 0
    silent: tuple[str, ...] = ()
    """Those in `drain` whose workers are not heard any more."""
    came_up: tuple[str, ...] = ()
    """Ids whose workers were heard coming up just now: the boot was measured."""
    heard: tuple[str, ...] = ()
    """Ids whose workers were heard for the first time, too late to measure the boot."""
    held_back: str = ""
    """What keeps the policy's starts back: budget or dead_boots."""
    notes: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """For the log: its level and a sentence, by what each is about."""


class Core:
    """One scaler's knowledge and memory. Not safe to share between threads."""

    def __init__(
        self,
        options: CoreOptions,
        *,
        policy: Policy,
        workers: Workers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy, self._clock = policy, clock
        self._max_instances = options.max_instances
        self.workers = workers
        self.spent = Spent(options.daily_instance_s)
        self._budget_s = options.daily_instance_s
        self._believed, self._arrivals = Believed(), Arrivals(clock())
        self._boots = Boots(options.boot_s)
        self._phases = Phases(workers, clock=clock)
        self._quarantined_s: float | None = None

    def tick(
        self, counts: Counts | None, machines: Sequence[Machine], *, now_s: float, latest: int = 0
    ) -> tuple[Observation, Orders]:
        """Look and decide. `now_s` is Unix time by the fleet's clock, `latest` the launch template's latest version."""
        observation = self.observe(counts, machines)
        return observation, self.decide(observation, machines, now_s=now_s, latest=latest)

    def observe(self, counts: Counts | None, machines: Sequence[Machine]) -> Observation:
        """What is known now; `counts` are None when the queue could not be asked."""
        now_s, done = self._clock(), self.workers.done
        if counts is None:
            self._believed.clear()
        else:
            counts = self._believed.update(counts, done=done)
            self._arrivals.update(counts, done=done, now_s=now_s)
        for each in machines:
            if each.ours and each.boot_s is not None:
                self._boots.add(each.id, each.run_s, each.boot_s)
        boot_s = self._boots.quantile(0.5)
        return Observation(
            now_s=now_s,
            counts=counts,
            service_s=self.workers.service_s,
            boot_p50_s=boot_s,
            boot_p90_s=self._boots.quantile(0.9),
            arrivals=self._arrivals.bins(now_s),
            instances=self._phases.instances(machines, counts, boot_s=boot_s),
        )

    def decide(self, observation: Observation, machines: Sequence[Machine], *, now_s: float, latest: int = 0) -> Orders:
        """What is to be done about it."""
        decision = self._policy.decide(observation)
        old = {each.id for each in machines if each.billed and each.outdated(latest)}
        decision = turn_over(decision, observation, old=old, max_instances=self._max_instances)
        self.spent.update(now_s, sum(each.ours and each.billed for each in machines))
        dead_before = dead_boots(machines)
        notes: dict[str, tuple[int, str]] = {}
        decision, held_back = self._limit(decision, observation, dead_before, notes)
        ready = {each.id for each in machines if each.ready}
        silent = tuple(id for id in decision.replace if id in ready)
        dead = tuple(id for id in decision.replace if id not in ready)
        return Orders(
            decision=decision,
            start=decision.start,
            drain=tuple(dict.fromkeys((*decision.drain, *silent, *self._phases.deserted(machines)))),
            dead=dead,
            dead_boots=max(1, dead_before + _in_a_row(dead, machines)),
            silent=silent,
            came_up=tuple(self._phases.newly_ready(machines, measured=True)),
            heard=tuple(self._phases.newly_ready(machines, measured=False)),
            held_back=held_back,
            notes=notes,
        )

    def _limit(
        self, decision: Decision, observation: Observation, dead: int, notes: dict[str, tuple[int, str]]
    ) -> tuple[Decision, str]:
        """The decision within today's budget, and without starts while boots come to nothing."""
        if self.spent.over:
            notes["budget"] = logging.WARNING, f"today's {self._budget_s} instance-seconds are used up"
            running = tuple(each.id for each in observation.instances if each.phase != "draining")
            return Decision(wanted=0, drain=running, reason="today's instance-seconds are used up"), "budget"
        if dead < DEAD_BOOTS:
            self._quarantined_s = None
        elif decision.start:
            start = self._probe(dead, observation, notes)
            reason = f"{dead} boots in a row came to nothing: {decision.reason}"
            return replace(decision, start=start, reason=reason), "dead_boots"
        return decision, ""

    def _probe(self, dead: int, observation: Observation, notes: dict[str, tuple[int, str]]) -> int:
        """How many to start although the last `dead` boots failed: one, now and then."""
        if self._quarantined_s is None:
            self._quarantined_s = self._clock()
        left_s = self._quarantined_s + QUARANTINE_S - self._clock()
        notes["quarantine"] = (
            logging.ERROR,
            f"ALARM: {dead} instances in a row never reported. Look at their image and network; one more is tried in "
            f"{max(0.0, left_s):.0f} s",
        )
        if left_s > 0 or observation.phase("booting"):
            return 0
        self._quarantined_s = self._clock()
        return 1


def _in_a_row(dead: Collection[str], machines: Sequence[Machine]) -> int:
    """How many of those that never came up were started after the last that did: of many that start together, some
    are dead now and then, and that is no row."""
    last_good_s = max((each.run_s for each in machines if each.ready), default=0)
    return sum(each.run_s > last_good_s for each in machines if each.id in dead)
