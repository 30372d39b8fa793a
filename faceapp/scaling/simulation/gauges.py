"""What a scaler can know of the world: SQS's counts, and what it makes of the workers' events."""

from __future__ import annotations

import math
import random
from collections import deque

from faceapp.quantiles import nearest_rank
from faceapp.scaling.policies.base import BIN_S, BINS, Counts
from faceapp.scaling.simulation.world import World

SMOOTHING = 0.1
BOOTS = 40
AGREE = 3
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
        then_s = now_s - rng.uniform(0, OLD_S if rng.random() < OLD_SHARE else LAG_S)
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


class Estimates:
    """Service time, boot time, depth and arrivals out of the workers' events and SQS's counts.

    By the rules of `faceapp.scaling.metrics` and `workers`, which ask AWS and so cannot be used here.
    """

    def __init__(self, *, service_s: float, boot_s: float) -> None:
        self.service_s = service_s
        self._boots: deque[float] = deque(maxlen=BOOTS)
        self._default_boot_s = boot_s
        self._done = 0
        self._recent: deque[tuple[int, int]] = deque(maxlen=AGREE)
        self._total: int | None = None
        self._bins: deque[float] = deque(maxlen=BINS)
        self._open = self._debt = 0.0
        self._bin_ends_s = BIN_S

    def booted(self, boot_s: float) -> None:
        self._boots.append(boot_s)

    def finished(self, service_s: float) -> None:
        self._done += 1
        self.service_s += SMOOTHING * (service_s - self.service_s)

    def boot_s(self, share: float) -> float:
        """That quantile of the last boots, by nearest rank."""
        return nearest_rank(sorted(self._boots) or [self._default_boot_s], share)

    def counts(self, now_s: float, seen: tuple[int, int] | None) -> Counts | None:
        """What to act on: a count that fell is believed when finished tasks explain it or the next ones agree."""
        if seen is None:
            self._recent.clear()
            return None
        visible, in_flight = seen
        self._recent.append((visible + in_flight, self._done))
        most = max(outstanding - (self._done - done) for outstanding, done in self._recent)
        counts = Counts(visible=visible + max(0, most - visible - in_flight), in_flight=in_flight)
        total = counts.outstanding + self._done
        self._roll(now_s)
        self._open += total - (total if self._total is None else self._total)
        self._total = total
        return counts

    def arrivals(self, now_s: float) -> tuple[float, ...]:
        """Messages in each of the last bins that are over: what was done, and what the queue grew by."""
        self._roll(now_s)
        return tuple(self._bins)

    def _roll(self, now_s: float) -> None:
        while self._bin_ends_s <= now_s:
            balance = self._open + self._debt
            self._bins.append(max(0.0, balance))
            self._debt, self._open = min(0.0, balance) / 2, 0.0
            self._bin_ends_s += BIN_S
