"""What the workers say of themselves: a picture out of Celery's events. Knows no Celery; `listener` brings the events.

Events get lost, come twice, late and in any order: SNS and SQS promise no more. So nothing is counted up and down.
Within a worker its own timestamps give the order; a task that ended never runs again by an event from before; a worker
runs no more tasks than it has processes and holds no more than it prefetches, so what came first is over; and each
heartbeat says how many tasks run. `path_alive` says whether events arrive at all.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from celery_sqs.pace import HEARTBEAT_S, PREFETCH
from celery_sqs.scaler.estimates import ServiceTime

PING = "scaler-ping"
PING_S = 30.0
PATH_S = 3 * PING_S
SILENT_S = 3 * HEARTBEAT_S
"""A worker that was not heard from for so long, while events arrive, has gone silent."""
ENDS = {"task-succeeded", "task-failed", "task-rejected", "task-retried", "task-revoked"}
SLACK_S = 2.0
"""EC2 tells times in whole seconds."""
TO_START_S = 1.0
"""A message that a worker with nothing to do received was started within this."""
ENDED = 20_000
"""Ends that are remembered, so that an event from before comes to nothing: some minutes at the highest rates."""
MOST_PROCESSES = 1024
LONGEST_S = 86_400.0
"""No task takes longer; a number beyond is no duration."""

WorkedS = Callable[[Mapping[str, Any]], float | None]
"""Of an event task-succeeded: the seconds of work in it; None when they say nothing."""


@dataclass(slots=True)
class _Event:
    """One event of Celery's shape."""

    kind: str
    host: str
    pid: int | None
    at_s: float
    """When it was sent, by the worker's clock; when it came, if it does not say."""
    dated: bool
    task: str
    active: int | None
    """Tasks that run, by a heartbeat."""
    processes: int | None
    trial_s: float | None
    """What a task took that the worker did on trial, before its first."""
    worked_s: float | None
    """What a task took, without waits."""

    @classmethod
    def of(cls, event: Mapping[str, Any], *, now_s: float, worked_s: WorkedS) -> _Event | None:
        kind, node, pid = event.get("type"), event.get("hostname"), event.get("pid")
        if not isinstance(kind, str) or not isinstance(node, str):
            return None
        at_s = _number(event.get("timestamp"), high=math.inf)
        return cls(
            kind=kind,
            host=node.rpartition("@")[2],
            pid=pid if isinstance(pid, int) else None,
            at_s=now_s if at_s is None else at_s,
            dated=at_s is not None,
            task=str(event.get("uuid", "")),
            active=_whole(event.get("active")),
            processes=_whole(event.get("processes")) or None,
            trial_s=_number(event.get("trial_s")),
            worked_s=_number(worked_s(event)) if kind == "task-succeeded" else None,
        )


@dataclass(slots=True)
class _Task:
    at_s: float
    """When it was received, or started, by the worker's clock."""
    runs: bool


@dataclass(slots=True)
class _Worker:
    pid: int | None
    since_s: float
    idle_from_s: float
    heard_s: float = float("-inf")
    left_s: float | None = None
    left_at_s: float = 0.0
    """By the worker's own clock, as all that end in `at_s`."""
    online_at_s: float | None = None
    last_at_s: float = float("-inf")
    tasks: dict[str, _Task] = field(default_factory=dict)
    processes: int = 1
    told_processes: bool = False

    def keep(self, wanted: Callable[[_Task], bool], *, now_s: float) -> None:
        """Forget the tasks that are not wanted: they are over."""
        kept = {id: task for id, task in self.tasks.items() if wanted(task)}
        if self.tasks and not kept:
            self.idle_from_s = now_s
        self.tasks = kept

    def keep_newest(self, most: int, *, running: bool, now_s: float) -> None:
        """Of the tasks (that run), those that came last."""
        if len(self.tasks) <= most:
            return
        chosen = sorted(task.at_s for task in self.tasks.values() if task.runs or not running)
        for at_s in chosen[: max(0, len(chosen) - most)]:
            over = next(id for id, task in self.tasks.items() if task.at_s == at_s and (task.runs or not running))
            del self.tasks[over]
        if chosen and not self.tasks:
            self.idle_from_s = now_s


@dataclass(frozen=True)
class _Retired:
    """A worker of the run before."""

    pid: int
    new_from_s: float
    """From when on, by its clock, the new run's worker may speak under the same number."""


