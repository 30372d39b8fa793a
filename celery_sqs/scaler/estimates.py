"""What is made of counts, events and boots: what a policy decides by. Pure: the simulator runs the same.

SQS counts approximately: seen were 100, 0, 100, 29, 100 with nothing processed. What is far from
expectation is passed on as it is, and the policy waits for another that agrees; what is near it is noise.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from statistics import median_low

from celery_sqs.quantiles import nearest_rank
from celery_sqs.scaler.policies.base import BIN_S, BINS, Counts

NOISE = 0.12
"""Counts that differ by less from what is expected may be noise."""
GAIN = 0.3
"""How much of such a difference is believed at once. With 1 (the counts as they are) the nine workloads of
`benchmarks.scaler` are 3 % dearer, and with the highest of the last three answers, as it once was, as dear as that."""
BOOTS = 40
SMOOTHING = 0.03
"""The weight of one task in the average of service times: about the last sixty count."""
FIRST = 5
"""So many tasks replace what was assumed before them; their median, since the first one may find everything cold."""
OUTLIER = 10.0
"""A task counts as at most so many times the average: one that ran into its time limit starts no fleet."""


class Believed:
    """Counts without their noise: what differs little from the last ones and the tasks done since is averaged."""

    def __init__(self) -> None:
        self._last: tuple[float, int] | None = None

    def update(self, counts: Counts, *, done: int) -> Counts:
        """The counts to act on, when so many tasks are `done` in all."""
        told = float(counts.outstanding)
        if self._last is not None:
            before, done_before = self._last
            expected = max(0.0, before - (done - done_before))
            if abs(told - expected) <= NOISE * expected:
                told = expected + GAIN * (told - expected)
        self._last = told, done
        more = round(told) - counts.outstanding
        return replace(counts, visible=max(0, counts.visible + more))

    def clear(self) -> None:
        """After a gap there is nothing to compare with."""
        self._last = None


class Arrivals:
    """Messages that arrived, in bins: what was done and what the queue grew by.

    A count that was wrong one way is wrong the other way later, so a negative sum is set against the bins to come, and
    forgotten by halves.
    """

    def __init__(self, now_s: float) -> None:
        self._bins: deque[float] = deque(maxlen=BINS)
        self._open, self._debt = 0.0, 0.0
        self._bin_ends_s = now_s + BIN_S
        self._last: int | None = None

    def update(self, counts: Counts, *, done: int, now_s: float) -> None:
        self._roll(now_s)
        total = counts.outstanding + done
        if self._last is not None:
            self._open += total - self._last
        self._last = total

    def bins(self, now_s: float) -> tuple[float, ...]:
        """Of the last two minutes, the oldest first; only those that are over."""
        self._roll(now_s)
        return tuple(self._bins)

    def _roll(self, now_s: float) -> None:
        # After a long gap only what the bins hold matters.
        self._bin_ends_s = max(self._bin_ends_s, now_s - BINS * BIN_S)
        while self._bin_ends_s <= now_s:
            balance = self._open + self._debt
            self._bins.append(max(0.0, balance))
            self._debt = min(0.0, balance) / 2
            self._open = 0.0
            self._bin_ends_s += BIN_S


SEEN = 2000
"""Boots that are known to be counted: more than there can be instances (`max_instances`)."""


class Boots:
    """How long instances took from their start to their worker's first sign of life."""

    def __init__(self, default_s: float) -> None:
        self._default_s = default_s
        self._seconds: deque[float] = deque(maxlen=BOOTS)
        self._seen: dict[tuple[str, int], None] = {}

    def add(self, instance_id: str, run_s: int, boot_s: float) -> None:
        """Note a boot, once."""
        boot = instance_id, run_s
        if boot not in self._seen:
            self._seconds.append(boot_s)
        # Those of instances that are there are noted at each tick, so the first is a gone one's.
        self._seen.pop(boot, None)
        self._seen[boot] = None
        if len(self._seen) > SEEN:
            del self._seen[next(iter(self._seen))]

    def quantile(self, part: float) -> float:
        """By nearest rank; the setting's value until a boot was seen."""
        return nearest_rank(sorted(self._seconds), part) if self._seconds else self._default_s


class ServiceTime:
    """Seconds of one instance that a task takes, averaged over the last ones."""

    def __init__(self, assumed_s: float) -> None:
        """`assumed_s` counts until something was measured."""
        self.seconds = assumed_s
        self._first: list[float] = []
        self._known = False
        self._count = 0.0

    @property
    def measured(self) -> bool:
        """Whether `seconds` were measured on tasks, now or in the past."""
        return self._known or bool(self._first)

    def recall(self, seconds: float) -> None:
        """Go on from an average that was measured before."""
        self.seconds, self._known, self._count = seconds, True, 1 / SMOOTHING

    def hint(self, seconds: float) -> None:
        """Assume what a worker took for a task on trial, until a real one was measured."""
        if not self.measured:
            self.seconds = seconds

    def add(self, seconds: float) -> None:
        """Count one task."""
        if self._known:
            self._count += 1
            weight = max(SMOOTHING, 1 / self._count)
            self.seconds += weight * (min(seconds, OUTLIER * self.seconds) - self.seconds)
            return
        self._first.append(seconds)
        self.seconds = median_low(self._first)
        self._count += 1
        self._known = len(self._first) >= FIRST
