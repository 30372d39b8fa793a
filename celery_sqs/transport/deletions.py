"""Deleting the messages whose tasks are done: ten with one call, or soon."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from botocore.exceptions import BotoCoreError, ClientError

from celery_sqs.transport.offload import OBJECT, Offload
from celery_sqs.transport.visibility import Keeper

logger = logging.getLogger(__name__)

WITHIN_S = 0.5
"""A done task's message is deleted with nine others, or after this long."""
BATCH = 10


class Done(NamedTuple):
    """A message whose task is done: its queue, its receipt, and the object in S3 that has its text, if one has."""

    url: str
    receipt: str
    object: str = ""

    @classmethod
    def of(cls, url: str, message: dict[str, Any]) -> Done:
        """A received message of the queue at `url`."""
        return cls(url, message["ReceiptHandle"], message.get(OBJECT, ""))


class Deletions:
    """A channel's. Any thread may call any method: those of a pool acknowledge, too.

    `client` makes a quick SQS client for a queue's URL; `later` calls something after so many seconds, where there is
    an event loop.
    """

    def __init__(
        self,
        client: Callable[[str], Any],
        keeper: Keeper,
        offload: Callable[[], Offload],
        later: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._client, self._keeper, self._offload, self._later = client, keeper, offload, later
        self._lock = threading.Lock()
        self._done: list[Done] = []
        self._from_s = 0.0

    @property
    def waiting_s(self) -> float:
        """How long the first that is to be deleted has waited; 0 when there is none."""
        return time.monotonic() - self._from_s if self._done else 0.0

    def add(self, done: Done) -> None:
        """Delete the message soon."""
        with self._lock:
            self._done.append(done)
            count = len(self._done)
        if count >= BATCH or done.url.endswith(".fifo"):  # for which its group waits
            self.flush()
        elif count == 1:
            self._from_s = time.monotonic()
            self._later(WITHIN_S, self.flush)

    def flush(self) -> None:
        """Delete all of them. One that stays is delivered again, and done again."""
        with self._lock:
            todo, self._done = self._done, []
        for url in {each.url for each in todo}:
            self._delete(url, [each for each in todo if each.url == url])

    def _delete(self, url: str, done: list[Done]) -> None:
        entries = [{"Id": str(n), "ReceiptHandle": each.receipt} for n, each in enumerate(done)]
        try:
            failed = self._client(url).delete_message_batch(QueueUrl=url, Entries=entries).get("Failed", [])
            kept = {each["Id"] for each in failed}
        except (BotoCoreError, ClientError) as error:
            failed, kept = [str(error)], {each["Id"] for each in entries}
        for each in done:
            self._keeper.drop(each.receipt)
        if failed:
            logger.warning("could not delete all of %d messages whose tasks are done: %s", len(entries), failed)
        # Afterwards: a message that stays is delivered again, and needs its text.
        self._offload().delete(each.object for n, each in enumerate(done) if each.object and str(n) not in kept)