class Workers:
    """The workers by host name, from their events. Safe to share between threads."""

    def __init__(
        self,
        *,
        service_s: float,
        prefetch: int = PREFETCH,
        worked_s: WorkedS | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`service_s` counts until something was measured, by `worked_s` (see `ScalerOptions`)."""
        self.service = ServiceTime(service_s)
        self._prefetch, self._worked_s = prefetch, worked_s or runtime_s
        self.done = 0
        """Tasks that ended, well or not, since this object was made."""
        self._clock = clock
        self._lock = threading.Lock()
        self._workers: dict[str, _Worker] = {}
        self._retired: dict[str, _Retired] = {}
        self._ended: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._event_s = self._alive_from_s = float("-inf")

    @property
    def service_s(self) -> float:
        """Seconds that one instance needs for one task."""
        return self.service.seconds

    @property
    def path_alive(self) -> bool:
        """Whether events arrive."""
        return self._clock() - self._event_s < PATH_S

    @property
    def path_alive_s(self) -> float:
        """For how long events have been arriving without a gap; 0 when they do not."""
        return self._clock() - self._alive_from_s if self.path_alive else 0.0

    def heard_s(self, host: str) -> float | None:
        """Seconds since the host's worker was heard from; None if it was not, or said goodbye."""
        with self._lock:
            worker = self._workers.get(host)
            return None if worker is None or worker.left_s is not None else self._clock() - worker.heard_s

    def online_heard(self, host: str) -> bool:
        """Whether the host's worker was heard coming up."""
        with self._lock:
            worker = self._workers.get(host)
            return worker is not None and worker.online_at_s is not None

    def left_s(self, host: str) -> float | None:
        """Seconds since the host's worker said goodbye; None if it did not, or is back."""
        with self._lock:
            worker = self._workers.get(host)
            return None if worker is None or worker.left_s is None else self._clock() - worker.left_s

    def idle_s(self, host: str) -> float | None:
        """Seconds since the host's worker last had a task; 0 while it has one, None when nobody knows."""
        with self._lock:
            worker = self._workers.get(host)
            if worker is None or worker.left_s is not None:
                return None
            return 0.0 if worker.tasks else self._clock() - worker.idle_from_s

    def expect_new(self, host: str, *, age_s: float) -> None:
        """The host was started `age_s` ago: a worker from before may still finish, but says nothing about it."""
        with self._lock:
            worker, started_s = self._workers.get(host), self._clock() - age_s
            if worker and worker.since_s < started_s - SLACK_S:
                del self._workers[host]
                if worker.pid is not None:
                    ahead_s = worker.last_at_s - worker.heard_s
                    self._retired[host] = _Retired(worker.pid, started_s + ahead_s + SLACK_S)

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Take in one event; one that does not have Celery's shape is passed over."""
        with self._lock:
            now_s = self._clock()
            seen = _Event.of(event, now_s=now_s, worked_s=self._worked_s)
            if seen is None:
                return
            if now_s - self._event_s >= PATH_S:
                self._alive_from_s = now_s
            self._event_s = now_s
            if not seen.kind.startswith(("worker-", "task-")) or seen.kind == "task-sent":
                return
            fresh = seen.kind not in ENDS or self._end(seen)
            worker = self._speaker(seen, now_s)
            if worker:
                self._apply(worker, seen, now_s)
            if fresh and seen.worked_s is not None:
                # An instance works on as many at once as it has processes.
                self.service.add(seen.worked_s / (worker.processes if worker else 1))

    def _end(self, event: _Event) -> bool:
        """Note a task's end; False when it was known."""
        key = (event.host, event.task)
        known_s = self._ended.get(key)
        if known_s is not None and (not event.dated or event.at_s <= known_s):
            return False
        self._ended[key] = event.at_s
        self._ended.move_to_end(key)
        if len(self._ended) > ENDED:
            self._ended.popitem(last=False)
        self.done += 1
        return True

    def _speaker(self, event: _Event, now_s: float) -> _Worker | None:
        """The worker that the event is of; None when that is one of a run before."""
        worker = self._workers.get(event.host)
        if event.kind == "worker-online":
            if worker and _is_older(event, worker):
                return None
            self._retired.pop(event.host, None)
            if worker and worker.online_at_s is None and worker.pid == event.pid and worker.left_s is None:
                # Its own first events overtook it.
                worker.keep(lambda task: task.at_s >= event.at_s, now_s=now_s)
                worker.online_at_s = event.at_s
                return worker
            return self._make(event, now_s, online_at_s=event.at_s)
        if self._is_retired(event):
            return None
        if worker is None:
            return self._make(event, now_s)
        if event.pid is not None and worker.pid is not None and event.pid != worker.pid:
            # Another run's: the one before this, or a newer one whose coming up was not heard.
            if event.kind == "worker-offline" or event.at_s <= worker.last_at_s:
                return None
            return self._make(event, now_s)
        if worker.online_at_s is not None and event.at_s < worker.online_at_s:
            return None
        return worker

    def _make(self, event: _Event, now_s: float, *, online_at_s: float | None = None) -> _Worker:
        worker = _Worker(pid=event.pid, since_s=now_s, idle_from_s=now_s, online_at_s=online_at_s)
        self._workers[event.host] = worker
        return worker

    def _is_retired(self, event: _Event) -> bool:
        retired = self._retired.get(event.host)
        if retired is None or retired.pid != event.pid:
            return False
        # One that is on its way out receives nothing, but its heart may beat.
        settle_s = {"task-received": 0.0, "worker-heartbeat": HEARTBEAT_S}.get(event.kind, math.inf)
        if not event.dated or event.at_s < retired.new_from_s + settle_s:
            return True
        del self._retired[event.host]
        return False

    def _apply(self, worker: _Worker, event: _Event, now_s: float) -> None:
        worker.heard_s, worker.last_at_s = now_s, max(worker.last_at_s, event.at_s)
        if event.processes:
            worker.processes, worker.told_processes = min(event.processes, MOST_PROCESSES), True
        if event.trial_s:
            self.service.hint(event.trial_s / worker.processes)
        if event.kind == "worker-offline":
            worker.left_s, worker.left_at_s = now_s, event.at_s
        elif event.kind == "worker-heartbeat":
            self._beat(worker, event, now_s)
        elif event.kind in ("task-received", "task-started"):
            self._hold(worker, event, now_s)
        elif event.kind in ENDS:
            worker.tasks.pop(event.task, None)
            if not worker.tasks:
                worker.idle_from_s = now_s

    def _beat(self, worker: _Worker, event: _Event, now_s: float) -> None:
        if worker.left_s is not None and event.at_s > worker.left_at_s:
            # A new worker's, whose coming up was not heard. One that leaves still tells of the tasks that it finishes.
            worker.left_s = None
        if event.active is None:
            return
        if event.active == 0:
            worker.keep(
                lambda task: task.at_s > event.at_s - (0.0 if task.runs else TO_START_S),
                now_s=now_s,
            )
            return
        worker.idle_from_s = now_s
        if not worker.told_processes:
            worker.processes = min(max(worker.processes, event.active), MOST_PROCESSES)
        before = [task for task in worker.tasks.values() if task.runs and task.at_s <= event.at_s]
        over = sorted(task.at_s for task in before)[: max(0, len(before) - event.active)]
        if over:
            worker.keep(lambda task: not task.runs or task.at_s > over[-1], now_s=now_s)

    def _hold(self, worker: _Worker, event: _Event, now_s: float) -> None:
        ended_s = self._ended.get((event.host, event.task))
        if ended_s is not None and (not event.dated or event.at_s <= ended_s):
            return
        known = worker.tasks.get(event.task)
        if event.kind == "task-started":
            worker.tasks[event.task] = _Task(event.at_s, runs=True)
        elif known is None:
            worker.tasks[event.task] = _Task(event.at_s, runs=False)
        worker.keep_newest(worker.processes, running=True, now_s=now_s)
        worker.keep_newest(self._prefetch * worker.processes, running=False, now_s=now_s)


def _is_older(event: _Event, worker: _Worker) -> bool:
    """Whether somebody came up before what is known of the host's worker already: it came twice, or too late."""
    if not event.dated:
        return False
    if worker.online_at_s is not None:
        return event.at_s <= worker.online_at_s
    return event.pid != worker.pid and event.at_s <= worker.last_at_s


def runtime_s(event: Mapping[str, Any]) -> float | None:
    """How long a task ran, as its worker tells."""
    return event.get("runtime")


def _number(value: object, *, high: float = LONGEST_S) -> float | None:
    """A duration or a time; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        seconds = float(value)
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) and 0 <= seconds <= high else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
