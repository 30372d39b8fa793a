"""boto3 clients for SQS and SNS."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from faceapp import aws
from faceapp.config import Settings
from faceapp.errors import BrokerUnavailable

QUICK: dict[str, Any] = {"read_timeout": 5, "retries": aws.ONCE}
"""For calls that an event loop waits for, and that may fail: events, and deleting what would only be done again."""


def sqs_client(**config: Any) -> Any:
    """An SQS client; `config` overrides single botocore settings."""
    return aws.client("sqs", **config)


def sns_client(**config: Any) -> Any:
    """An SNS client; `config` overrides single botocore settings."""
    return aws.client("sns", **config)


def queue_urls(sqs: Any, prefix: str) -> Iterator[str]:
    """The URL of every queue whose name begins with `prefix` (a call per 1,000). Raises botocore's errors."""
    # Without a page's size SQS ends after 1,000 and does not say that there are more.
    pages = sqs.get_paginator("list_queues").paginate(QueueNamePrefix=prefix, PaginationConfig={"PageSize": 1000})
    for page in pages:
        yield from page.get("QueueUrls", ())


def quick_sqs_client() -> Any:
    """This process's client for calls that may fail but must not take long."""
    return _quick_client("sqs", os.getpid(), os.environ.get("AWS_ENDPOINT_URL"))


def quick_sns_client() -> Any:
    """This process's SNS client for calls that may fail but must not take long."""
    return _quick_client("sns", os.getpid(), os.environ.get("AWS_ENDPOINT_URL"))


@cache
def _quick_client(service: str, _pid: int, _endpoint: str | None) -> Any:
    return aws.client(service, **QUICK)


@cache
def _probe_client() -> Any:
    return sqs_client(read_timeout=3, retries=aws.ONCE)


def ready(settings: Settings) -> None:
    """Ask SQS for the request queue. Raises BrokerUnavailable when it does not answer or does not exist."""
    name = settings.request_queue
    try:
        url = _probe_client().get_queue_url(QueueName=name)["QueueUrl"]
        _probe_client().get_queue_attributes(QueueUrl=url, AttributeNames=["ApproximateNumberOfMessages"])
    except (BotoCoreError, ClientError) as error:
        raise BrokerUnavailable(f"the queue {name} does not answer: {error}") from error
