"""The stack's SQS queues and how many messages they hold, by SQS's approximate counts."""

from __future__ import annotations

from typing import Any, Literal

from botocore.exceptions import BotoCoreError, ClientError

from celery_sqs.queues.counts import Queue, queue
from celery_sqs.queues.urls import queue_urls
from faceapp.broker import sqs_client
from faceapp.config import Settings, aws
from faceapp.errors import BrokerUnavailable

Kind = Literal["requests", "dead letters", "responses"]
NOT_DEPLOYED = "deploy the stack first, or set FACEAPP_PREFIX to the stack's name"


def client() -> Any:
    """An SQS client for `queues`, for whoever wants a quick answer or none. Any thread may use it."""
    return sqs_client(read_timeout=3, retries=aws.ONCE)


def queues(sqs: Any, settings: Settings) -> list[Queue]:
    """The request queue, the dead letters, and the response queues of the processes that ask.

    Raises BrokerUnavailable when SQS does not answer or the stack is not there.
    """
    try:
        found = [
            _count(sqs, settings.request_queue, "requests"),
            _count(sqs, settings.dead_letter_queue, "dead letters"),
        ]
        found += [_count(sqs, name, "responses") for name in _response_queues(sqs, settings)]
    except (BotoCoreError, ClientError) as error:
        raise BrokerUnavailable(f"SQS does not answer: {error}") from error
    return [each for each in found if each]


def _response_queues(sqs: Any, settings: Settings) -> list[str]:
    try:
        urls = list(queue_urls(sqs, settings.response_queue))
    except ClientError:  # a least-privilege role may not list
        return [settings.response_queue]
    return sorted(str(url).rpartition("/")[2] for url in urls)


def _count(sqs: Any, name: str, kind: Kind) -> Queue | None:
    found = queue(sqs, name, kind)
    if found is None and kind != "responses":  # a response queue goes with its process
        raise BrokerUnavailable(f"The queue {name} does not exist: {NOT_DEPLOYED}.")
    return found
