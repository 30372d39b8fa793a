"""How many messages a queue has, by SQS's approximate counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from celery_sqs.errors import BrokerUnavailable

if TYPE_CHECKING:
    from celery_sqs.options import Options

ATTRIBUTES = {
    "visible": "ApproximateNumberOfMessages",
    "in_flight": "ApproximateNumberOfMessagesNotVisible",
    "delayed": "ApproximateNumberOfMessagesDelayed",
}
TASKS, DEAD_LETTERS = "tasks", "dead letters"
"""Kinds of queues."""


@dataclass(frozen=True, kw_only=True)
class Queue:
    """A queue and its messages. SQS tells nothing of consumers, nor how old a message is."""

    name: str
    kind: str
    """What it is for."""
    visible: int
    in_flight: int
    """Received and not deleted yet: at work, or waiting in a worker."""
    delayed: int

    @property
    def messages(self) -> int:
        return self.visible + self.in_flight + self.delayed


def counts(sqs: Any, url: str) -> dict[str, int]:
    """`visible`, `in_flight` and `delayed` messages of the queue at `url`. Raises botocore's errors."""
    answer = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=list(ATTRIBUTES.values()))["Attributes"]
    return {field: int(answer[name]) for field, name in ATTRIBUTES.items()}


def queue(sqs: Any, name: str, kind: str) -> Queue | None:
    """The queue of that name on SQS; None where there is none. Raises botocore's errors."""
    try:
        url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
        return Queue(name=name, kind=kind, **counts(sqs, url))
    except sqs.exceptions.QueueDoesNotExist:
        return None


def work_queues(options: Options, sqs: Any) -> list[Queue]:
    """An application's work queues that are there. Raises BrokerUnavailable when SQS does not answer."""
    try:
        found = [queue(sqs, each, TASKS) for each in options.queue_names]
    except (BotoCoreError, ClientError) as error:
        raise BrokerUnavailable(f"SQS does not answer: {error}") from error
    return [each for each in found if each]
