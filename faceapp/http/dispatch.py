"""From an upload to the answer: the photo into S3, its task into the queue, and the wait for what comes back.

No model is loaded here: a task's body imports it where it runs.
"""

from __future__ import annotations

import logging
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import flask
from botocore.exceptions import BotoCoreError, ClientError
from celery.exceptions import TimeoutError as CeleryTimeoutError
from kombu.exceptions import LimitExceeded, OperationalError

from faceapp import broker, logs, tasks, tracing
from faceapp.config import Settings
from faceapp.errors import BrokerUnavailable, FaceappError, StorageUnavailable
from faceapp.gallery import People
from faceapp.http.metrics import Metrics
from faceapp.http.uploads import Upload
from faceapp.schema import Enrolment, Recognition
from faceapp.storage import Storage

LOOK_AFTER_S = 15.0
"""A longer wait looks into S3, for a result whose answer was lost, after this and then after twice the time each."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """A photo that is on its way: its request id, and what the answer will come to (None if nobody waits)."""

    id: str
    file_name: str
    answer: Any = None


class Dispatch:
    """The web tier's way to storage, gallery and queue. Any thread may call any method."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.storage = Storage(settings)
        self.people = People(self.storage)

    def ready(self) -> None:
        """Raises StorageUnavailable or BrokerUnavailable when S3 or SQS does not answer."""
        self.storage.ready()
        broker.ready(self.settings)

    def recognize(self, upload: Upload, *, request_id: str, waits: bool) -> Ticket:
        """Store the photo and send its task. Raises StorageUnavailable or BrokerUnavailable, and then keeps nothing."""
        with self.metrics.counting():
            answer = self._begin(upload, request_id=request_id, waits=waits)
        if not waits:
            self.metrics.count("accepted")
        return Ticket(id=request_id, file_name=upload.file_name, answer=answer if waits else None)

    def _begin(self, upload: Upload, *, request_id: str, waits: bool) -> Any:
        attributes = {"faceapp.photo_bytes": len(upload.data)}
        with self.metrics.stage("store"), tracing.span("store photo", kind="CLIENT", attributes=attributes):
            self.storage.put_photo(
                request_id, upload.data, file_name=upload.file_name, content_type=upload.content_type
            )
        try:
            with self.metrics.stage("send"):
                return _send(tasks.recognize, request_id, waits=waits)
        except FaceappError:
            with suppress(FaceappError):
                self.storage.delete_photo(request_id)
            raise

    def wait(self, ticket: Ticket, deadline_s: float) -> Recognition | None:
        """The photo's result, or None if there is none at `deadline_s` (of time.monotonic).

        An answer can get lost on its way: a process that dies takes those with it that its long poll was handed.
        """
        with self.metrics.counting(), self.metrics.waiting():
            result = self._wait(ticket, deadline_s)
        self.metrics.result(result)
        return result

    def _wait(self, ticket: Ticket, deadline_s: float) -> Recognition | None:
        try:
            look_s = LOOK_AFTER_S
            while True:
                left_s = deadline_s - time.monotonic()
                document = _get(ticket.answer, min(look_s, left_s))
                try:
                    result = Recognition.from_dict(document) if document else self.storage.get_result(ticket.id)
                except StorageUnavailable:
                    # Only a look: the answer may come all the same, so this is an error when the time is over.
                    if left_s <= look_s:
                        raise
                    result = None
                if result or left_s <= look_s:
                    return result
                look_s *= 2
        finally:
            ticket.answer.forget()

    def enrol(self, name: str, uploads: list[Upload], *, request_id: str, wait_s: float) -> Enrolment | None:
        """Have a worker enrol the photos; None when that is not done within `wait_s` (it will still happen).

        Raises StorageUnavailable or BrokerUnavailable, and then keeps nothing.
        """
        with self.metrics.counting(len(uploads)):
            answer = self._begin_enrolment(name, uploads, request_id=request_id)
        try:
            with self.metrics.waiting():
                document = _get(answer, wait_s)
        finally:
            answer.forget()
        enrolment = Enrolment.from_dict(document) if document else None
        self.metrics.enrolment(enrolment, photos=len(uploads))
        return enrolment

    def _begin_enrolment(self, name: str, uploads: list[Upload], *, request_id: str) -> Any:
        try:
            with tracing.span("store photos", kind="CLIENT", attributes={"faceapp.photos": len(uploads)}):
                for n, upload in enumerate(uploads):
                    self.storage.put_incoming(request_id, n, upload.data, name=name, file_name=upload.file_name)
            return _send(tasks.enrol, request_id, waits=True)
        except FaceappError:
            with suppress(FaceappError):
                self.storage.delete_incoming(request_id)
            raise


def _send(task: Any, request_id: str, *, waits: bool) -> Any:
    try:
        with tracing.span(
            f"publish {task.name}",
            kind="PRODUCER",
            attributes={
                "messaging.system": "aws_sqs",
                "messaging.operation.type": "send",
                "messaging.message.id": request_id,
            },
        ):
            # A message has 1,024 bytes: what a worker would assume anyway stays out.
            headers = {"request_id": logs.request_id(), "traceparent": tracing.traceparent()}
            given = {name: value for name, value in headers.items() if value not in ("", request_id)}
            return task.apply_async(args=[request_id], task_id=request_id, ignore_result=not waits, headers=given)
    except (OperationalError, LimitExceeded, BotoCoreError, ClientError) as error:
        logger.error("%s could not be sent: %s", request_id, error)
        raise BrokerUnavailable from error


def _get(answer: Any, timeout_s: float) -> dict[str, Any] | None:
    with tracing.span("wait for the answer"):
        try:
            document: dict[str, Any] | None = answer.get(timeout=max(0.0, timeout_s))
            return document
        except CeleryTimeoutError:
            return None


def new_id() -> str:
    return uuid.uuid4().hex


def current() -> Dispatch:
    """The dispatch of the app that handles this request."""
    dispatch: Dispatch = flask.current_app.extensions["faceapp"]
    return dispatch
