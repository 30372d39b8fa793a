"""Deletes the queues and subscriptions that killed processes left behind.

The scaler that leads runs it now and then. An owner that lives notes every ten minutes that its queue is in use
(`faceapp.broker.temporary`); who was only asleep makes its queue anew.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from faceapp.broker.clients import queue_urls, sns_client, sqs_client
from faceapp.broker.fanout import FANOUT_EXCHANGES, arn, topic_name
from faceapp.broker.temporary import ABANDONED_S, GONE, TAG, code_of
from faceapp.clocks import answered_s
from faceapp.config import Settings

logger = logging.getLogger(__name__)

EVERY_S = 600.0


class Janitor:
    """Sweeps in a thread of its own while `leads()` is true, until `stop`."""

    def __init__(self, settings: Settings, *, leads: Callable[[], bool]) -> None:
        self._settings, self._leads = settings, leads
        self._stop = threading.Event()
        # A daemon: an answer that does not come keeps nobody from ending.
        self._thread = threading.Thread(target=self._run, name="janitor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            try:
                if self._leads():
                    sweep(self._settings)
            except (BotoCoreError, ClientError) as error:
                logger.warning("could not look for abandoned queues: %s", error)


def sweep(settings: Settings, *, abandoned_s: float = ABANDONED_S) -> list[str]:
    """Delete the stack's temporary queues that nobody has used for `abandoned_s`, and subscriptions without a queue.

    Returns what was deleted: names of queues and ARNs of subscriptions. What it may not look at or delete is left, and
    logged. Raises botocore's errors when a list or the request queue cannot be had.
    """
    sqs, sns = sqs_client(), sns_client()
    deleted = []
    for url in queue_urls(sqs, f"{settings.prefix}-"):
        with _tolerance(url):
            if _is_abandoned(sqs, url, abandoned_s):
                sqs.delete_queue(QueueUrl=url)
                deleted.append(url.rpartition("/")[2])
    request_queue = sqs.get_queue_url(QueueName=settings.request_queue)["QueueUrl"]
    # Other queues, and other accounts', may listen, too.
    ours = arn(sqs, "sqs", request_queue, f"{settings.prefix}-")
    for exchange in FANOUT_EXCHANGES:
        topic = arn(sns, "sns", request_queue, topic_name(settings.prefix, exchange))
        for subscription, endpoint in _subscriptions(sns, topic):
            with _tolerance(subscription):
                if endpoint.startswith(ours) and not _exists(sqs, endpoint.rpartition(":")[2]):
                    sns.unsubscribe(SubscriptionArn=subscription)
                    deleted.append(subscription)
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


def _is_abandoned(sqs: Any, url: str, abandoned_s: float) -> bool:
    """Whether it is a temporary queue that was not used for so long."""
    try:
        answer = sqs.list_queue_tags(QueueUrl=url)
    except ClientError as error:
        if code_of(error) in GONE:
            return False
        raise
    used_s = answer.get("Tags", {}).get(TAG, "")
    # By SQS's clock, as the tag is: this machine's may be hours ahead, and every queue would look abandoned.
    return used_s.isdigit() and answered_s(answer) - int(used_s) > abandoned_s


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
