"""A fleet that only looks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from celery_sqs.scaler.fleet.ec2 import EC2Fleet
from celery_sqs.scaler.machine import Machine
from celery_sqs.scaler.plan import plan
from faceapp.config import Settings

logger = logging.getLogger(__name__)


class DryRunFleet:
    """Looks at EC2 and says what it would do there; changes nothing."""

    def __init__(self, settings: Settings, inner: EC2Fleet) -> None:
        self._settings, self._inner = settings, inner
        self._machines: Sequence[Machine] = ()

    @property
    def now_s(self) -> float:
        return self._inner.now_s

    @property
    def trouble(self) -> str:
        return ""

    @property
    def latest(self) -> int:
        return self._inner.latest

    def instances(self) -> Sequence[Machine]:
        self._machines = self._inner.instances()
        return self._machines

    def start(self, count: int) -> Sequence[str]:
        planned = plan(
            self._machines,
            count,
            max_instances=self._settings.scaler_max_instances,
            per_minute=self._settings.scaler_starts_per_minute,
            latest=self.latest,
        )
        for names, how in (([each.name for each in planned.stopped], "start"), (planned.names, "create")):
            if names:
                logger.info("dry run: would %s %s", how, ", ".join(names))
        return []

    def drain(self, ids: Iterable[str], *, dead_boots: int = 0) -> Sequence[str]:
        wanted = set(ids)
        names = [each.name for each in self._machines if each.id in wanted and each.ours]
        if names:
            logger.info("dry run: would stop %s%s", ", ".join(names), " as dead" if dead_boots else "")
        return []

    def mark_ready(self, ids: Iterable[str], *, measured: bool) -> None:
        """Nothing: the scaler that acts remembers it."""

    def tidy(self) -> None:
        """Nothing: the scaler that acts does it."""
