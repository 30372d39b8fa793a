"""The work queues and how many messages they hold, by SQS's approximate counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from celery_sqs.errors import BrokerUnavailable
from celery_sqs.options import Options
from celery_sqs.queues.counts import counts


@dataclass(frozen=True, kw_only=True)
class Row:
    """A work queue; see `celery_sqs.flower.options.QueueRow`."""

    name: str
    kind: str
    visible: int
    in_flight: int
    delayed: int

    @property
    def messages(self) -> int:
        return self.visible + self.in_flight + self.delayed


def work_queues(options: Options, sqs: Any) -> list[Row]:
    """Those that are there. Raises BrokerUnavailable when SQS does not answer."""
    try:
        rows = [_row(sqs, each) for each in options.queue_names]
    except (BotoCoreError, ClientError) as error:
        raise BrokerUnavailable(f"SQS does not answer: {error}") from error
    return [each for each in rows if each]


def _row(sqs: Any, name: str) -> Row | None:
    try:
        url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
        found = counts(sqs, url)
    except sqs.exceptions.QueueDoesNotExist:  # nothing was sent yet
        return None
    return Row(name=name, kind="tasks", **found)
