"""What the scaler sees, wants and did: for the page and Prometheus, which status_server.py answers."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from celery_sqs.aws import Aws
from celery_sqs.errors import BrokerUnavailable
from celery_sqs.scaler.depths import Depths
from celery_sqs.scaler.options import ScalerOptions
from celery_sqs.scaler.policies.base import Counts

logger = logging.getLogger(__name__)

HISTORY_S = 900
SAMPLE_S = 3.0
DECISIONS = 50
DEAD_LETTERS_S = 30.0
"""The dead-letter queue is asked no more often than this: each time is billed."""
HELD_BACK = ("budget", "dead_boots", "aws")
PHASES = ("booting", "ready", "draining", "stopping", "stopped")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One tick's numbers."""

    time_s: float
    """Unix time."""
    leader: bool
    wanted: int
    reason: str
    counts: Counts | None
    instances: Mapping[str, int]
    """How many, by phase."""
    service_s: float
    boot_p50_s: float
    spent_s: float
    """Instance-seconds of today."""
    lease_token: int = 0
    events_alive: bool = False
    """Whether the workers' events arrive."""
    acted: bool = False
    """Whether instances were started or stopped."""
    tasks_done: int = 0
    """Since the scaler's start."""
    dead_boots: int = 0
    """So many boots in a row came to nothing."""
    orphans: int = 0
    """Instances with the stack's tag that nobody looks after."""
    held_back: str = ""
    """What keeps it from starting what the policy wants: one of HELD_BACK; empty when nothing does."""


