"""What SQS says of the request queue; `estimates` says how far it is believed."""

from __future__ import annotations

from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from celery_sqs.scaler.policies.base import Counts
from faceapp import aws, broker
from faceapp.config import Settings
from faceapp.errors import BrokerUnavailable

ATTRIBUTES = {
    "visible": "ApproximateNumberOfMessages",
    "in_flight": "ApproximateNumberOfMessagesNotVisible",
    "delayed": "ApproximateNumberOfMessagesDelayed",
}


class Depth:
    """A queue's counts (default: the request queue's), by GetQueueAttributes: kombu's size is of visible ones only."""

    def __init__(self, settings: Settings, *, queue_name: str = "", client: Any = None) -> None:
        self._name = queue_name or settings.request_queue
        self._client = client or broker.sqs_client(read_timeout=5, retries=aws.ONCE)
        self._url = ""

    def ask(self) -> Counts:
        """Raises BrokerUnavailable, with the reason: no such queue, no permission, no answer."""
        try:
            if not self._url:
                self._url = self._client.get_queue_url(QueueName=self._name)["QueueUrl"]
            answer = self._client.get_queue_attributes(QueueUrl=self._url, AttributeNames=list(ATTRIBUTES.values()))
        except (BotoCoreError, ClientError) as error:
            self._url = ""
            raise BrokerUnavailable(f"The queue {self._name} cannot be asked: {error}") from error
        return Counts(**{field: int(answer["Attributes"][name]) for field, name in ATTRIBUTES.items()})
