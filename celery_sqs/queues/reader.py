"""One thread that reads a queue for a whole process, while somebody expects something from it."""

from __future__ import annotations

import logging
import random
import threading
import time
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from celery_sqs.aws import Aws
from celery_sqs.hooks import Life
from celery_sqs.queues.temporary import NOTE_EVERY_S, temporary_queues

logger = logging.getLogger(__name__)

BATCH = 10
"""SQS hands out and deletes at most this many messages a call."""

GATHER_S = 0.0025
GATHER_MAX_S = 0.25
"""While more than a batch of messages is expected, pause this long for each (and no longer than that) after a receive
that was not full: several messages come with one billed call, and 1 % is added to a wait that is long anyway."""

DELETE_WITHIN_S = 1.0
"""Received messages are deleted in tens, or after this long."""

LEFT_S = 1
"""A message for another process is out of sight for so long: its reader is between two polls now and then."""

SOON = 6
"""After so many deliveries it is left for a second longer each time: who wanted it may be gone, and it would fill the
polls of all others."""

KEEP_EVERY_S = NOTE_EVERY_S / 4
"""How often a reader to whom nothing comes looks whether it is time to note that its queue is in use."""


class QueueReader(ABC):
    """Reads `queue_name`, which it makes if it is not there. Any thread may call any method.

    A subclass keeps what is expected, under the lock of `_changed`, and takes the messages in.
    """

    def __init__(self, aws: Aws, queue_name: str, *, wait_s: int, life: Life) -> None:
        self._aws, self.queue_name = aws, queue_name
        self._wait_s, self._life = wait_s, life
        self._changed = threading.Condition()
        self._reader: threading.Thread | None = None
        self._closed = False
        self.trouble = ""
        """Why the queue cannot be read at the moment; empty while it can."""

    @abstractmethod
    def _missing(self) -> int:
        """How many messages are expected. Called with the lock held."""

    @abstractmethod
    def _deliver(self, body: str, *, delivery: int) -> bool:
        """Take a message in, which SQS hands out for the `delivery`-th time. Called without the lock.

        It is deleted afterwards, or, if this is False, left to another process that reads the same queue.
        """

    def _tidy(self) -> None:  # noqa: B027 - not every subclass has something to tidy
        """Forget what is not expected any more. Called with the lock held, now and then."""

    def close(self, *, delete_queue: bool) -> None:
        """Stop reading. With `delete_queue` the queue goes too."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify()
        if delete_queue and "_queue_url" in self.__dict__:
            temporary_queues.delete(self._queue_url)

    @cached_property
    def _sqs(self) -> Any:
        return self._aws.client("sqs")

    @cached_property
    def _queue_url(self) -> str:
        if self._life == "process":
            return temporary_queues.make(self._aws, self.queue_name)
        try:
            url = str(self._sqs.get_queue_url(QueueName=self.queue_name)["QueueUrl"])
        except self._sqs.exceptions.QueueDoesNotExist:
            logger.info("creating the queue %s", self.queue_name)
            if self._life == "place":
                return temporary_queues.make(self._aws, self.queue_name, stays=True)
            return str(self._sqs.create_queue(QueueName=self.queue_name)["QueueUrl"])
        if self._life == "place":
            temporary_queues.adopt(self._aws, url, stays=True)
        return url

    def _ensure_queue(self) -> None:
        """Raises botocore's errors when there is no queue to read, and none can be made."""
        if not temporary_queues.use(self._queue_url):
            # Nobody used it for so long that it was taken for a dead process's.
            self.__dict__.pop("_queue_url", None)
            _ = self._queue_url

    def _wake(self) -> None:
        """Something is expected now. Called with the lock held."""
        if self._reader is None:
            self._reader = threading.Thread(target=self._read, name=f"reads {self.queue_name}", daemon=True)
            self._reader.start()
        self._changed.notify()

    def _read(self) -> None:
        """The reader thread: receive while messages are expected, delete what was received, else sleep."""
        received: list[str] = []
        deleted_s = time.monotonic()
        failures = 0
        while not self._closed:
            expecting = self._sleep_until_needed(wake=bool(received))
            try:
                if not expecting:
                    self._keep_queue()
                fresh = self._receive() if expecting else []
                received += fresh
                overdue = not expecting or time.monotonic() - deleted_s > DELETE_WITHIN_S
                if len(received) >= BATCH or (received and overdue):
                    received, deleted_s = self._delete(received), time.monotonic()
                failures, self.trouble = 0, ""
            except Exception as error:  # this thread must not end: everybody waits for it
                failures += 1
                # Messages that are not deleted come again and are dropped as late.
                received = received if expecting else []
                self._back_off(error, failures)
                continue
            if expecting > BATCH and len(fresh) < BATCH:
                time.sleep(min(GATHER_MAX_S, expecting * GATHER_S))

    def _sleep_until_needed(self, *, wake: bool) -> int:
        """Sleep until a message is expected (not at all with `wake`), or for `KEEP_EVERY_S`; returns how many are."""
        with self._changed:
            self._tidy()
            if not (wake or self._closed or self._missing()):
                self._changed.wait(KEEP_EVERY_S)
                self._tidy()
            return self._missing()

    def _keep_queue(self) -> None:
        """Note now and then that the queue is in use although nothing is expected from it."""
        if "_queue_url" in self.__dict__ and not temporary_queues.use(self._queue_url):
            self.__dict__.pop("_queue_url", None)

    def _receive(self) -> list[str]:
        """One long poll: hand out what came, return the receipts."""
        temporary_queues.use(self._queue_url)
        answer = self._sqs.receive_message(
            QueueUrl=self._queue_url,
            MaxNumberOfMessages=BATCH,
            WaitTimeSeconds=self._wait_s,
            MessageSystemAttributeNames=["ApproximateReceiveCount"],
        )
        taken: list[str] = []
        others: dict[str, int] = {}
        for message in answer.get("Messages", ()):
            delivery = int(message.get("Attributes", {}).get("ApproximateReceiveCount", 1))
            if self._deliver(message["Body"], delivery=delivery):
                taken.append(message["ReceiptHandle"])
            else:
                others[message["ReceiptHandle"]] = LEFT_S + max(0, delivery - SOON)
        self._leave(others)
        return taken

    def _leave(self, others: dict[str, int]) -> None:
        """Let another process have these messages (receipt to seconds from now); late if this fails."""
        entries = [
            {"Id": str(n), "ReceiptHandle": receipt, "VisibilityTimeout": seconds}
            for n, (receipt, seconds) in enumerate(others.items())
        ]
        try:
            if entries:
                self._sqs.change_message_visibility_batch(QueueUrl=self._queue_url, Entries=entries)
        except (BotoCoreError, ClientError) as error:
            logger.warning("%d messages of another process come late: %s", len(entries), error)

    def _delete(self, receipts: list[str]) -> list[str]:
        """Delete one batch; returns what is left to delete."""
        batch, rest = receipts[:BATCH], receipts[BATCH:]
        entries = [{"Id": str(n), "ReceiptHandle": receipt} for n, receipt in enumerate(batch)]
        self._sqs.delete_message_batch(QueueUrl=self._queue_url, Entries=entries)
        return rest

    def _back_off(self, error: Exception, failures: int) -> None:
        """Pause before the next try, longer each time; look the queue up again in case it was made anew."""
        self.__dict__.pop("_queue_url", None)
        self.trouble = f"the queue {self.queue_name} cannot be read: {error}"
        pause_s = min(10.0, 0.2 * 2 ** min(failures, 6)) * random.uniform(0.5, 1.0)  # nosec B311 # jitter
        logger.warning("reading the queue %s failed, again in %.1f s: %s", self.queue_name, pause_s, error)
        time.sleep(pause_s)
