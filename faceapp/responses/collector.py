"""One thread that reads a process's response queue and hands each answer to the thread that waits for it."""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from celery import states

from faceapp import broker

logger = logging.getLogger(__name__)

BATCH = 10
"""SQS hands out and deletes at most this many messages a call."""

GATHER_S = 0.0025
GATHER_MAX_S = 0.25
"""While more than a batch of answers is expected, pause this long for each (and no longer than that) after a receive
that was not full: several answers come with one billed call, and 1 % is added to a wait that is long anyway."""

DELETE_WITHIN_S = 1.0
"""Received answers are deleted in tens, or after this long."""

FORGET_AFTER_S = 3600.0
"""An answer that nobody fetches is kept this long."""


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
            return self._missing()

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
            except (BotoCoreError, ClientError) as error:
                logger.warning("the response queue %s stays behind: %s", self.queue_name, error)

    def _read(self) -> None:
        """The reader thread: receive while answers are expected, delete what was received, else sleep."""
        received: list[str] = []
        deleted_s = time.monotonic()
        failures = 0
        while not self._closed:
            expecting = self._sleep_until_needed(wake=bool(received))
            try:
                fresh = self._receive() if expecting else []
                received += fresh
                overdue = not expecting or time.monotonic() - deleted_s > DELETE_WITHIN_S
                if len(received) >= BATCH or (received and overdue):
                    received, deleted_s = self._delete(received), time.monotonic()
                failures = 0
            except Exception as error:  # this thread must not end: everybody waits for it
                failures += 1
                # Answers that are not deleted come again and are dropped as late.
                received = received if expecting else []
                self._back_off(error, failures)
                continue
            if expecting > BATCH and len(fresh) < BATCH:
                time.sleep(min(GATHER_MAX_S, expecting * GATHER_S))

    def _sleep_until_needed(self, *, wake: bool) -> int:
        """Sleep until an answer is expected (not at all with `wake`); returns how many are."""
        with self._changed:
            self._drop_forgotten()
            while not (wake or self._closed or self._missing()):
                self._changed.wait()
                self._drop_forgotten()
            return self._missing()

    def _missing(self) -> int:
        return sum(not pending.arrived.is_set() for pending in self._pending.values())

    def _drop_forgotten(self) -> None:
        too_old_s = time.monotonic() - FORGET_AFTER_S
        forgotten = [self._forgotten.popleft() for _ in range(len(self._forgotten))]
        forgotten += [task_id for task_id, pending in self._pending.items() if pending.since_s < too_old_s]
        for task_id in forgotten:
            if task_id in self._pending and not self._pending[task_id].waiting:
                del self._pending[task_id]

    def _receive(self) -> list[str]:
        """One long poll: hand out what came, return the receipts."""
        answer = self._sqs.receive_message(
            QueueUrl=self._queue_url, MaxNumberOfMessages=BATCH, WaitTimeSeconds=self._wait_s
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
        batch, rest = receipts[:BATCH], receipts[BATCH:]
        entries = [{"Id": str(n), "ReceiptHandle": receipt} for n, receipt in enumerate(batch)]
        self._sqs.delete_message_batch(QueueUrl=self._queue_url, Entries=entries)
        return rest

    def _back_off(self, error: Exception, failures: int) -> None:
        """Pause before the next try, longer each time; look the queue up again in case it was made anew."""
        self.__dict__.pop("_queue_url", None)
        pause_s = min(10.0, 0.2 * 2 ** min(failures, 6)) * random.uniform(0.5, 1.0)
        logger.warning("reading the response queue %s failed, again in %.1f s: %s", self.queue_name, pause_s, error)
        time.sleep(pause_s)
