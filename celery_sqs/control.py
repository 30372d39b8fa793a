"""Asking the workers: Celery's remote control, whose answers come back over one queue and one reader a process.

kombu makes a queue for each question and deletes it afterwards, which SQS takes seconds for (many stay behind:
celery/celery#8348), and two threads that ask at the same time (Flower asks four things at once) can take each
other's answers.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import celery.app.control
from kombu import pidbox

from celery_sqs import options
from celery_sqs.aws import Aws
from celery_sqs.queues.reader import QueueReader
from celery_sqs.queues.temporary import temporary_queues
from celery_sqs.transport.fanout import REPLY_EXCHANGE
from celery_sqs.transport.messages import content, decoded

logger = logging.getLogger(__name__)


@dataclass
class Question:
    """A question that waits for `expected` answers (None: nobody knows how many)."""

    expected: int | None
    answers: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)

    def take(self, timeout_s: float | None, callback: Callable[[Any], Any] | None = None) -> Iterator[Any]:
        """The answers as they come: all that are expected, or those that come within `timeout_s`."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        count = 0
        while self.expected is None or count < self.expected:
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            try:
                answer = self.answers.get(timeout=left_s)
            except queue.Empty:
                return
            count += 1
            if callback:
                callback(answer)
            yield answer


def _routing_key() -> str:
    """A new name for a process's replies.

    A prefix has no underscore, so that the roles' pattern `<prefix>-reply_*` is no queue of a stack whose prefix begins
    with this one's.
    """
    return f"reply_{uuid.uuid4().hex[:12]}"


class Replies(QueueReader):
    """The answers to this process's questions, by ticket. Any thread may call any method."""

    def __init__(self, aws: Aws, prefix: str, *, wait_s: int) -> None:
        self._prefix = prefix
        self._naming = threading.Lock()
        self.routing_key = _routing_key()
        super().__init__(aws, self._name(), wait_s=wait_s, life="process")
        self._questions: dict[str, Question] = {}

    def _name(self) -> str:
        return f"{self._prefix}{self.routing_key}-{REPLY_EXCHANGE.replace('.', '-')}"

    def _ensure_queue(self) -> None:
        with self._naming:
            super()._ensure_queue()
            if not self._queue_url.endswith(f"/{self.queue_name}"):
                # The janitor gave the name up less than a minute ago. Workers find the queue by its name alone.
                temporary_queues.delete(self.__dict__.pop("_queue_url"))
                self.routing_key = _routing_key()
                self.queue_name = self._name()
                super()._ensure_queue()

    @contextmanager
    def question(self, ticket: str, *, expected: int | None) -> Iterator[Question]:
        """Take answers to `ticket` in while the block runs. Raises botocore's errors when there is no queue."""
        self._ensure_queue()
        with self._changed:
            question = self._questions[ticket] = Question(expected)
            self._wake()
        try:
            yield question
        finally:
            with self._changed:
                del self._questions[ticket]

    def _missing(self) -> int:
        return len(self._questions)

    def _deliver(self, body: str, *, delivery: int) -> bool:
        try:
            message = decoded(body)
            ticket, answer = str(message["headers"]["ticket"]), content(message)
        except (ValueError, TypeError, KeyError, RecursionError):
            logger.warning("dropped a reply that is not one (%d bytes)", len(body))
            return True
        with self._changed:
            if question := self._questions.get(ticket):
                question.answers.put(answer)
        return True


class Mailbox(pidbox.Mailbox):
    """kombu's, whose replies come through `replies`."""

    replies: Callable[[], Replies]

    def _broadcast(
        self,
        command: str,
        arguments: dict[str, Any] | None = None,
        destination: list[str] | tuple[str, ...] | None = None,
        reply: bool = False,
        timeout: float | None = 1,
        limit: int | None = None,
        callback: Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> list[Any] | None:
        if not reply:
            super()._broadcast(command, arguments, destination, **options)
            return None
        expected = limit or (len(destination) if destination else None)
        ticket = str(uuid.uuid4())
        with self.replies().question(ticket, expected=expected) as question:
            self._ask(command, arguments or {}, destination, ticket, **options)
            return list(question.take(timeout, callback))

    def _ask(
        self,
        command: str,
        arguments: dict[str, Any],
        destination: list[str] | tuple[str, ...] | None,
        ticket: str,
        *,
        channel: Any = None,
        serializer: str | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> None:
        """Publish the question; kombu's own way would also make a queue for the answers."""
        question = {
            "method": command,
            "arguments": arguments,
            "destination": destination,
            "pattern": pattern,
            "matcher": matcher,
            "ticket": ticket,
            "reply_to": {"exchange": self.reply_exchange.name, "routing_key": self.replies().routing_key},
        }
        with self.producer_or_acquire(None, channel or self.connection.default_channel) as producer:
            producer.publish(
                question,
                exchange=self.exchange.name,
                declare=[self.exchange],
                headers={"clock": self.clock.forward()},
                serializer=serializer or self.serializer,
                retry=True,
            )


class Control(celery.app.control.Control):
    """Celery's, with one reader for all of this process's questions."""

    Mailbox = Mailbox

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self._lock = threading.Lock()
        self._own: tuple[int, Replies] | None = None
        self.mailbox.replies = self._replies

    def _replies(self) -> Replies:
        """This process's reader; a forked child gets its own."""
        with self._lock:
            if self._own is None or self._own[0] != os.getpid():
                own = options.of(self.app)
                self._own = os.getpid(), Replies(own.aws, own.queue_name_prefix, wait_s=own.wait_s)
            return self._own[1]
