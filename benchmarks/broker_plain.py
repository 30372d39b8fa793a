"""The peer of `benchmarks.broker`: events and control as kombu 5.7 and Celery 5.7 do them on SQS.

Only what does not work at all is overridden: kombu says that it cannot fan out, deletes events and replies through an
event loop that Flower does not have, and looks for replies in bindings that only the asking process has. The app's
other settings, its messages and its answers are the product's, so the photos take the same way. Kombu pauses for
`polling_interval` also while the prefetch is full; 0.1 s is what lets it work at full speed.
"""

from __future__ import annotations

import os
import time
from typing import Any

import celery.app.control
import celery.app.events
from kombu.transport import SQS, TRANSPORT_ALIASES

from faceapp.broker import FaceappCelery, create_app
from faceapp.config import settings

POLL_S = 0.1
HEARTBEAT_S = 2
"""Celery's own; given on the command line, because celery_sqs.events sets another."""


class Channel(SQS.Channel):
    """kombu's with deletions that need no event loop, and replies that find their way."""

    def _delete_message(self, queue_name: str, message: Any) -> None:
        client = self.sqs(queue=queue_name)
        client.delete_message(QueueUrl=self._new_queue(queue_name), ReceiptHandle=message["ReceiptHandle"])

    def _lookup(self, exchange: str, routing_key: str, default: str | None = None) -> list[str]:
        if exchange.startswith("reply."):
            return [f"{routing_key}.{exchange}"]
        found: list[str] = super()._lookup(exchange, routing_key, default)
        return found


class Transport(SQS.Transport):
    """kombu's, which says that it can fan out."""

    Channel = Channel
    implements = SQS.Transport.implements.extend(exchange_type=frozenset(["direct", "fanout"]))


TRANSPORT_ALIASES["plainsqs"] = f"{__name__}:Transport"


def plain_app() -> FaceappCelery:
    """The product's app with kombu's transport and Celery's events and control."""
    made = create_app(settings())
    made.events_cls = celery.app.events.Events
    made.control_cls = celery.app.control.Control
    options = {**made.conf.broker_transport_options, "polling_interval": POLL_S}
    made.conf.update(broker_url="plainsqs://", broker_transport_options=options)
    return made


app = plain_app()


@app.task(name="faceapp.recognize")
def recognize(request_id: str) -> dict[str, Any] | None:
    """What `faceapp.tasks.recognize` does with a photo."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from faceapp.work.worker import this_worker

    result = this_worker().recognise(request_id, queued_s=0.0)
    return result.to_dict() if result else None


@app.task(name="benchmarks.work")
def work(work_s: float) -> float:
    """As `benchmarks.broker_echo.work`."""
    time.sleep(work_s)
    return time.time()
