"""Events and remote control over SNS: topics that the stack's template made, and queues subscribed to them.

kombu's own code (celery/kombu#2372) asks SNS and SQS about every other subscriber each time a process starts, and makes
topics with tags that a topic of the template does not have, which SNS refuses. Here a process asks for nothing that it
can know: the topics' and queues' ARNs follow from a work queue's URL.
"""

from __future__ import annotations

import json
import logging
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import ClientError
from kombu.transport.SQS.SNS import SNS, _SnsSubscription

from celery_sqs.queues.temporary import code_of, temporary_queues

logger = logging.getLogger(__name__)

FANOUT_EXCHANGES = ("celeryev", "celery.pidbox")
"""Celery's exchanges for events and for commands to the workers."""
REPLY_EXCHANGE = "reply.celery.pidbox"
"""Celery's exchange for the answers of workers."""
RETENTION_S = 300
"""Events and commands that nobody took in are of no use after this long."""


def topic_name(prefix: str, exchange: str) -> str:
    """The name of an exchange's topic."""
    return f"{prefix}-{exchange.replace('.', '-')}"


def arn(client: Any, service: str, queue_url: str, name: str) -> str:
    """The ARN of a topic or queue called `name` in the account and region of the queue at `queue_url`."""
    account = urlsplit(queue_url).path.split("/")[-2]
    return f"arn:{client.meta.partition}:{service}:{client.meta.region_name}:{account}:{name}"


def listener_attributes(queue_arn: str, topics: list[str]) -> dict[str, str]:
    """The attributes of a queue that `topics` (ARNs) may send to, and nobody without TLS."""
    statements = [
        {
            "Effect": "Allow",
            "Principal": {"Service": "sns.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": queue_arn,
            "Condition": {"ArnEquals": {"aws:SourceArn": topics}},
        },
        {
            "Effect": "Deny",
            "Principal": "*",
            "Action": "sqs:*",
            "Resource": queue_arn,
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
        },
    ]
    return {
        "SqsManagedSseEnabled": "true",
        "Policy": json.dumps({"Version": "2012-10-17", "Statement": statements}),
    }


class Subscriptions(_SnsSubscription):
    def subscribe_queue(self, queue_name: str, exchange_name: str) -> str:
        """Subscribe the queue to the exchange's topic, as it may be already; the subscription's ARN."""
        key = f"{exchange_name}:{queue_name}"
        with self._lock:
            if key not in self._subscription_arn_cache:
                self._subscription_arn_cache[key] = self._subscribe(queue_name, exchange_name)
            return str(self._subscription_arn_cache[key])

    def _subscribe(self, queue_name: str, exchange_name: str) -> str:
        url, queue_arn = self.sns.channel.queue_of(queue_name)
        try:
            answer = self.sns.with_topic(
                exchange_name,
                lambda topic: self.sns.get_client().subscribe(
                    TopicArn=topic,
                    Protocol="sqs",
                    Endpoint=queue_arn,
                    Attributes={"RawMessageDelivery": "true"},
                    ReturnSubscriptionArn=True,
                ),
            )
        except ClientError as error:
            if not code_of(error).startswith(("AuthorizationError", "AccessDenied")):
                raise
            logger.info("not allowed to subscribe %s to %s: the stack has done it", queue_name, exchange_name)
            return ""
        subscription = str(answer["SubscriptionArn"])
        temporary_queues.subscribed(url, subscription)
        return subscription


class Fanout(SNS):
    """kombu's fanout over SNS, which asks for nothing that it can know."""

    def __init__(self, channel: Any) -> None:
        super().__init__(channel)
        self.subscriptions = Subscriptions(self)

    def initialise_exchange(self, exchange_name: str) -> None:
        # kombu looks here, at every start, for subscriptions whose queues are gone: two requests for each worker that
        # there is. The janitor does it now and then.
        return

    def publish(self, exchange_name: str, *args: Any, **kwargs: Any) -> None:
        publish = super().publish
        self.with_topic(exchange_name, lambda _: publish(exchange_name, *args, **kwargs))

    def with_topic(self, exchange_name: str, call: Any) -> Any:
        """`call(topic_arn)`; where the topic does not exist (no template made it) it is made first."""
        topic = self._get_or_create_topic(exchange_name)
        try:
            return call(topic)
        except ClientError as error:
            if code_of(error) not in ("NotFound", "NotFoundException"):
                raise
        logger.info("making the topic %s", topic)
        self.get_client().create_topic(Name=topic.rpartition(":")[2])
        return call(topic)

    def _create_sns_topic(self, exchange_name: str) -> str:
        return str(self.channel.topic_of(exchange_name))
