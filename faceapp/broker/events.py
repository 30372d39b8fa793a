"""Celery's events over SNS, sent together and seldom: each publication is billed."""

from __future__ import annotations

from typing import Any

import celery.app.events
import celery.events.dispatcher
import celery.events.event
from celery import signals
from kombu.asynchronous import get_event_loop

EVENTS_WITHIN_S = 1.0
"""A worker's task events go out together, after this long."""
EVENTS_TOGETHER = 100
"""Or when so many wait: about 50 KB, where SNS takes 256 and bills each 64 as a message."""
HEARTBEAT_S = 60.0
"""Between two heartbeats of a worker; Celery's own 2 s would be 43,000 messages a day and worker."""

# Events go to everybody who listens. A topic exchange would need bindings that the processes share; SQS has none, and
# Celery makes exceptions for Redis and Pub/Sub only (celery/celery#4279).
celery.events.event.event_exchange.type = "fanout"


class EventDispatcher(celery.events.dispatcher.EventDispatcher):
    """Celery's, which publishes a worker's task events at every turn of its loop: three calls to SNS a photo."""

    def __init__(self, *args: Any, on_send_buffered: Any = None, **kwargs: Any) -> None:
        self._flush_is_due = False
        soon = self._flush_soon if on_send_buffered else None
        super().__init__(*args, **{"buffer_limit": EVENTS_TOGETHER, **kwargs}, on_send_buffered=soon)

    def _flush_soon(self) -> None:
        if not self._flush_is_due:
            self._flush_is_due = True
            get_event_loop().call_later(EVENTS_WITHIN_S, self._flush_due)

    def _flush_due(self) -> None:
        self._flush_is_due = False
        self.flush()

    def close(self) -> None:
        self.flush()
        super().close()


class Events(celery.app.events.Events):
    dispatcher_cls = EventDispatcher


@signals.worker_init.connect
def beat_slowly(sender: Any, **_: Any) -> None:
    """Set a worker's heartbeat to `HEARTBEAT_S`, unless its command line says otherwise."""
    # Celery has a command line option for it (celery/celery#1966) and no setting; 'celery -A faceapp.tasks worker' is
    # to be enough.
    # The sender is a worker, or nobody where only the model is loaded (faceapp.local.zygote).
    options = getattr(sender, "options", None)
    if options is not None and not options.get("heartbeat_interval"):
        options["heartbeat_interval"] = HEARTBEAT_S
