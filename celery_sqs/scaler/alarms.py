"""What the stack's alarms need to hear of the scaler: two metrics in CloudWatch, sent only while there is something.

Namespace `cloudwatch_namespace`, dimension `Stack`: `DeadBoots` (boots in a row that came to nothing) and `BudgetShare`
(of today's instance-seconds). Each metric is billed by the hour in which it is sent, and the alarms take silence for
well.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from celery_sqs.aws import ONCE, Aws
from celery_sqs.scaler.options import ScalerOptions

logger = logging.getLogger(__name__)

EVERY_S = 60.0
"""A metric's resolution, and the alarms' period."""
WORTH_TELLING = 0.5
"""The share of the budget from which on it is told; the alarm's threshold is above it."""


class Alarms:
    """Sends the metrics, each minute while they are not zero and once when they are again. Never raises.

    Not safe to share between threads.
    """

    def __init__(
        self, options: ScalerOptions, aws: Aws, *, client: Any = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._namespace, self._stack = options.cloudwatch_namespace, options.stack
        self._budget_s, self._clock = options.daily_instance_s, clock
        self._client: Any = client or (_new_client(aws) if self._namespace else None)
        self._told: dict[str, float] = {}
        self._next_s = clock()

    def tell(self, *, dead_boots: int, spent_s: float) -> None:
        """Once a tick, by the scaler that leads: boots in a row that failed, instance-seconds of today."""
        if not self._namespace or self._clock() < self._next_s:
            return
        share = spent_s / self._budget_s if self._budget_s else 0.0
        now = {"DeadBoots": float(dead_boots), "BudgetShare": share if share >= WORTH_TELLING else 0.0}
        # A zero is told once, after something else was.
        due = {name: value for name, value in now.items() if value or self._told.get(name)}
        if not due:
            return
        self._next_s = self._clock() + EVERY_S
        dimensions = [{"Name": "Stack", "Value": self._stack}]
        data = [{"MetricName": name, "Dimensions": dimensions, "Value": value} for name, value in due.items()]
        try:
            self._client.put_metric_data(Namespace=self._namespace, MetricData=data)
        except (ClientError, BotoCoreError) as error:
            logger.warning("CloudWatch does not take what the alarms need: %s", error)
            return
        self._told.update(due)


def _new_client(aws: Aws) -> Any:
    # The loop waits for it: one short attempt, and another a minute later.
    return aws.client("cloudwatch", connect_timeout=2, read_timeout=3, retries=ONCE)
