"""boto3 clients for SQS, and whether it answers."""

from __future__ import annotations

from functools import cache
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from faceapp.config import Settings, aws
from faceapp.errors import BrokerUnavailable


def sqs_client(**config: Any) -> Any:
    """An SQS client; `config` overrides single botocore settings."""
    return aws.client("sqs", **config)


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
