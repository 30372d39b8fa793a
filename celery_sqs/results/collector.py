"""One thread that reads a process's response queue and hands each answer to the thread that waits for it."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from celery import states

from celery_sqs.aws import Aws
from celery_sqs.errors import ResultsUnavailable
from celery_sqs.hooks import Hooks, Life
from celery_sqs.queues.reader import QueueReader

logger = logging.getLogger(__name__)

FORGET_AFTER_S = 3600.0
"""An answer that nobody fetches is kept this long."""
ASKED = 10_000
"""A process knows its own late and doubled answers by the last ids that it asked for."""
KEPT_BYTES = 64 * 2**20
"""Of answers that nobody waits for at the moment: to handles that are gone (Celery makes two for each member of a
group, and drops one), and to tasks that others sent for this process, such as the end of a chain."""
ENCODED = "encoded"
"""In a reply: what Celery made of the result, in base64, where its serializer is not JSON."""
DELIVERIES = 30
"""An answer that is not for this process is left to others, until it was delivered so often: they are gone then. With
two processes, one answer of a thousand million meets the wrong one every time; that takes it five minutes."""


@dataclass
class _Pending:
    """One expected answer."""

    arrived: threading.Event = field(default_factory=threading.Event)
    meta: dict[str, Any] | None = None
    waiting: int = 0
    looked: bool = False
    """Whether somebody has waited for it, or asked."""
    idle: bool = False
    """Whether its handle is gone: it is kept if it comes, and nobody asks SQS for its sake."""
    size: int = 0
    since_s: float = field(default_factory=time.monotonic)


class Collector(QueueReader):
    """Reads one response queue for a whole process. Any thread may call any method.

    `counts` says what became of the messages: `delivered`, `late` (nobody waits: late or doubled), `corrupt`, and
    `left` to another process that reads the same queue, as a second web server without a name does.
    """

    def __init__(
        self,
        aws: Aws,
        queue_name: str,
        *,
        wait_s: int,
        life: Life = "stack",
        advice: str = Hooks.advice_on_shared_replies,
    ) -> None:
        super().__init__(aws, queue_name, wait_s=wait_s, life=life)
        self._advice = advice
        self.counts: Counter[str] = Counter()
        self._pending: dict[str, _Pending] = {}
        self._asked: dict[str, None] = {}  # oldest first
        self._forgotten: deque[str] = deque()
        self._came = threading.Condition()
        self._arrivals = 0

    @property
    def waiting(self) -> int:
        """How many answers are still to come."""
        with self._changed:
            return self._missing()

    def expect(self, task_id: str) -> None:
        """Keep the answer to `task_id` when it comes. Raises ResultsUnavailable when there is no queue to read."""
        try:
            self._ensure_queue()
        except (BotoCoreError, ClientError) as error:
            message = f"No answer can come, there is no reply queue {self.queue_name}: {error}"
            raise ResultsUnavailable(message, passing=not isinstance(error, ClientError)) from error
        with self._changed:
            # A task that is sent once more under its id: the forgotten answer is not this one's.
            self._tidy()
            if task_id not in self._pending or self._pending[task_id].idle:
                self._pending[task_id] = _Pending()
            self._asked[task_id] = None
            if len(self._asked) > ASKED:
                del self._asked[next(iter(self._asked))]
            self._wake()

    def _ensure_queue(self) -> None:
        super()._ensure_queue()
        # It has another name where its own was given up less than a minute ago.
        self.queue_name = self._queue_url.rpartition("/")[2]

    def expects(self, task_id: str) -> bool:
        """Whether this process sent the task and waits for its answer, or has it."""
        return task_id in self._pending

    def expect_another(self, task_id: str, *, corrupt: bool) -> None:
        """The answer to `task_id` was of no use to who waits for it (`corrupt`: it cannot be read): keep the next."""
        with self._changed:
            self.counts["corrupt"] += corrupt
            self._pending[task_id] = _Pending()
            self._wake()

    def wait(self, task_id: str, timeout_s: float | None) -> dict[str, Any] | None:
        """The answer's meta as Celery encodes it, or None when it does not come within `timeout_s`."""
        with self._changed:
            pending = self._pending.setdefault(task_id, _Pending())
            pending.waiting += 1
            pending.looked, pending.idle = True, False
            self._wake()
        try:
            pending.arrived.wait(timeout_s)
            return pending.meta
        finally:
            with self._changed:
                pending.waiting -= 1

    def wait_any(self, task_ids: Iterable[str], timeout_s: float) -> None:
        """Return when the answer to one of the tasks is here, or another has just come, or after `timeout_s`."""
        with self._came:
            seen = self._arrivals
        with self._changed:
            pending = [self._pending.setdefault(task_id, _Pending()) for task_id in task_ids]
            for each in pending:
                each.waiting += 1
                each.looked, each.idle = True, False
            self._wake()
        try:
            with self._came:
                if not any(each.arrived.is_set() for each in pending):
                    self._came.wait_for(lambda: self._arrivals != seen, timeout_s)
        finally:
            with self._changed:
                for each in pending:
                    each.waiting -= 1

    def peek(self, task_id: str) -> dict[str, Any] | None:
        """The answer's meta if it has come."""
        with self._changed:
            pending = self._pending.get(task_id)
            if pending is None:
                return None
            pending.looked = True
            if pending.idle and not pending.arrived.is_set():
                pending.idle = False
                self._wake()
            return pending.meta

    def forget(self, task_id: str) -> None:
        """Expect `task_id` no longer, unless a thread waits for it."""
        # Called by AsyncResult's destructor too, so at any point of any code: only note it. Not what was never
        # expected: a process that waits for nothing would note each of its requests, and never tidy up.
        if task_id in self._pending:
            self._forgotten.append(task_id)

    def _missing(self) -> int:
        return sum(not (pending.idle or pending.arrived.is_set()) for pending in self._pending.values())

    def _tidy(self) -> None:
        too_old_s = time.monotonic() - FORGET_AFTER_S
        forgotten = [self._forgotten.popleft() for _ in range(len(self._forgotten))]
        forgotten += [
            task_id
            for task_id, pending in self._pending.items()
            if pending.since_s < too_old_s and (pending.arrived.is_set() or pending.idle)
        ]
        for task_id in forgotten:
            pending = self._pending.get(task_id)
            if pending is None or pending.waiting:
                continue
            if pending.looked or pending.since_s < too_old_s:
                del self._pending[task_id]
            else:
                pending.idle = True
        self._make_room()

    def _make_room(self) -> None:
        """Drop the oldest answers that nobody waits for when they are too many. Called with the lock held."""
        idle = [(task_id, each) for task_id, each in self._pending.items() if each.idle]
        too_many, size = len(idle) - ASKED, sum(each.size for _, each in idle)
        for n, (task_id, each) in enumerate(idle):
            if n >= too_many and size <= KEPT_BYTES:
                break
            del self._pending[task_id]
            size -= each.size

    def _deliver(self, body: str, *, delivery: int) -> bool:
        try:
            meta = json.loads(body)
            task_id, status = meta["task_id"], meta["status"]
            if not (isinstance(task_id, str) and isinstance(status, str)):
                raise TypeError("an answer's id and status are strings")
            if (
                status in states.EXCEPTION_STATES
                and ENCODED not in meta
                and not isinstance(meta["result"]["exc_type"], str)
            ):
                raise TypeError("a failure has an exception's name")
            meta.setdefault("result", None)
        except (ValueError, TypeError, KeyError, RecursionError):
            self.counts["corrupt"] += 1
            logger.warning("dropped an answer that is not one (%d bytes)", len(body))
            return True
        with self._changed:
            pending = self._pending.get(task_id)
            if pending is None and delivery < DELIVERIES and self._is_anothers(task_id):
                self.counts["left"] += 1
                return False
            if pending is None and self._life == "process" and task_id not in self._asked:
                pending = self._pending[task_id] = _Pending(idle=True)
            if pending is None or pending.arrived.is_set() or status not in states.READY_STATES:
                self.counts["late"] += 1
                return True
            self.counts["delivered"] += 1
            pending.meta, pending.size = meta, len(body)
            pending.arrived.set()
        with self._came:
            self._arrivals += 1
            self._came.notify_all()
        logger.debug("the answer to %s is here, request %s", task_id, meta.get("request_id", task_id))
        return True

    def _is_anothers(self, task_id: str) -> bool:
        """Whether another process may have asked for it. Called with the lock held."""
        if self._life == "process" or task_id in self._asked:
            return False
        if not self.counts["left"]:
            logger.warning("%s has answers for another process, which wait for it: %s", self.queue_name, self._advice)
        return True
