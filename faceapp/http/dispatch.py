"""From an upload to the answer: the photo into S3, its task into the queue, and the wait for what comes back.

No model is loaded here: a task's body imports it where it runs.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import flask
from botocore.exceptions import BotoCoreError, ClientError
from celery import states
from celery.exceptions import TimeoutError as CeleryTimeoutError
from kombu.exceptions import LimitExceeded, OperationalError

import celery_sqs
from faceapp import broker, tasks
from faceapp.config import Settings
from faceapp.errors import (
    BrokerUnavailable,
    ClientGone,
    EnrolmentLost,
    FaceappError,
    PersonNotFound,
    RecognitionExpired,
    RecognitionFailed,
    RecognitionNotFound,
    SchemaError,
    StorageUnavailable,
)
from faceapp.http import admission, connections
from faceapp.http.metrics import Metrics
from faceapp.http.uploads import Upload
from faceapp.observability import logs, tracing
from faceapp.people import People
from faceapp.people.people import photo_id_from
from faceapp.schema import Enrolment, Failure, PhotoFailure, Recognition
from faceapp.storage import Storage, StoredPhotoHead
from faceapp.work.forgetting import Forgetting

CLIENT_S = 3.0
"""How often a wait looks whether the client is still there."""
READY_S = 1.0
"""An answer of S3 and SQS is good for as long: probes come from many sides."""
STORED_AT_ONCE = 64
"""Photos, in one web process; those beyond wait for a place."""
UNSURE = {RecognitionFailed.code, RecognitionExpired.code}
"""Failures of a task that may have enrolled the photos before it was killed."""
LOOK_AFTER_S = 15.0
"""A longer wait looks into S3, for a result whose answer was lost, after this and then after twice the time each."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """A photo that is on its way: its request id, and what the answer will come to (None if nobody waits)."""

    id: str
    file_name: str
    answer: Any = None
    sent_s: float = field(default_factory=time.monotonic)
    """When its task was sent, by time.monotonic."""


class _Readiness:
    """What S3 and SQS answered, asked for by one at a time and shared by all who want to know within a second."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._until_s = 0.0
        self._error: FaceappError | None = None

    def check(self) -> None:
        """Raises what asking raised."""
        with self._lock:
            if time.monotonic() >= self._until_s:
                try:
                    self._ask()
                    self._error = None
                except FaceappError as error:
                    self._error = error
                self._until_s = time.monotonic() + READY_S
            known = self._error
        if known:
            raise type(known)(known.detail)


