"""The tasks that travel over the queue: `celery -A faceapp.tasks worker` runs them.

A message names a request and an object, never pixels or file names. The web tier imports this module to dispatch, so
the model is loaded only where the work is done.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.exceptions import Reject

from faceapp import broker, flower, logs
from faceapp.config import settings
from faceapp.errors import NotFound, StorageUnavailable

if TYPE_CHECKING:
    from faceapp.worker import Worker

logger = logging.getLogger(__name__)

app = broker.create_app(settings())
flower.take_over(settings())


def _worker() -> Worker:
    # A process per core: a matrix product must not start threads. Read when numpy is imported, here for the first time.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from faceapp.worker import this_worker

    return this_worker()


@app.task(bind=True, name="faceapp.recognize")
def recognize(self: Any, request_id: str) -> dict[str, Any]:
    """Recognise the photo stored under `request_id`; the answer is a `schema.Recognition` document."""
    queued_s = _queued_s(self.request)
    return _patiently(lambda: _worker().recognise(request_id, queued_s=queued_s).to_dict())


@app.task(name="faceapp.enrol")
def enrol(request_id: str) -> dict[str, Any] | None:
    """Enrol the photos waiting under `request_id`; the answer is a `schema.Enrolment` document.

    None when nothing waits there: a second delivery of a message whose work is done.
    """
    try:
        return _patiently(lambda: _worker().enrol(request_id).to_dict())
    except NotFound:
        return None


def _patiently(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do the work, and wait for an S3 that does not answer: each message handed back has used up one of its tries."""
    give_up_s = time.monotonic() + settings().task_time_limit_s / 2
    pause_s = 0.5
    while True:
        try:
            return work()
        except StorageUnavailable as error:
            if time.monotonic() + pause_s > give_up_s:
                raise Reject(error, requeue=True) from error
            logger.warning("trying again in %.1f s: %s", pause_s, error)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 8.0)
        except MemoryError as error:
            # Celery ends the whole worker on a MemoryError, its other tasks included.
            raise RuntimeError("there is not enough memory for this photo") from error


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