class Status:
    """The last snapshot, the last quarter of an hour and the last decisions. Safe to share between threads."""

    def __init__(self, options: ScalerOptions, aws: Aws) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._last: Snapshot | None = None
        self._trouble = ""
        self._history: deque[list[float | None]] = deque(maxlen=int(HISTORY_S / SAMPLE_S) + 1)
        self._decisions: deque[dict[str, Any]] = deque(maxlen=DECISIONS)
        self._registry = CollectorRegistry()
        self._messages = self._gauge("messages", "Messages of the work queues.", "state")
        self._instances = self._gauge("instances", "Workers' instances.", "phase")
        self._wanted = self._gauge("instances_wanted", "Instances that the policy wants.")
        self._leader = self._gauge("leader", "Whether this scaler holds the lease.")
        self._service = self._gauge("service_seconds", "Seconds of an instance a message.")
        self._boot = self._gauge("boot_seconds", "Median of the last boots.")
        self._spent = self._gauge("instance_seconds_today", "Instance-seconds billed since midnight, UTC.")
        self._token = self._gauge("lease_token", "The lease's fencing token: one more with each holder.")
        self._events = self._gauge("events_alive", "Whether the workers' events arrive.")
        self._dead_boots = self._gauge("dead_boots", "Boots in a row that came to nothing.")
        self._orphans = self._gauge("orphans", "Instances of the stack that nobody looks after.")
        self._held_back = self._gauge("held_back", "1 for what keeps wanted instances from starting.", "by")
        self._ticked = self._gauge("last_tick_timestamp_seconds", "When the last tick came to its end.")
        self._actions = self._counter("actions", "Instances acted on.", "action")
        self._decisions_made = self._counter("decisions", "Ticks: acted, quiet, stood_by, failed.", "kind")
        self._errors = self._counter("errors", "Calls of AWS that failed.", "operation", "kind")
        self._done = self._counter("tasks_done", "Tasks that ended, well or not, as events told.")
        self._done_seen = 0
        self._gauge("build_info", "1, for the version.", "version").labels(options.version).set(1)
        self._gauge("instances_max", "There are never more instances.").set(options.max_instances)
        self._gauge("budget_instance_seconds", "Instance-seconds a day at most; 0: no budget.").set(
            options.daily_instance_s
        )
        self._gauge("slo_seconds", "An answer is to come within this time.").set(options.slo_s)
        # From the start, so that the first one shows as a rise.
        for action in ("started", "drained", "replaced"):
            self._actions.labels(action)
        for kind in ("acted", "quiet", "stood_by", "failed"):
            self._decisions_made.labels(kind)
        if options.dead_letter_queue:
            self._registry.register(_DeadLetters(options, aws))

    def _gauge(self, name: str, doc: str, *labels: str) -> Gauge:
        return Gauge(f"{self._options.metrics_prefix}_{name}", doc, labels, registry=self._registry)

    def _counter(self, name: str, doc: str, *labels: str) -> Counter:
        return Counter(f"{self._options.metrics_prefix}_{name}", doc, labels, registry=self._registry)

    def update(self, snapshot: Snapshot) -> None:
        """Take in a tick."""
        counts, instances = snapshot.counts, snapshot.instances
        with self._lock:
            self._last, self._trouble = snapshot, ""
            if not self._history or abs(snapshot.time_s - (self._history[-1][0] or 0.0)) >= 0.9 * SAMPLE_S:
                self._history.append(
                    [
                        round(snapshot.time_s, 1),
                        counts.visible if counts else None,
                        counts.in_flight if counts else None,
                        *(instances.get(phase, 0) for phase in PHASES[:3]),
                        snapshot.wanted,
                    ]
                )
        for phase in PHASES:
            self._instances.labels(phase).set(instances.get(phase, 0))
        for state in ("visible", "in_flight", "delayed"):
            self._messages.labels(state).set(getattr(counts, state) if counts else float("nan"))
        self._wanted.set(snapshot.wanted)
        self._leader.set(snapshot.leader)
        self._service.set(snapshot.service_s)
        self._boot.set(snapshot.boot_p50_s)
        self._spent.set(snapshot.spent_s)
        self._token.set(snapshot.lease_token)
        self._events.set(snapshot.events_alive)
        self._dead_boots.set(snapshot.dead_boots)
        self._orphans.set(snapshot.orphans)
        for by in HELD_BACK:
            self._held_back.labels(by).set(snapshot.held_back == by)
        self._done.inc(snapshot.tasks_done - self._done_seen)
        self._done_seen = snapshot.tasks_done
        self._ticked.set(snapshot.time_s)
        self._decisions_made.labels("stood_by" if not snapshot.leader else "acted" if snapshot.acted else "quiet").inc()

    def error(self, operation: str, kind: str) -> None:
        """Note a call of AWS that failed: its name, and the kind of trouble or an error's code."""
        self._errors.labels(operation, kind).inc()

    def failed(self, sentence: str) -> None:
        """Note why a tick came to nothing; the next one that does not takes it back."""
        self._decisions_made.labels("failed").inc()
        with self._lock:
            self._trouble = sentence

    def decided(self, time_s: float, line: str, actions: Mapping[str, int]) -> None:
        """Note a decision that did something."""
        with self._lock:
            self._decisions.append({"time": round(time_s, 1), "line": line, **actions})
        for action, count in actions.items():
            self._actions.labels(action).inc(count)

    def document(self) -> dict[str, Any]:
        """What `/status` answers."""
        with self._lock:
            last, trouble = self._last, self._trouble
            history, decisions = list(self._history), list(self._decisions)
        document: dict[str, Any] = {
            "policy": self._options.policy,
            "mode": self._options.mode,
            "max_instances": self._options.max_instances,
            "leader": False,
            "wanted": 0,
            "reason": "has just started",
            "counts": None,
            "instances": dict.fromkeys(PHASES, 0),
            "service_s": self._options.service_s,
            "boot_p50_s": self._options.boot_s,
            "spent_s": 0,
            "trouble": trouble,
            "history": history,
            "decisions": decisions,
        }
        if last:
            counts = last.counts
            document |= {
                "leader": last.leader,
                "wanted": last.wanted,
                "reason": last.reason,
                "counts": counts
                and {"visible": counts.visible, "in_flight": counts.in_flight, "delayed": counts.delayed},
                "instances": {**dict.fromkeys(PHASES, 0), **last.instances},
                "service_s": round(last.service_s, 4),
                "boot_p50_s": round(last.boot_p50_s, 1),
                "spent_s": round(last.spent_s),
            }
        return document

    def metrics(self) -> bytes:
        """What `/metrics` answers."""
        return generate_latest(self._registry)


class _DeadLetters(Collector):
    """The dead-letter queue's counts, asked for when somebody scrapes, and then at most every DEAD_LETTERS_S."""

    def __init__(self, options: ScalerOptions, aws: Aws) -> None:
        self._name = f"{options.metrics_prefix}_dead_letters"
        self._queue, self._aws = options.dead_letter_queue, aws
        self._lock = threading.Lock()
        self._depths: Depths | None = None
        self._asked_s = float("-inf")
        self._counts: Counts | None = None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """No sample while the queue does not answer: an old one would look like news."""
        counts = self._ask()
        family = GaugeMetricFamily(self._name, "Messages that were given up.", labels=["state"])
        if counts:
            for state in ("visible", "in_flight"):
                family.add_metric([state], getattr(counts, state))
        yield family

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Without asking: called when this is registered."""
        yield GaugeMetricFamily(self._name, "")

    def _ask(self) -> Counts | None:
        with self._lock:
            if time.monotonic() - self._asked_s >= DEAD_LETTERS_S:
                self._asked_s = time.monotonic()
                try:
                    self._depths = self._depths or Depths(self._aws, [self._queue])
                    self._counts = self._depths.ask()
                except BrokerUnavailable as error:
                    logger.warning("the dead letters were not counted: %s", error)
                    self._counts = None
            return self._counts
