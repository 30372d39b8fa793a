"""Answers over the response queue: a Celery result backend.

A worker sends a finished task's result to the queue that the request names in `reply_to`; the process that asked reads
its own queue with one thread and hands each answer to whoever waits for it. The result in S3 is the truth and this is
the fast path to it, so an answer that nobody waits for any more is dropped, and counted.

Each process that waits has a queue of its own: a web process the one of its slot (slot 0 is the stack's response queue;
a restarted process takes its predecessor's slot, so no queue is left behind), any other process one that it makes at
its first call and deletes at exit.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import random
import threading
import time
import uuid
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from celery import states
from celery.backends.base import Backend, SyncBackendMixin
from celery.exceptions import TimeoutError as CeleryTimeoutError

from faceapp import broker
from faceapp.config import Settings

logger = logging.getLogger(__name__)

MAX_REPLY_BYTES = 240 * 1024
"""A longer answer is not sent: SQS takes 256 KiB, and the result is in S3 anyway."""

RECEIVE_BATCH = 10
"""SQS hands out and deletes at most this many messages a call."""

GATHER_S = 0.05
"""Pause between two receives while many wait: more answers to a call, for 25 ms in the mean."""

DELETE_WITHIN_S = 1.0
"""Received answers are deleted in tens, or after this long."""

FORGET_AFTER_S = 3600.0
"""An answer that nobody fetches is kept this long."""

QUEUE_GONE = "AWS.SimpleQueueService.NonExistentQueue"

_TRANSPORT_ERRORS = (BotoCoreError, ClientError)

_slot: int | None = None


def use_slot(slot: int) -> None:
    """Read the response queue of web slot `slot` in this process; call it before the first request."""
    global _slot
    _slot = slot


def _queue_name(settings: Settings) -> str:
    name = settings.response_queue
    if _slot is None:
        return f"{name}-{uuid.uuid4().hex[:12]}"
    return name if _slot == 0 else f"{name}-{_slot}"


@dataclass
class _Pending:
    """One expected answer."""

    arrived: threading.Event = field(default_factory=threading.Event)
    meta: dict[str, Any] | None = None
    waiting: int = 0
    since_s: float = field(default_factory=time.monotonic)


class Collector:
    """Reads one response queue for a whole process. Any thread may call any method.

    `counts` says what became of the messages: `delivered`, `late` (nobody waits: late or doubled) and `corrupt`.
    """

    def __init__(self, queue_name: str, *, wait_s: int) -> None:
        self.queue_name = queue_name
        self.counts: Counter[str] = Counter()
        self._wait_s = wait_s
        self._pending: dict[str, _Pending] = {}
        self._forgotten: deque[str] = deque()
        self._changed = threading.Condition()
        self._reader: threading.Thread | None = None
        self._closed = False

    @cached_property
    def _sqs(self) -> Any:
        return broker.sqs_client()

    @cached_property
    def _queue_url(self) -> str:
        try:
            return str(self._sqs.get_queue_url(QueueName=self.queue_name)["QueueUrl"])
        except self._sqs.exceptions.QueueDoesNotExist:
            logger.info("creating the response queue %s", self.queue_name)
            return str(self._sqs.create_queue(QueueName=self.queue_name)["QueueUrl"])

    @property
    def waiting(self) -> int:
        """How many answers are still to come."""
        with self._changed:
            return sum(not pending.arrived.is_set() for pending in self._pending.values())

    def expect(self, task_id: str) -> None:
        """Keep the answer to `task_id` when it comes. Raises botocore's errors when there is no queue to read."""
        _ = self._queue_url
        with self._changed:
            self._pending.setdefault(task_id, _Pending())
            if self._reader is None:
                self._reader = threading.Thread(target=self._read, name="responses", daemon=True)
                self._reader.start()
            self._changed.notify()

    def wait(self, task_id: str, timeout_s: float | None) -> dict[str, Any] | None:
        """The answer's meta as Celery encodes it, or None when it does not come within `timeout_s`."""
        with self._changed:
            pending = self._pending.setdefault(task_id, _Pending())
            pending.waiting += 1
            self._changed.notify()
        try:
            pending.arrived.wait(timeout_s)
            return pending.meta
        finally:
            with self._changed:
                pending.waiting -= 1

    def peek(self, task_id: str) -> dict[str, Any] | None:
        """The answer's meta if it has come."""
        pending = self._pending.get(task_id)
        return pending.meta if pending else None

    def forget(self, task_id: str) -> None:
        """Expect `task_id` no longer, unless a thread waits for it."""
        # Called by AsyncResult's destructor too, so at any point of any code: only note it.
        self._forgotten.append(task_id)

    def close(self, *, delete_queue: bool) -> None:
        """Stop reading. With `delete_queue` the queue goes too."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify()
        if delete_queue and "_queue_url" in self.__dict__:
            try:
                self._sqs.delete_queue(QueueUrl=self._queue_url)
            except _TRANSPORT_ERRORS as error:
                logger.warning("the response queue %s stays behind: %s", self.queue_name, error)

    def _read(self) -> None:
        done: list[str] = []
        last_delete_s = time.monotonic()
        failures = 0
        while True:
            with self._changed:
                while not self._expecting() and not self._closed:
                    if done:
                        break
                    self._changed.wait()
                if self._closed:
                    return
                idle, many = not self._expecting(), len(self._pending) > RECEIVE_BATCH
            try:
                if not idle:
                    done += self._receive()
                if done and (idle or len(done) >= RECEIVE_BATCH or time.monotonic() - last_delete_s > DELETE_WITHIN_S):
                    done, last_delete_s = self._delete(done), time.monotonic()
                failures = 0
            except Exception as error:  # this thread must not end: everybody waits for it
                failures += 1
                # Answers not deleted come again and are dropped as late.
                done = [] if idle else done
                self._back_off(error, failures)
            if many:
                time.sleep(GATHER_S)

    def _expecting(self) -> bool:
        """Whether any answer is still to come; drops what nobody wants any more."""
        too_old_s = time.monotonic() - FORGET_AFTER_S
        forgotten = [self._forgotten.popleft() for _ in range(len(self._forgotten))]
        forgotten += [task_id for task_id, pending in self._pending.items() if pending.since_s < too_old_s]
        for task_id in forgotten:
            if task_id in self._pending and not self._pending[task_id].waiting:
                del self._pending[task_id]
        return self.waiting > 0

    def _receive(self) -> list[str]:
        """One long poll: hand out what came, return the receipts."""
        answer = self._sqs.receive_message(
            QueueUrl=self._queue_url, MaxNumberOfMessages=RECEIVE_BATCH, WaitTimeSeconds=self._wait_s
        )
        receipts = []
        for message in answer.get("Messages", ()):
            self._deliver(message["Body"])
            receipts.append(message["ReceiptHandle"])
        return receipts

    def _deliver(self, body: str) -> None:
        try:
            meta = json.loads(body)
            task_id, status = meta["task_id"], meta["status"]
            if not (isinstance(task_id, str) and isinstance(status, str)):
                raise TypeError("an answer's id and status are strings")
        except (ValueError, TypeError, KeyError):
            self.counts["corrupt"] += 1
            logger.warning("dropped an answer that is not one (%d bytes)", len(body))
            return
        with self._changed:
            pending = self._pending.get(task_id)
            if pending is None or pending.arrived.is_set() or status not in states.READY_STATES:
                self.counts["late"] += 1
                return
            self.counts["delivered"] += 1
            pending.meta = meta
            pending.arrived.set()

    def _delete(self, receipts: list[str]) -> list[str]:
        """Delete one batch; returns what is left to delete."""
        batch, rest = receipts[:RECEIVE_BATCH], receipts[RECEIVE_BATCH:]
        entries = [{"Id": str(n), "ReceiptHandle": receipt} for n, receipt in enumerate(batch)]
        self._sqs.delete_message_batch(QueueUrl=self._queue_url, Entries=entries)
        return rest

    def _back_off(self, error: Exception, failures: int) -> None:
        """Pause before the next try, longer each time; look the queue up again in case it was made anew."""
        self.__dict__.pop("_queue_url", None)
        pause_s = min(10.0, 0.2 * 2 ** min(failures, 6)) * random.uniform(0.5, 1.0)
        logger.warning("reading the response queue %s failed, again in %.1f s: %s", self.queue_name, pause_s, error)
        time.sleep(pause_s)


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
                self._pid, self._mine = (
                    os.getpid(),
                    Collector(_queue_name(self._settings), wait_s=self._settings.queue_wait_s),
                )
                atexit.register(self._mine.close, delete_queue=_slot is None)
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
        reply_to = getattr(request, "reply_to", None)
        if not reply_to or state not in states.READY_STATES:
            return
        meta = {"task_id": task_id, "status": state, "result": result, "traceback": traceback, "children": []}
        body = self.encode(meta)
        if len(body.encode()) > MAX_REPLY_BYTES:
            body = self.encode({**meta, "result": None, "traceback": None})
        try:
            self._reply(reply_to, body)
        except _TRANSPORT_ERRORS as error:
            # The result is stored; whoever waits finds it there. Failing the task would only do its work again.
            logger.warning("no answer sent to %s for %s: %s", reply_to, task_id, error)

    def _reply(self, queue_name: str, body: str) -> None:
        if not queue_name.startswith(self._settings.response_queue):
            logger.warning("no answer sent to %r: it is not one of our response queues", queue_name)
            return
        sqs, urls = self._sender()
        if queue_name not in urls:
            urls[queue_name] = sqs.get_queue_url(QueueName=queue_name)["QueueUrl"]
        sqs.send_message(QueueUrl=urls[queue_name], MessageBody=body)

    def _sender(self) -> tuple[Any, dict[str, str]]:
        """This process's client and the URLs it knows; a forked child makes its own."""
        with self._lock:
            if self._sender_pid != os.getpid():
                self._sender_pid, self._sending = os.getpid(), (broker.sqs_client(), {})
            return self._sending
