"""Deletes the queues and subscriptions that killed processes left behind.

The scaler that leads runs it now and then, or one of the workers (`celery_sqs.queues.sweeper`), or `python -m
celery_sqs sweep`. An owner that lives notes every ten minutes that its queue is in use (`celery_sqs.queues.temporary`),
also while nothing comes. What looks abandoned is deleted if it does so later, too.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from celery_sqs.clocks import answered_s
from celery_sqs.errors import Error
from celery_sqs.options import Options
from celery_sqs.queues.temporary import ABANDONED_S, GONE, NOTE_EVERY_S, code_of
from celery_sqs.queues.urls import queue_urls
from celery_sqs.transport.fanout import FANOUT_EXCHANGES, arn, topic_name

logger = logging.getLogger(__name__)

EVERY_S = 600.0
LOOKS_APART_S = 1.5 * NOTE_EVERY_S
"""Longer than an owner takes to note that it is there, and AWS to tell so."""


class Suspects:
    """What looked abandoned, and since when: nothing is deleted at first sight.

    A tag that was just written may be read as it was (AWS takes up to a minute), and a machine that was asleep finds
    every queue unused when it wakes, its own included. What has the same `sign` after `apart_s` is nobody's: owners
    note that they are there more often than that.
    """

    def __init__(self, *, apart_s: float = LOOKS_APART_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._apart_s, self._clock = apart_s, clock
        self._seen: dict[str, tuple[str, float]] = {}
        self._looked: set[str] = set()

    @property
    def names(self) -> list[str]:
        """What looked abandoned in the last look: queues' names and subscriptions' ARNs."""
        return [what.rpartition("/")[2] for what in self._seen]

    def begin(self) -> None:
        """A look at everything begins; one before it that came to no end says nothing."""
        self._looked = set()

    def confirmed(self, what: str, *, sign: str = "") -> bool:
        """Note that `what` looks abandoned; whether it did so `apart_s` ago, with the same sign."""
        self._looked.add(what)
        known = self._seen.get(what)
        if known is None or known[0] != sign:
            known = self._seen[what] = sign, self._clock()
        return self._clock() - known[1] >= self._apart_s

    def end(self) -> None:
        """The look is over: what did not look abandoned in it is no suspect any more."""
        self._seen = {what: known for what, known in self._seen.items() if what in self._looked}


class Janitor:
    """Does the chores in a thread of its own while `leads()` is true, until `stop`.

    No chore keeps another from being done, or ends the thread. Its errors go to `on_error` (the chore's name and the
    kind of error), and into the log when they are new, with a traceback unless they are `expected`.
    """

    def __init__(
        self,
        options: Options,
        *,
        leads: Callable[[], bool],
        chores: Mapping[str, Callable[[], object]] = MappingProxyType({}),
        on_error: Callable[[str, str], None] = lambda *_: None,
        every_s: float = EVERY_S,
        expected: tuple[type[Exception], ...] = (),
    ) -> None:
        suspects = Suspects()
        self._chores = {"sweep": lambda: sweep(options, suspects), **chores}
        self._leads, self._on_error, self._every_s = leads, on_error, every_s
        self._expected = BotoCoreError, ClientError, Error, *expected
        self._trouble: dict[str, str] = {}
        self._stop = threading.Event()
        # A daemon: an answer that does not come keeps nobody from ending.
        self._thread = threading.Thread(target=self._run, name="janitor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s * random.uniform(0.75, 1.25)):  # nosec B311 # processes begin together
            for name in self._chores:
                self._do(name)

    def _do(self, name: str) -> None:
        try:
            if self._leads():
                self._chores[name]()
                self._trouble.pop(name, None)
        except Exception as error:  # whatever it was: the next round tries again, and the other chores are to be done
            kind = code_of(error) if isinstance(error, ClientError) else type(error).__name__
            self._on_error(name, kind)
            if self._trouble.get(name) != kind:
                self._trouble[name] = kind
                expected = isinstance(error, self._expected)
                logger.warning("the janitor's %s failed, and is tried again: %s", name, error, exc_info=not expected)


def sweep(options: Options, suspects: Suspects, *, abandoned_s: float = ABANDONED_S) -> list[str]:
    """Delete the application's temporary queues that nobody has used for `abandoned_s`, and subscriptions without a
    queue, if the `suspects` of earlier sweeps confirm it.

    Returns what was deleted: names of queues and ARNs of subscriptions. What it may not look at or delete is left, and
    logged. Raises botocore's errors when a list or the first work queue cannot be had.
    """
    sqs, sns = options.aws.client("sqs"), options.aws.client("sns")
    deleted = []
    suspects.begin()
    for url in queue_urls(sqs, options.queue_name_prefix):
        with _tolerance(url):
            used = _abandoned_since(sqs, url, options.used_tag, abandoned_s)
            if used and suspects.confirmed(url, sign=used):
                sqs.delete_queue(QueueUrl=url)
                deleted.append(url.rpartition("/")[2])
    work_queue = sqs.get_queue_url(QueueName=options.queue_name_prefix + options.queues[0])["QueueUrl"]
    # Other queues, and other accounts', may listen, too.
    ours = arn(sqs, "sqs", work_queue, options.queue_name_prefix)
    for exchange in FANOUT_EXCHANGES:
        topic = arn(sns, "sns", work_queue, topic_name(options.prefix, exchange))
        for subscription, endpoint in _subscriptions(sns, topic):
            with _tolerance(subscription):
                gone = endpoint.startswith(ours) and not _exists(sqs, endpoint.rpartition(":")[2])
                if gone and suspects.confirmed(subscription):
                    sns.unsubscribe(SubscriptionArn=subscription)
                    deleted.append(subscription)
    suspects.end()
    if deleted:
        logger.info("deleted what killed processes had left behind: %s", ", ".join(deleted))
    return deleted


@contextmanager
def _tolerance(what: str) -> Iterator[None]:
    # Prefixes can begin alike: the queues of a stack "faceapp-test" are listed for "faceapp", whose role may not look
    # at them.
    try:
        yield
    except ClientError as error:
        logger.info("the janitor leaves %s as it is: %s", what, error)


def _abandoned_since(sqs: Any, url: str, tag: str, abandoned_s: float) -> str:
    """The last use, as its tag says it, of a temporary queue that was not used for so long; empty for others."""
    try:
        answer = sqs.list_queue_tags(QueueUrl=url)
    except ClientError as error:
        if code_of(error) in GONE:
            return ""
        raise
    used_s = str(answer.get("Tags", {}).get(tag, ""))
    # By SQS's clock, as the tag is: this machine's may be hours ahead, and every queue would look abandoned.
    old = used_s.isdecimal() and answered_s(answer) - int(used_s) > abandoned_s
    return used_s if old else ""


def _exists(sqs: Any, name: str) -> bool:
    # Asked one by one: a list of queues may be a minute old.
    try:
        sqs.get_queue_url(QueueName=name)
    except ClientError as error:
        if code_of(error) in GONE:
            return False
        raise
    return True


def _subscriptions(sns: Any, topic: str) -> Iterator[tuple[str, str]]:
    """The ARNs of a topic's subscriptions and of the queues that they feed."""
    try:
        for page in sns.get_paginator("list_subscriptions_by_topic").paginate(TopicArn=topic):
            for each in page["Subscriptions"]:
                if each["Protocol"] == "sqs" and each["SubscriptionArn"].startswith("arn:"):
                    yield each["SubscriptionArn"], each["Endpoint"]
    except ClientError as error:
        if code_of(error) not in ("NotFound", "NotFoundException"):
            raise