class Dispatch:
    """The web tier's way to storage, gallery and queue. Any thread may call any method."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.storage = Storage(settings)
        self.people = People(self.storage)
        self.forgetting = Forgetting(settings, self.storage)
        self._storing = threading.BoundedSemaphore(STORED_AT_ONCE)
        self._readiness = _Readiness(self._ask)

    def ready(self) -> None:
        """Raises StorageUnavailable or BrokerUnavailable when S3 or SQS does not answer, or just now did not."""
        self._readiness.check()

    def _ask(self) -> None:
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
        with (
            self.metrics.stage("store"),
            tracing.span("store photo", kind="CLIENT", attributes=attributes),
            self._storing,
        ):
            self.storage.put_photo(
                request_id, upload.data, file_name=upload.file_name, content_type=upload.content_type
            )
        upload.let_go()
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
        admission.body_is_stored()
        with self.metrics.counting(), self.metrics.waiting():
            result = self._wait(ticket, deadline_s)
        self.metrics.result(result)
        return result

    def _wait(self, ticket: Ticket, deadline_s: float) -> Recognition | None:
        too_old_s = ticket.sent_s + self.settings.queue_age_s
        until_s, look_s = min(deadline_s, too_old_s), LOOK_AFTER_S
        try:
            while True:
                left_s = until_s - time.monotonic()
                reply = _get(ticket.answer, min(look_s, left_s))
                last = reply is None and left_s <= look_s
                ended = _ended(reply)
                failed = _failed(ticket.id, ended) if ended else None
                try:
                    result = self._read(ticket, reply) or self.storage.get_result(ticket.id) or failed
                except StorageUnavailable:
                    # Only a look: the photo is accepted whether S3 answers now or not, and its answer may still come.
                    result = failed
                if result is None and last and until_s == too_old_s:
                    result = _failed(ticket.id, RecognitionExpired())
                if result or last:
                    return result
                if reply is None:
                    look_s *= 2
        finally:
            ticket.answer.forget()

    def _read(self, ticket: Ticket, reply: dict[str, Any] | None) -> Recognition | None:
        """The result in a reply; None when there is none, which S3 may have, or none that can be read."""
        if not reply or reply["status"] != states.SUCCESS:
            return None
        try:
            result = Recognition.from_dict(reply["result"])
            if result.id == ticket.id:
                return result
            logger.error("an answer about %s came to %s", result.id, ticket.id)
        except SchemaError as error:
            if reply["result"] is not None:
                logger.error("the answer to %s cannot be read: %s", ticket.id, error)
        tasks.app.backend.collector.expect_another(ticket.id, corrupt=reply["result"] is not None)
        return None

    def forget(self, name: str) -> None:
        """Forget a person: in the gallery when this returns, in the results within minutes.

        Raises InvalidName, and PersonNotFound for somebody who is not enrolled, and then forgets them in the results
        all the same; so what was cut off in the middle, or refused by S3 or SQS, can be asked for again.
        """
        spellings = self.people.spellings(name)
        missing = [error for each in spellings if (error := self._forget(each))]
        if len(missing) == len(spellings):
            raise missing[0]

    def _forget(self, name: str) -> PersonNotFound | None:
        order_id = new_id()
        # The order first: what is begun has a name that can be found.
        self.forgetting.order(order_id, name)
        try:
            self.people.forget(name)
        except PersonNotFound as error:
            return error
        finally:
            _send(tasks.forget, order_id, waits=False)
        return None

    def erase(self, request_id: str) -> None:
        """Delete a photo and its result. Raises RecognitionNotFound when there is neither."""
        if not self.storage.result_exists(request_id) and self.storage.photo_exists(request_id) is None:
            raise RecognitionNotFound
        # A worker may have the photo, also where there is a result: SQS delivers twice now and then. What it stores is
        # deleted when it has ended. Asked for before the photo is gone, so that a call that fails can be made again.
        _send(tasks.erase, request_id, waits=False, delay_s=self.forgetting.ended_s)
        self.forgetting.erase(request_id)

    def is_lost(self, photo: StoredPhotoHead) -> bool:
        """Whether a photo without a result is so old that none will come: it was not looked at in time."""
        tries_s = broker.TRIES * self.settings.task_time_limit_s
        waited_s = (photo.answered - photo.last_modified).total_seconds()
        return waited_s > self.settings.queue_age_s + tries_s

    def enrol(self, name: str, uploads: list[Upload], *, request_id: str, wait_s: float) -> Enrolment | None:
        """Have a worker enrol the photos; None when that is not done within `wait_s` (it will still happen).

        Raises StorageUnavailable or BrokerUnavailable, and then keeps nothing.
        """
        with self.metrics.counting(len(uploads)):
            answer, photo_ids = self._begin_enrolment(name, uploads, request_id=request_id)
        admission.body_is_stored()
        try:
            with self.metrics.counting(len(uploads)), self.metrics.waiting():
                enrolment = self._wait_enrolled(answer, name, request_id, wait_s)
                enrolment = self._as_stored(name, request_id, photo_ids, enrolment)
        finally:
            answer.forget()
        self.metrics.enrolment(enrolment, photos=len(uploads))
        return enrolment

    def _wait_enrolled(self, answer: Any, name: str, request_id: str, wait_s: float) -> Enrolment | None:
        """What a worker answers; None when there is no answer, or none that says what became of the photos."""
        until_s = time.monotonic() + min(wait_s, self.settings.queue_age_s)
        while reply := _get(answer, until_s - time.monotonic()):
            if ended := _ended(reply):
                return _not_enrolled(name, request_id, ended)
            if reply["result"] is None:
                return None
            try:
                enrolment = Enrolment.from_dict(reply["result"])
                if enrolment.id == request_id:
                    return enrolment
                logger.error("an answer about %s came to %s", enrolment.id, request_id)
            except SchemaError as error:
                logger.error("the answer to %s cannot be read: %s", request_id, error)
            tasks.app.backend.collector.expect_another(request_id, corrupt=True)
        return _not_enrolled(name, request_id, RecognitionExpired()) if wait_s > self.settings.queue_age_s else None

    def _as_stored(
        self, name: str, request_id: str, photo_ids: list[str], enrolment: Enrolment | None
    ) -> Enrolment | None:
        """The answer as far as the gallery bears it out: an answer can get lost, or be that of another delivery, which
        was given up after one that had enrolled the photos.

        None while the photos wait.
        """
        if enrolment and (enrolment.photos or enrolment.failures[0].code not in UNSURE):
            return enrolment
        try:
            # In this order: photos wait no longer when they are enrolled.
            waiting = self.storage.list_incoming(request_id)
            if self.people.has(name, photo_ids):
                return Enrolment(id=request_id, name=name, photos=tuple(photo_ids))
            if enrolment is None and not waiting:
                return _not_enrolled(name, request_id, EnrolmentLost())
        except StorageUnavailable as error:
            logger.warning("the gallery cannot be asked about %s: %s", request_id, error)
        return enrolment

    def _begin_enrolment(self, name: str, uploads: list[Upload], *, request_id: str) -> tuple[Any, list[str]]:
        """What the answer will come to, and the ids that the photos will have."""
        photo_ids = []
        try:
            with tracing.span("store photos", kind="CLIENT", attributes={"faceapp.photos": len(uploads)}):
                for n, upload in enumerate(uploads):
                    with self._storing:
                        sha256 = self.storage.put_incoming(
                            request_id, n, upload.data, name=name, file_name=upload.file_name
                        )
                    photo_ids.append(photo_id_from(sha256))
                    upload.let_go()
            return _send(tasks.enrol, request_id, waits=True), photo_ids
        except FaceappError:
            with suppress(FaceappError):
                self.storage.delete_incoming(request_id)
            raise


def _send(task: Any, request_id: str, *, waits: bool, delay_s: int = 0) -> Any:
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
            delay_s, rest = tasks.in_hops(delay_s)
            delay = {"delay_seconds": delay_s} if delay_s else {}
            options = {"task_id": request_id, "ignore_result": not waits, "headers": given, **delay}
            return task.apply_async(args=[request_id, *rest], **options)
    except (OperationalError, LimitExceeded, BotoCoreError, ClientError, celery_sqs.Error) as error:
        # Else the reader would ask SQS for its answer for an hour.
        task.app.backend.collector.forget(request_id)
        logger.error("%s could not be sent: %s", request_id, error)
        raise BrokerUnavailable from error


def _get(answer: Any, timeout_s: float) -> dict[str, Any] | None:
    """The reply as Celery carries it, or None when it is not there in time.

    Raises ClientGone: nobody reads it, and its place is needed.
    """
    deadline_s = time.monotonic() + timeout_s
    with tracing.span("wait for the answer"):
        while True:
            left_s = max(0.0, deadline_s - time.monotonic())
            try:
                # Not answer.get(): that raises what a worker raised, or what somebody says that it did.
                reply: dict[str, Any] = answer.backend.wait_for(answer.id, timeout=min(left_s, CLIENT_S))
                return reply
            except CeleryTimeoutError:
                if left_s <= CLIENT_S:
                    return None
            client = connections.current()
            if client and client.gone:
                raise ClientGone


def _ended(reply: dict[str, Any] | None) -> RecognitionFailed | None:
    """What a reply says that is no result but Celery's own failure, as workers of other versions send it."""
    return None if reply is None or reply["status"] == states.SUCCESS else RecognitionFailed()


def _failed(request_id: str, error: FaceappError) -> Recognition:
    return Recognition(id=request_id, status="failed", failure=Failure.of(error))


def _not_enrolled(name: str, request_id: str, error: FaceappError) -> Enrolment:
    failure = PhotoFailure(file_name="", code=error.code, detail=error.detail)
    return Enrolment(id=request_id, name=name, failures=(failure,))


def new_id() -> str:
    return uuid.uuid4().hex


def current() -> Dispatch:
    """The dispatch of the app that handles this request."""
    dispatch: Dispatch = flask.current_app.extensions["faceapp"]
    return dispatch
