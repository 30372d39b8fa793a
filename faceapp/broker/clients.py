"""boto3 clients for SQS and SNS."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, IncompleteReadError

from faceapp.config import Settings
from faceapp.errors import BrokerUnavailable

DEFAULT_REGION = "us-east-1"
"""kombu's, where the environment names none."""

CLIENT_CONFIG: dict[str, Any] = {
    # A fixed one: botocore builds its own anew for every call, which takes a sixth of the call's CPU.
    "user_agent": f"faceapp boto3/{boto3.__version__}",
    "tcp_keepalive": True,
    "connect_timeout": 3,
    "read_timeout": 30,
    "retries": {"mode": "standard", "total_max_attempts": 4},
    "max_pool_connections": 32,
}
"""botocore's settings for SQS; reading waits longer than the longest long poll (20 s)."""

QUICK_CONFIG = Config(read_timeout=5, retries={"mode": "standard", "total_max_attempts": 1})
"""For calls that an event loop waits for, and that may fail: events, and deleting what would only be done again."""


def sqs_client(**config: Any) -> Any:
    """A boto3 SQS client with this service's time limits; `config` overrides single botocore settings."""
    session = boto3.Session()
    region = session.region_name or DEFAULT_REGION
    return whole_answers(session.client("sqs", region_name=region, config=Config(**{**CLIENT_CONFIG, **config})))


def queue_urls(sqs: Any, prefix: str) -> Iterator[str]:
    """The URL of every queue whose name begins with `prefix` (a call per 1,000). Raises botocore's errors."""
    # Without a page's size SQS ends after 1,000 and does not say that there are more.
    pages = sqs.get_paginator("list_queues").paginate(QueueNamePrefix=prefix, PaginationConfig={"PageSize": 1000})
    for page in pages:
        yield from page.get("QueueUrls", ())


def quick_sqs_client() -> Any:
    """This process's client for calls that may fail but must not take long."""
    return _quick_sqs_client(os.getpid(), os.environ.get("AWS_ENDPOINT_URL"))


@cache
def _quick_sqs_client(_pid: int, _endpoint: str | None) -> Any:
    return sqs_client(read_timeout=5, retries={"mode": "standard", "total_max_attempts": 1})


def sns_client(**config: Any) -> Any:
    """A boto3 SNS client with this service's time limits; `config` overrides single botocore settings."""
    session = boto3.Session()
    region = session.region_name or DEFAULT_REGION
    return whole_answers(session.client("sns", region_name=region, config=Config(**{**CLIENT_CONFIG, **config})))


def whole_answers(client: Any) -> Any:
    """The client, which from now on raises IncompleteReadError for an answer whose connection ended in the middle.

    botocore takes what came of it for all of it: for a success that says nothing.
    """
    client.meta.events.register_first("before-parse", _refuse_a_part)
    return client


def _refuse_a_part(response_dict: dict[str, Any], **_: Any) -> None:
    expected = response_dict["headers"].get("Content-Length", "")
    actual = len(response_dict["body"])
    if expected.isdigit() and actual < int(expected):
        raise IncompleteReadError(actual_bytes=actual, expected_bytes=int(expected))


def quick_sns_client() -> Any:
    """This process's SNS client for calls that may fail but must not take long."""
    return _quick_sns_client(os.getpid(), os.environ.get("AWS_ENDPOINT_URL"))


@cache
def _quick_sns_client(_pid: int, _endpoint: str | None) -> Any:
    return sns_client(read_timeout=5, retries={"mode": "standard", "total_max_attempts": 1})


@cache
def _probe_client() -> Any:
    return sqs_client(read_timeout=3, retries={"mode": "standard", "total_max_attempts": 1})


def ready(settings: Settings) -> None:
    """Ask SQS for the request queue. Raises BrokerUnavailable when it does not answer or does not exist."""
    name = settings.request_queue
    try:
        url = _probe_client().get_queue_url(QueueName=name)["QueueUrl"]
        _probe_client().get_queue_attributes(QueueUrl=url, AttributeNames=["ApproximateNumberOfMessages"])
    except (BotoCoreError, ClientError) as error:
        raise BrokerUnavailable(f"the queue {name} does not answer: {error}") from error
