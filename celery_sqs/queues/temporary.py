"""Queues that a process makes for itself: its events, its remote control, the replies to it.

They are deleted when the process ends, or stay for the next one in its place. One that is killed leaves its queues
behind, so each carries a tag (`Aws.used_tag`) with the Unix time of its last use, in seconds, by SQS's clock, and
`celery_sqs.queues.janitor` deletes those that nobody has used for `ABANDONED_S`.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from celery import signals

from celery_sqs.aws import Aws
from celery_sqs.clocks import answered_s
from celery_sqs.errors import Error

logger = logging.getLogger(__name__)

NOTE_EVERY_S = 600.0
"""A queue in use says so this often: each time is a request."""
ABANDONED_S = 1800.0
"""A queue that has not said so for this long belongs to nobody any more."""

GONE = ("AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist", "NonExistentQueue")
DELETED_JUST_NOW = ("AWS.SimpleQueueService.QueueDeletedRecently", "QueueDeletedRecently")
CLOCKS_AGREE_S = 60.0
"""A clock that is further than this from SQS's is not believed: queues in use must not look abandoned."""
SECOND = "-2"
"""Ends the name to which a process falls back when its queue's name was given up less than a minute ago."""
LONGEST_NAME = 80 - len(SECOND)
"""Of a queue: SQS takes 80 characters."""


def code_of(error: ClientError) -> str:
    """The AWS error code."""
    return str(error.response.get("Error", {}).get("Code", ""))


@dataclass
class _Queue:
    aws: Aws
    began_s: float
    noted_s: float = field(default_factory=time.monotonic)
    subscriptions: set[str] = field(default_factory=set)
    stays: bool = False
    """Whether it outlives the process, for the next one in its place."""


class TemporaryQueues:
    """This process's temporary queues, by URL; a forked child starts with none. Any thread may call any method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._all: dict[str, _Queue] = {}

    @property
    def _queues(self) -> dict[str, _Queue]:
        if self._pid != os.getpid():
            self._pid, self._all, self._lock = os.getpid(), {}, threading.Lock()
        return self._all

    def make(self, aws: Aws, name: str, attributes: dict[str, str] | None = None, *, stays: bool = False) -> str:
        """Create the queue (or find it, if it is there with these attributes); returns its URL. One that `stays` is not
        deleted when the process ends.

        SQS gives a name again only a minute after its queue was deleted. A worker that is started anew does not wait
        for that: it takes the name with `SECOND` behind it. Raises ClientError.
        """
        sqs, tags = aws.shared("sqs"), {aws.used_tag: str(int(time.time()))}
        attributes = attributes or {}
        try:
            answer = sqs.create_queue(QueueName=name, Attributes=attributes, tags=tags)
        except ClientError as error:
            if code_of(error) not in DELETED_JUST_NOW:
                raise
            # Its policy names the queue that SNS may send to.
            attributes = {key: value.replace(f':{name}"', f':{name}{SECOND}"') for key, value in attributes.items()}
            answer = sqs.create_queue(QueueName=name + SECOND, Attributes=attributes, tags=tags)
        url = str(answer["QueueUrl"])
        self._add(url, aws, answered_s(answer), stays=stays)
        if abs(answered_s(answer) - time.time()) > CLOCKS_AGREE_S:
            self._note(url)
        return url

    def adopt(self, aws: Aws, url: str, *, stays: bool = False) -> None:
        """Take over a queue that is already there, if it is a temporary one: a predecessor's."""
        if url in self._queues:
            return
        try:
            answer = aws.shared("sqs").list_queue_tags(QueueUrl=url)
            if aws.used_tag not in answer.get("Tags", {}):
                return
        except ClientError as error:
            if not code_of(error).startswith("AccessDenied"):
                raise
            # A role that may not look at tags has no queues of its own: the stack's template made this one.
            return
        self._add(url, aws, answered_s(answer), stays=stays)
        self._note(url)

    def _add(self, url: str, aws: Aws, began_s: float, *, stays: bool = False) -> None:
        queues = self._queues  # first: a forked child gets another lock, too, since its parent may have held this one
        with self._lock:
            if not queues:
                atexit.register(self.delete_all)
                # A worker that was forked from a loaded process ends without its exit handlers.
                signals.worker_shutdown.connect(_delete_at_shutdown, dispatch_uid="celery_sqs.temporary")
            queues.setdefault(url, _Queue(aws, began_s, stays=stays))

    def began_s(self, url: str) -> float:
        """Since when (Unix time, SQS's) this process has the queue; 0 for one that is not its own."""
        queue = self._queues.get(url)
        return queue.began_s if queue else 0.0

    def subscribed(self, url: str, subscription: str) -> None:
        """Note a subscription (its ARN) that is to go with the queue."""
        if queue := self._queues.get(url):
            queue.subscriptions.add(subscription)

    def use(self, url: str) -> bool:
        """Note now and then that the queue is in use; False if it is this process's and does not exist any more."""
        queue = self._queues.get(url)
        if queue is None or time.monotonic() - queue.noted_s < NOTE_EVERY_S:
            return True
        return self._note(url)

    def _note(self, url: str) -> bool:
        queue = self._queues.get(url)
        if queue is None:
            return True
        queue.noted_s = time.monotonic()
        try:
            answer = _tag(queue.aws, url, time.time())
            if abs(answered_s(answer) - time.time()) > CLOCKS_AGREE_S:
                _tag(queue.aws, url, answered_s(answer))
        except ClientError as error:
            if code_of(error) in GONE:
                self._queues.pop(url, None)
                return False
            logger.warning("could not note that %s is in use: %s", url, error)
        except BotoCoreError as error:
            logger.warning("could not note that %s is in use: %s", url, error)
        return True

    def delete(self, url: str) -> None:
        """Delete a queue and its subscriptions. One that stays is the janitor's."""
        queue = self._queues.pop(url, None)
        if queue is None:
            return
        try:
            for subscription in queue.subscriptions:
                queue.aws.quick("sns").unsubscribe(SubscriptionArn=subscription)
        except (BotoCoreError, ClientError, Error) as error:
            logger.debug("the subscription of %s stays behind: %s", url, error)
        try:
            queue.aws.quick("sqs").delete_queue(QueueUrl=url)
        except (BotoCoreError, ClientError, Error) as error:  # at exit there may be no region any more
            logger.debug("the queue %s stays behind: %s", url, error)

    def delete_all(self) -> None:
        """Delete all of this process's that do not stay."""
        for url, queue in list(self._queues.items()):
            if not queue.stays:
                self.delete(url)


def _tag(aws: Aws, url: str, used_s: float) -> Mapping[str, Any]:
    answer: Mapping[str, Any] = aws.quick("sqs").tag_queue(QueueUrl=url, Tags={aws.used_tag: str(int(used_s))})
    return answer


temporary_queues = TemporaryQueues()
"""This process's."""


def _delete_at_shutdown(**_: Any) -> None:
    temporary_queues.delete_all()
