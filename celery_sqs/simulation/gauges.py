"""What a scaler can know of the world: SQS's counts, and the workers' events as they arrive."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterator
from typing import Any

from celery_sqs.simulation.world import World

Event = dict[str, Any]
"""One of Celery's, as a worker sends it."""

PATH_S = (0.05, 0.5)
DISORDER_S = 2.0
LAG_S = 3.0
OLD_SHARE = 0.02
OLD_S = 60.0
FREEZE_EVERY_S = 600.0
FREEZE_S = (20.0, 60.0)
JITTER = 0.03


class QueueGauge:
    """GetQueueAttributes: a few seconds old and a few percent off, and one answer in fifty up to a minute old.

    Source: the SQS API reference on GetQueueAttributes ("approximate", consistent about a minute after the producers
    stop) and the developer guide's "Available CloudWatch metrics for Amazon SQS". With lying counts, some answers have
    nothing to do with the queue or fail, and now and then all of them stand still for up to a minute.
    """

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world = world
        self._rng = rng
        self._history: deque[tuple[float, int, int]] = deque([(0.0, 0, 0)], maxlen=128)
        self._frozen_from_s = self._frozen_to_s = -math.inf

    def record(self, now_s: float, visible: int, in_flight: int) -> None:
        """The true counts, once a second."""
        self._history.append((now_s, visible, in_flight))

    def read(self, now_s: float, visible: int, in_flight: int) -> tuple[int, int] | None:
        """What SQS says the counts are, visible and in flight; None when it does not answer."""
        if self._world.exact_counts:
            return visible, in_flight
        rng = self._rng
        if rng.random() < self._world.faults.lying_counts:
            lie = rng.random()
            return None if lie < 0.25 else (rng.choice((0, 29, 100)), 0 if lie < 0.6 else in_flight)
        visible, in_flight = self._at(self._as_of_s(now_s))
        visible = round(visible * rng.gauss(1.0, JITTER))
        if 0 < visible <= 3 and rng.random() < JITTER:
            visible = 0  # The few servers that were asked had none of them.
        return max(0, visible), in_flight

    def _as_of_s(self, now_s: float) -> float:
        rng = self._rng
        then_s = now_s - rng.uniform(0, OLD_S if rng.random() < OLD_SHARE + self._world.faults.old_counts else LAG_S)
        if not self._world.faults.lying_counts:
            return then_s
        while now_s > self._frozen_to_s:
            self._frozen_from_s = max(0.0, self._frozen_to_s) + rng.expovariate(1 / FREEZE_EVERY_S)
            self._frozen_to_s = self._frozen_from_s + rng.uniform(*FREEZE_S)
        return min(then_s, self._frozen_from_s)

    def _at(self, then_s: float) -> tuple[int, int]:
        for at_s, visible, in_flight in reversed(self._history):
            if at_s <= then_s:
                return visible, in_flight
        return self._history[0][1:]


class EventPath:
    """SNS and SQS between the workers and the scaler: some tenths of a second, and with faults worse."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self._faults = world.faults
        self._rng = rng
        self._faulty = bool(self._faults.lost_events or self._faults.doubled_events or self._faults.disordered_events)

    def carry(self, events: list[Event]) -> Iterator[tuple[float, list[Event]]]:
        """What arrives of events that were sent together: after how many seconds, and which."""
        base_s = self._rng.uniform(*PATH_S)
        if not self._faulty:
            yield base_s, events
            return
        for event in events:
            if self._rng.random() < self._faults.lost_events:
                continue
            copies = 2 if self._rng.random() < self._faults.doubled_events else 1
            for _ in range(copies):
                late = self._rng.random() < self._faults.disordered_events
                yield base_s + (self._rng.uniform(0.0, DISORDER_S) if late else 0.0), [event]
