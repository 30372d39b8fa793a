"""Celery's result backend over the response queue."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import uuid
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from celery import states
from celery.backends.base import Backend, SyncBackendMixin
from celery.exceptions import TimeoutError as CeleryTimeoutError

from celery_sqs.queues.reader import Life
from celery_sqs.results.collector import Collector
from faceapp import broker, tracing
from faceapp.broker import GivenUp
from faceapp.config import Settings

logger = logging.getLogger(__name__)

MAX_REPLY_BYTES = 240 * 1024
"""A longer answer is sent without its result: SQS takes 256 KiB, and the result is in S3 anyway."""

TRIES = 3
"""How often a message is delivered before it is a dead letter: the request queue's maxReceiveCount."""

URLS = 128
"""Of response queues, known to a process that answers."""

_slot: int | None = None


def use_slot(slot: int) -> None:
    """Read the response queue of web slot `slot` in this process; call it before the first request."""
    global _slot
    _slot = slot


def _reply_queue(settings: Settings) -> tuple[str, Life]:
    """The name of this process's queue, and whose it is."""
    name = settings.response_queue
    if _slot is None:
        return f"{name}-{uuid.uuid4().hex[:12]}", "process"
    if settings.web_name:
        return f"{name}-{settings.web_name}-{_slot}", "place"
    return (name, "stack") if _slot == 0 else (f"{name}-{_slot}", "place")


def _is_tried_again(state: str, request: Any) -> bool:
    """Whether SQS will deliver the message of a task that failed once more: then this is not the answer yet."""
    if state != states.FAILURE:  # a revoked one is acknowledged
        return False
    try:
        message = request.properties["delivery_info"]["sqs_message"]
        return int(message["Attributes"]["ApproximateReceiveCount"]) < TRIES
    except (AttributeError, KeyError, TypeError, ValueError):
        return False


class ResponseBackend(SyncBackendMixin, Backend):
    """Celery's result backend over the response queue: publishes in the worker, collects in the caller's process."""

    persistent = False
    supports_autoexpire = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings: Settings = self.app.settings
        self._lock = threading.Lock()
        self._pid = 0
        self._mine: Collector | None = None
        self._sender_pid = 0
        self._sending: tuple[Any, dict[str, str]] = (None, {})

    @property
    def collector(self) -> Collector:
        """This process's reader; a forked child gets its own."""
        with self._lock:
            if self._mine is None or self._pid != os.getpid():
                name, life = _reply_queue(self._settings)
                self._pid, self._mine = os.getpid(), Collector(name, wait_s=self._settings.queue_wait_s, life=life)
                atexit.register(self._mine.close, delete_queue=life == "process")
            return self._mine

    @property
    def reply_queue(self) -> str:
        """The queue that this process's answers come to."""
        return self.collector.queue_name

    # In the caller's process.

    def on_task_call(self, producer: Any, task_id: str) -> None:
        self.collector.expect(task_id)

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_interval: Any = None,
    ) -> dict[str, Any]:
        meta = self.collector.wait(task_id, timeout)
        if meta is None:
            raise CeleryTimeoutError(f"no answer to {task_id} within {timeout} s")
        return meta

    def remove_pending_result(self, result: Any) -> Any:
        if self._mine is not None:
            self._mine.forget(result.id)
        return result

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        return self.collector.peek(task_id) or {"status": states.PENDING, "result": None}

    def _forget(self, task_id: str) -> None:
        self.collector.forget(task_id)

    # In the worker.

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: str | None = None, request: Any = None, **_: Any
    ) -> None:
        # All ways to fail come here: what a task raises in its own process, and what the main process notes when a
        # task's process was lost or killed for its time.
        if state not in states.READY_STATES or _is_tried_again(state, request):
            return
        if state in states.EXCEPTION_STATES and self.app.give_up:
            state, result, traceback = self._given_up(task_id, result, state, traceback, request)
        reply_to = getattr(request, "reply_to", None)
        if not reply_to or getattr(request, "ignore_result", False):
            return
        meta = {"task_id": task_id, "status": state, "result": result, "traceback": traceback, "children": []}
        if asked := getattr(request, "request_id", None):
            meta["request_id"] = asked
        body = self.encode(meta)
        if len(body.encode()) > MAX_REPLY_BYTES:
            body = self.encode({**meta, "result": None, "traceback": None})
        try:
            with tracing.span("reply", kind="PRODUCER", attributes={"messaging.system": "aws_sqs"}):
                self._reply(reply_to, body)
        except (BotoCoreError, ClientError) as error:
            # The result is stored; whoever waits finds it there. Failing the task would only do its work again.
            logger.warning("no answer sent to %s for %s: %s", reply_to, task_id, error)

    def _given_up(
        self, task_id: str, error: Any, state: str, traceback: str | None, request: Any
    ) -> tuple[str, Any, str | None]:
        """The state, the result and the traceback that are answered for a task that will not be tried again."""
        try:
            given_up = GivenUp(
                task=str(request.task),
                task_id=task_id,
                arguments=tuple(request.args or ()),
                error=str(error["exc_type"]),
            )
            return states.SUCCESS, self.app.give_up(given_up), None
        except Exception:  # this may be a worker's main process, which must not end by it
            logger.exception("nothing but Celery's own failure is answered for %s", task_id)
            return state, error, traceback

    def _reply(self, queue_name: str, body: str) -> None:
        if not queue_name.startswith(self._settings.response_queue):
            logger.warning("no answer sent to %r: it is not one of our response queues", queue_name)
            return
        sqs, urls = self._sender()
        if queue_name not in urls:
            if len(urls) >= URLS:  # most processes that ask come once, with a queue of their own
                del urls[next(iter(urls))]
            urls[queue_name] = sqs.get_queue_url(QueueName=queue_name)["QueueUrl"]
        sqs.send_message(QueueUrl=urls[queue_name], MessageBody=body)

    def _sender(self) -> tuple[Any, dict[str, str]]:
        """This process's client and the URLs it knows; a forked child makes its own."""
        with self._lock:
            if self._sender_pid != os.getpid():
                # Short: the result is in S3, and a task must not be kept from ending by its answer.
                client = broker.sqs_client(read_timeout=5, retries={"mode": "standard", "total_max_attempts": 2})
                self._sender_pid, self._sending = os.getpid(), (client, {})
            return self._sending
