"""Celery's events over SNS, sent together and seldom: each publication is billed."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any

import celery.app.events
import celery.events.dispatcher
from celery import signals
from kombu import Producer
from kombu.asynchronous import get_event_loop

from celery_sqs.pace import EVENTS_WITHIN_S, HEARTBEAT_S
from celery_sqs.transport.polls import polls

logger = logging.getLogger(__name__)

EVENTS_TOGETHER = 100
"""Or when so many wait: about 50 KB, where SNS takes 256 and bills each 64 as a message."""
QUIET_S = 20.0
"""After an error a worker tries no more for so long: its loop, which acknowledges tasks, waits for each try."""
KEPT = 20
"""Publications that are kept meanwhile, the last ones."""


_last: EventDispatcher | None = None
"""A worker's, once it takes no new tasks: those that it still has end after that."""


_facts: dict[str, float] = {}
_worker: Any = None
"""Celery's, in a worker."""


def tell_of_worker(**facts: float | None) -> None:
    """Let this worker's signs of life carry these fields, too; those that are None are left out."""
    _facts.update({name: value for name, value in facts.items() if value is not None})


def _processes() -> dict[str, int]:
    """How many tasks this worker works on at once, which remote control may change."""
    # The pool has no size before it has started.
    size = getattr(getattr(_worker, "pool", None), "num_processes", None) or getattr(_worker, "concurrency", None)
    return {"processes": size} if isinstance(size, int) else {}


class EventDispatcher(celery.events.dispatcher.EventDispatcher):
    """Celery's, which publishes a worker's task events at every turn of its loop: three calls to SNS a task.

    And which keeps all that could not be published, and tries all of it again at each of those turns.
    """

    buffer_while_offline: bool

    def __init__(self, *args: Any, on_send_buffered: Any = None, **kwargs: Any) -> None:
        self._flush_is_due = False
        self._quiet_until_s = float("-inf")
        self._is_workers = bool(on_send_buffered)
        soon = self._flush_soon if on_send_buffered else None
        super().__init__(*args, **{"buffer_limit": EVENTS_TOGETHER, **kwargs}, on_send_buffered=soon)
        self._keeps, self.buffer_while_offline = self.buffer_while_offline, False  # Celery would raise no error to us
        self._outbound_buffer: deque[tuple[Any, str]] = deque(maxlen=KEPT)
        if self._is_workers:
            polls.when_working = self._flush_soon

    def _publish(self, event: Any, producer: Any, routing_key: str, **named: Any) -> None:
        if self._is_workers and not polls.working:
            # Whoever hears from a worker takes it for one that works.
            self._outbound_buffer.append((event, routing_key))
            return
        if not self._keeps or time.monotonic() >= self._quiet_until_s:
            try:
                super()._publish(event, producer, routing_key, **named)
                return
            except Exception as error:
                if not self._keeps:
                    raise
                self._quiet_until_s = time.monotonic() + QUIET_S
                logger.warning("events are not taken, again in %g s: %s", QUIET_S, error)
        self._outbound_buffer.append((event, routing_key))

    def _flush_soon(self) -> None:
        if not self._flush_is_due:
            self._flush_is_due = True
            get_event_loop().call_later(EVENTS_WITHIN_S, self._flush_due)

    def _flush_due(self) -> None:
        self._flush_is_due = False
        self.flush()

    def send(self, type: str, *args: Any, **fields: Any) -> Any:
        if type == "worker-offline":  # a goodbye is not to overtake what was before it
            self.flush()
        if type in ("worker-online", "worker-heartbeat"):
            fields = {**_facts, **_processes(), **fields}
        return super().send(type, *args, **fields)

    def close(self) -> None:
        self.flush()
        super().close()

    def disable(self) -> None:
        # Celery does this as soon as a worker is told to stop, and would not tell of the tasks that it then finishes.
        global _last
        super().disable()
        if self._is_workers:
            self.enabled, _last = True, self

    def tell_last(self) -> None:
        """Publish what happened after this dispatcher was closed."""
        with self.app.connection_for_write() as connection:
            self.producer = Producer(connection, exchange=self.exchange, serializer=self.serializer, auto_declare=False)
            self._closed = False
            # Over a connection of its own, so what went wrong with the other one says nothing.
            self._quiet_until_s = float("-inf")
            self.close()


class Events(celery.app.events.Events):
    dispatcher_cls = EventDispatcher


def install() -> None:
    """Connect what a worker does at its start and at its end; doing so again changes nothing."""
    signals.worker_init.connect(beat_slowly, dispatch_uid="celery_sqs.beat_slowly")
    signals.worker_shutdown.connect(tell_last, dispatch_uid="celery_sqs.tell_last")


def tell_last(**_: Any) -> None:
    """Tell of the tasks that a worker finished while it stopped."""
    if _last is None:
        return
    try:
        _last.tell_last()
    except Exception as error:  # events are for those who watch; nothing hangs on them
        logger.warning("the last events stay untold: %s", error)


def beat_slowly(sender: Any, **_: Any) -> None:
    """Set a worker's heartbeat to `HEARTBEAT_S`, unless its command line says otherwise."""
    # Celery has a command line option for it (celery/celery#1966) and no setting; 'celery -A app worker' is to be
    # enough.
    # The sender is a worker, or nobody where only its modules are loaded.
    global _worker
    _worker = sender
    app = getattr(sender, "app", None)
    if app is not None and getattr(app, "events_cls", None) is not Events:
        return
    options = getattr(sender, "options", None)
    if options is not None and not options.get("heartbeat_interval"):
        options["heartbeat_interval"] = HEARTBEAT_S
