"""How many messages queues have, as SQS says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from celery_sqs.aws import ONCE, Aws
from celery_sqs.errors import BrokerUnavailable
from celery_sqs.queues.counts import ATTRIBUTES, counts
from celery_sqs.queues.temporary import GONE, code_of
from celery_sqs.scaler.policies.base import Counts


class Depths:
    """The counts of some queues together, by GetQueueAttributes: kombu's size is of visible messages only."""

    def __init__(self, aws: Aws, queues: Sequence[str], *, absent_are_empty: bool = False, client: Any = None) -> None:
        """`queues` are names on SQS. `absent_are_empty`: whoever sends makes a queue that is not there."""
        self._absent_are_empty = absent_are_empty
        self._client = client or aws.client("sqs", read_timeout=5, retries=ONCE)
        self._urls: dict[str, str] = dict.fromkeys(queues, "")

    def ask(self) -> Counts:
        """Raises BrokerUnavailable, with the reason: no such queue, no permission, no answer.

        One that does not answer is all that is known: without it there would seem to be less to do.
        """
        asked = [self._ask(name) for name in self._urls]
        return Counts(**{field: sum(each[field] for each in asked) for field in ATTRIBUTES})

    def _ask(self, name: str) -> dict[str, int]:
        try:
            if not self._urls[name]:
                self._urls[name] = self._client.get_queue_url(QueueName=name)["QueueUrl"]
            return counts(self._client, self._urls[name])
        except (BotoCoreError, ClientError) as error:
            self._urls[name] = ""
            if self._absent_are_empty and isinstance(error, ClientError) and code_of(error) in GONE:
                return dict.fromkeys(ATTRIBUTES, 0)
            raise BrokerUnavailable(f"The queue {name} cannot be asked: {error}") from error
