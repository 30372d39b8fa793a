"""A fleet that only looks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from celery_sqs.errors import NoLaunchTemplate
from celery_sqs.scaler.fleet.base import Fleet
from celery_sqs.scaler.machine import Machine
from celery_sqs.scaler.options import ScalerOptions
from celery_sqs.scaler.plan import plan

logger = logging.getLogger(__name__)


class DryRunFleet:
    """Looks at another fleet and says what it would do there; changes nothing."""

    def __init__(self, options: ScalerOptions, inner: Fleet) -> None:
        self._options, self._inner = options, inner
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

    def check(self) -> None:
        try:
            self._inner.check()
        except NoLaunchTemplate as error:
            logger.warning("%s Without a dry run the scaler would end here.", error)

    def instances(self) -> Sequence[Machine]:
        self._machines = self._inner.instances()
        return self._machines

    def start(self, count: int) -> Sequence[str]:
        planned = plan(
            self._machines,
            count,
            max_instances=self._options.max_instances,
            per_minute=self._options.starts_per_minute,
            latest=self.latest,
        )
        new = [self._options.naming.name_of(each) for each in planned.new]
        for names, how in (([each.name for each in planned.stopped], "start"), (new, "create")):
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
