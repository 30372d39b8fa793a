"""What the workers say of themselves: Celery's events, over the app's own transport.

`Workers` makes a picture out of events and knows no Celery. `Listener` brings them. Events get lost, late and twice, so
nothing here is counted on: a worker's heartbeat (every minute) puts its part of the picture right, and `path_alive`
says whether events arrive at all, which the listener finds out by sending one to itself.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from faceapp import broker
from faceapp.broker.events import HEARTBEAT_S
from faceapp.config import Settings

logger = logging.getLogger(__name__)

SMOOTHING = 0.1
"""The weight of one task in the average of service times: about the last twenty count."""
PING = "scaler-ping"
PING_S = 30.0
PATH_S = 3 * PING_S
SILENT_S = 3 * HEARTBEAT_S
"""A worker that was not heard from for so long, while events arrive, has gone silent."""
ENDS = {"task-succeeded", "task-failed", "task-rejected", "task-retried", "task-revoked"}
SLACK_S = 2.0
"""EC2 tells times in whole seconds."""
RETRY_S = 5.0


@dataclass
class _Worker:
    pid: int | None = None
    heard_s: float = float("-inf")
    left_s: float | None = None
    left_at_s: float = 0.0
    """By the worker's own clock."""
    online_heard: bool = False
    since_s: float = 0.0
    idle_from_s: float = 0.0
    held: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    processes: int = 1


class Workers:
    """The workers by host name, from their events. Safe to share between threads."""

    def __init__(self, *, service_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.service_s = service_s
        """Seconds that one instance needs for one message, averaged over the last ones."""
        self.done = 0
        """Tasks that ended, well or not, since this object was made."""
        self._clock = clock
        self._lock = threading.Lock()
        self._workers: dict[str, _Worker] = {}
        self._retired: dict[str, int] = {}
        self._event_s = self._alive_from_s = float("-inf")

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
            return worker is not None and worker.online_heard

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
            return 0.0 if worker.held else self._clock() - worker.idle_from_s

    def expect_new(self, host: str, *, age_s: float) -> None:
        """The host was started `age_s` ago: a worker from before may still finish, but says nothing about it."""
        with self._lock:
            worker = self._workers.get(host)
            if worker and worker.since_s < self._clock() - age_s - SLACK_S:
                del self._workers[host]
                if worker.pid is not None:
                    self._retired[host] = worker.pid

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Take in one event; one that does not have Celery's shape is passed over."""
        kind, node, pid = event.get("type"), event.get("hostname"), event.get("pid")
        if not isinstance(kind, str) or not isinstance(node, str):
            return
        with self._lock:
            now_s = self._clock()
            if now_s - self._event_s >= PATH_S:
                self._alive_from_s = now_s
            self._event_s = now_s
            if not kind.startswith(("worker-", "task-")) or kind == "task-sent":
                return
            host = node.rpartition("@")[2]
            if kind == "worker-online":
                self._retired.pop(host, None)
            elif self._retired.get(host) == pid:
                if kind in ENDS:
                    self.done += 1
                return
            self._apply(host, kind, event)

    def _apply(self, host: str, kind: str, event: Mapping[str, Any]) -> None:
        now_s = self._clock()
        worker = self._workers.get(host)
        if worker is None or kind == "worker-online":
            worker = self._workers[host] = _Worker(
                since_s=now_s, idle_from_s=now_s, online_heard=kind == "worker-online"
            )
        worker.pid, worker.heard_s = event.get("pid"), now_s
        if kind == "worker-offline":
            worker.left_s, worker.left_at_s = now_s, _sent_s(event)
        elif worker.left_s is not None and kind == "worker-heartbeat" and _sent_s(event) > worker.left_at_s:
            # A new worker's, whose coming up was not heard. One that leaves still tells of the tasks that it finishes.
            worker.left_s = None
        task = str(event.get("uuid", ""))
        if kind == "worker-heartbeat" and event.get("active") == 0 and worker.held:
            worker.held.clear()
            worker.running.clear()
            worker.idle_from_s = now_s
        elif kind == "worker-heartbeat" and event.get("active"):
            worker.idle_from_s = now_s
        elif kind in ("task-received", "task-started"):
            worker.held.add(task)
            if kind == "task-started":
                worker.running.add(task)
                worker.processes = max(worker.processes, len(worker.running))
        elif kind in ENDS:
            self.done += 1
            worker.held.discard(task)
            worker.running.discard(task)
            worker.idle_from_s = now_s
            runtime_s = event.get("runtime")
            if isinstance(runtime_s, (int, float)) and runtime_s >= 0:
                # An instance works on as many at once as it has processes.
                self.service_s += SMOOTHING * (runtime_s / worker.processes - self.service_s)


def _sent_s(event: Mapping[str, Any]) -> float:
    """When the worker sent it, by its own clock."""
    sent_s = event.get("timestamp")
    return float(sent_s) if isinstance(sent_s, (int, float)) else 0.0


class Listener:
    """Feeds `workers` with the app's events, in a thread of its own, until `stop`.

    Errors are logged and the connection is made anew; the scaler goes on without events meanwhile.
    """

    def __init__(self, settings: Settings, workers: Workers) -> None:
        self._app = broker.create_app(settings)
        # One place, one scaler: another that waits to lead elsewhere has a queue of its own.
        self._node = f"scaler-{socket.gethostname()}-{settings.scaler_port}"
        self._workers = workers
        self._stop = threading.Event()
        # A daemon: it may be in the middle of a long poll, and nothing waits for it.
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; it does so after its long poll."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._listen()
            except Exception as error:
                # Whatever it was (kombu, botocore, the network): without events the scaler is only more careful.
                logger.warning("no events from the workers: %s (next attempt in %.0f s)", error, RETRY_S)
                self._stop.wait(RETRY_S)

    def _listen(self) -> None:
        with self._app.connection_for_read() as connection:
            receiver = self._app.events.Receiver(connection, handlers={"*": self._workers.on_event}, node_id=self._node)
            with receiver.consumer_context(wakeup=False) as (listening, channel, _):
                # Each worker answers with a heartbeat, which says whether it has work.
                receiver.wakeup_workers(channel=channel)
                self._pump(listening)

    def _pump(self, connection: Any) -> None:
        ping_s = float("-inf")
        with self._app.connection_for_write() as writing:
            dispatcher = self._app.events.Dispatcher(writing, hostname=self._node, buffer_while_offline=False)
            while not self._stop.is_set():
                if time.monotonic() - ping_s >= PING_S:
                    dispatcher.send(PING)
                    ping_s = time.monotonic()
                try:
                    connection.drain_events(timeout=1)
                except TimeoutError:
                    continue
