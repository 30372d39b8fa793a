"""What a scaler can know of the world: SQS's counts, and what it makes of the workers' events."""

from __future__ import annotations

import random
from collections import deque

from faceapp.scaling.policies.base import BIN_S, BINS, Counts
from faceapp.scaling.simulation.world import World

EWMA_WEIGHT = 0.1
BOOTS = 40
STALE_EVERY_S = 600.0
STALE_S = (20.0, 60.0)
LAG_S = 3.0
JITTER = 0.03


class QueueGauge:
    """GetQueueAttributes: a few seconds old and a few percent off, and now and then frozen for up to a minute.

    Source: the SQS API reference on GetQueueAttributes ("approximate", consistent about a minute after the producers
    stop) and the developer guide's "Available CloudWatch metrics for Amazon SQS".
    """

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world = world
        self._rng = rng
        self._history: deque[tuple[float, int, int]] = deque([(0.0, 0, 0)], maxlen=64)
        self._frozen_from_s = rng.expovariate(1 / STALE_EVERY_S)
        self._frozen_to_s = self._frozen_from_s + rng.uniform(*STALE_S)

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
        while now_s > self._frozen_to_s:
            self._frozen_from_s = self._frozen_to_s + self._rng.expovariate(1 / STALE_EVERY_S)
            self._frozen_to_s = self._frozen_from_s + self._rng.uniform(*STALE_S)
        return min(now_s - self._rng.uniform(0, LAG_S), self._frozen_from_s if now_s > self._frozen_from_s else now_s)

    def _at(self, then_s: float) -> tuple[int, int]:
        for at_s, visible, in_flight in reversed(self._history):
            if at_s <= then_s:
                return visible, in_flight
        return self._history[0][1:]


class Estimates:
    """Service time, boot time, age and arrivals, from the workers' events and SQS's counts."""

    def __init__(self, *, service_s: float, boot_s: float) -> None:
        self.service_s = service_s
        self._boot_s = boot_s
        self._boots: deque[float] = deque(maxlen=BOOTS)
        self._done = 0
        self._totals: deque[tuple[float, int]] = deque()
        self._waiting_since_s: float | None = None
        self._received: tuple[float, float] = (-1.0, 0.0)

    def booted(self, boot_s: float) -> None:
        self._boots.append(boot_s)

    def received(self, now_s: float, waited_s: float) -> None:
        self._received = (now_s, waited_s)

    def finished(self, service_s: float) -> None:
        self._done += 1
        self.service_s += EWMA_WEIGHT * (service_s - self.service_s)

    def boot_s(self, share: float) -> float:
        """That quantile of the last boots."""
        if not self._boots:
            return self._boot_s
        boots = sorted(self._boots)
        return boots[min(len(boots) - 1, int(share * len(boots)))]

    def counts(self, now_s: float, visible: int, in_flight: int) -> Counts:
        """The counts with the oldest message's age, which is known from what was received last."""
        if visible == 0:
            self._waiting_since_s = None
            return Counts(visible=0, in_flight=in_flight)
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s
        age_s = now_s - self._waiting_since_s
        at_s, waited_s = self._received
        if at_s >= self._waiting_since_s:
            age_s = waited_s + now_s - at_s
        return Counts(visible=visible, in_flight=in_flight, oldest_age_s=age_s)

    def arrivals(self, now_s: float, outstanding: int | None) -> tuple[float, ...]:
        """Messages in each of the last bins: done plus outstanding is what ever arrived, as far as anybody knows."""
        if outstanding is not None:
            self._totals.append((now_s, self._done + outstanding))
        window_s = BIN_S * BINS
        while self._totals and self._totals[0][0] < now_s - 2 * window_s:
            self._totals.popleft()
        if not self._totals:
            return ()
        # Counts that fall and rise again are no arrivals: a bin has what lies above all of the minute before.
        highs = [0] * (2 * BINS + 1)
        for at_s, total in self._totals:
            bin_ = 2 * BINS - int((now_s - at_s) / BIN_S)
            highs[bin_] = max(highs[bin_], total)
        first = self._totals[0][1]
        return tuple(
            float(max(0, highs[n] - max(first, *highs[n - BINS : n]))) if highs[n] else 0.0
            for n in range(BINS + 1, 2 * BINS + 1)
        )
