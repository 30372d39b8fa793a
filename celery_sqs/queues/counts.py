"""How many messages a queue has, by SQS's approximate counts."""

from __future__ import annotations

from typing import Any

ATTRIBUTES = {
    "visible": "ApproximateNumberOfMessages",
    "in_flight": "ApproximateNumberOfMessagesNotVisible",
    "delayed": "ApproximateNumberOfMessagesDelayed",
}


def counts(sqs: Any, url: str) -> dict[str, int]:
    """`visible`, `in_flight` and `delayed` messages of the queue at `url`. Raises botocore's errors."""
    answer = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=list(ATTRIBUTES.values()))["Attributes"]
    return {field: int(answer[name]) for field, name in ATTRIBUTES.items()}
