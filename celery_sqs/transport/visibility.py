"""Keeping a message out of others' sight for as long as its task is held here.

SQS shows a message again when its visibility timeout is over, done or not (celery/celery#7651, #5072). One thread a
channel extends it, since a worker's event loop may be at work itself (`--pool solo`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger(__name__)

BATCH = 10
"""Messages whose visibility SQS changes with one call."""
LONGEST_S = 12 * 3600
"""SQS shows a message again so long after it was received, whatever is asked of it."""
AGAIN_S = 2.0
"""Until the next try where extending failed."""
PART = 0.5
"""Of its visibility timeout is over when a message's is extended."""


@dataclass
class _Held:
    url: str
    visibility_s: int
    received_s: float = field(default_factory=time.monotonic)
    extended_s: float = field(default_factory=time.monotonic)

    @property
    def due_s(self) -> float:
        return self.extended_s + PART * self.visibility_s

    @property
    def next_s(self) -> int:
        """How long it may stay out of sight from now on."""
        left_s = self.received_s + LONGEST_S - 1 - time.monotonic()
        return int(min(self.visibility_s, left_s))


class Keeper:
    """Extends the visibility of what is held. Any thread may call any method.

    `client` makes a quick SQS client for a queue's URL.
    """

    def __init__(self, client: Callable[[str], Any]) -> None:
        self._client = client
        self._changed = threading.Condition()
        self._held: dict[str, _Held] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def hold(self, receipt: str, url: str, visibility_s: int) -> None:
        """Keep the message with this receipt, from the queue at `url`, out of sight until `drop`."""
        with self._changed:
            self._held[receipt] = _Held(url, visibility_s)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="extends visibility", daemon=True)
                self._thread.start()
            self._changed.notify()

    def drop(self, receipt: str) -> None:
        """The message is done, or others' again."""
        with self._changed:
            self._held.pop(receipt, None)

    def close(self) -> None:
        """Extend nothing any more."""
        with self._changed:
            self._closed = True
            self._held.clear()
            self._changed.notify()

    def _run(self) -> None:
        while not self._closed:
            for url, due in self._due().items():
                for start in range(0, len(due), BATCH):
                    self._extend(url, due[start : start + BATCH])

    def _due(self) -> dict[str, list[tuple[str, int]]]:
        """Wait until something is due; what is, by queue."""
        with self._changed:
            next_s = min((each.due_s for each in self._held.values()), default=None)
            if next_s is None or next_s > time.monotonic():
                self._changed.wait(None if next_s is None else next_s - time.monotonic())
            found: dict[str, list[tuple[str, int]]] = {}
            now_s = time.monotonic()
            for receipt, held in list(self._held.items()):
                if held.due_s > now_s:
                    continue
                if held.next_s <= 0:
                    logger.warning("a message has been held for SQS's 12 hours, and is delivered again")
                    del self._held[receipt]
                    continue
                held.extended_s = now_s
                found.setdefault(held.url, []).append((receipt, held.next_s))
            return found

    def _extend(self, url: str, due: list[tuple[str, int]]) -> None:
        entries = [
            {"Id": str(n), "ReceiptHandle": receipt, "VisibilityTimeout": seconds}
            for n, (receipt, seconds) in enumerate(due)
        ]
        try:
            failed = self._client(url).change_message_visibility_batch(QueueUrl=url, Entries=entries).get("Failed", ())
        except Exception as error:  # this thread must not end: what is held would be delivered again
            logger.warning("the visibility of %d messages is not extended, again in %g s: %r", len(due), AGAIN_S, error)
            self._again([receipt for receipt, _ in due])
            return
        # A receipt that is no good any more was deleted, or is another's already; the rest is AWS's own trouble.
        for each in failed:
            if each.get("SenderFault"):
                self.drop(due[int(each["Id"])][0])
        self._again([due[int(each["Id"])][0] for each in failed if not each.get("SenderFault")])

    def _again(self, receipts: list[str]) -> None:
        """Make these due once more, soon."""
        with self._changed:
            for receipt in receipts:
                if held := self._held.get(receipt):
                    held.extended_s = time.monotonic() + AGAIN_S - PART * held.visibility_s
