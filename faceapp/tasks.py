"""The tasks that travel over the queue: `celery -A faceapp.tasks worker` runs them.

A message names a request and an object, never pixels or file names. The web tier imports this module to dispatch, so
the model is loaded only where the work is done.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.exceptions import Reject

from faceapp import broker, logs
from faceapp.config import settings
from faceapp.errors import NotFound, StorageUnavailable

if TYPE_CHECKING:
    from faceapp.worker import Worker

app = broker.create_app(settings())


def _worker() -> Worker:
    # A process per core: a matrix product must not start threads. Read when numpy is imported, here for the first time.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from faceapp.worker import this_worker

    return this_worker()


@app.task(bind=True, name="faceapp.recognize")
def recognize(self: Any, request_id: str) -> dict[str, Any]:
    """Recognise the photo stored under `request_id`; the answer is a `schema.Recognition` document."""
    try:
        return _worker().recognise(request_id, queued_s=_queued_s(self.request)).to_dict()
    except StorageUnavailable as error:
        raise Reject(error, requeue=True) from error


@app.task(name="faceapp.enrol")
def enrol(request_id: str) -> dict[str, Any] | None:
    """Enrol the photos waiting under `request_id`; the answer is a `schema.Enrolment` document.

    None when nothing waits there: a second delivery of a message whose work is done.
    """
    try:
        return _worker().enrol(request_id).to_dict()
    except NotFound:
        return None
    except StorageUnavailable as error:
        raise Reject(error, requeue=True) from error


def _queued_s(request: Any) -> float:
    """Seconds between the message's arrival at SQS and now; 0 when SQS did not say (or the clocks disagree)."""
    try:
        message = request.properties["delivery_info"]["sqs_message"]
        sent_s = float(message["Attributes"]["SentTimestamp"]) / 1000
    except (AttributeError, KeyError, TypeError, ValueError):
        return 0.0
    return max(0.0, time.time() - sent_s)


@signals.worker_init.connect
def _load_model(**_: Any) -> None:
    """Load the model and the gallery in the parent: its children start at once and share the memory."""
    _worker().warm()


@signals.setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    logs.configure(settings())
