"""What is made of counts, events and boots: what a policy decides by. Pure: the simulator runs the same.

SQS counts approximately: seen were 100, 0, 100, 29, 100 with nothing processed. So a count that fell is believed when
finished tasks explain it, or when the ones after it agree.
"""

from __future__ import annotations

from collections import deque
from statistics import median_low

from faceapp.quantiles import nearest_rank
from faceapp.scaling.policies.base import BIN_S, BINS, Counts

AGREE = 3
"""So many counts in a row must agree that there is less than before."""
BOOTS = 40
SMOOTHING = 0.1
"""The weight of one photo in the average of service times: about the last twenty count."""
FIRST = 5
"""So many photos replace what was assumed before them; their median, since the first one may find everything cold."""
OUTLIER = 10.0
"""A photo counts as at most so many times the average: one that ran into its time limit starts no fleet."""


class Believed:
    """Counts from which sudden falls have been taken out."""

    def __init__(self) -> None:
        self._recent: deque[tuple[Counts, int]] = deque(maxlen=AGREE)

    def update(self, counts: Counts, *, done: int) -> Counts:
        """The counts to act on: as asked, or more when the last ones and the `done` tasks since do not explain less."""
        self._recent.append((counts, done))
        most = max(each.outstanding - (done - done_then) for each, done_then in self._recent)
        missing = most - counts.outstanding
        if missing <= 0:
            return counts
        return Counts(visible=counts.visible + missing, in_flight=counts.in_flight, delayed=counts.delayed)

    def clear(self) -> None:
        """After a gap there is nothing to compare with."""
        self._recent.clear()


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
        """Of the last minute, the oldest first; only those that are over."""
        self._roll(now_s)
        return tuple(self._bins)

    def _roll(self, now_s: float) -> None:
        # After a long gap only the last minute matters.
        self._bin_ends_s = max(self._bin_ends_s, now_s - BINS * BIN_S)
        while self._bin_ends_s <= now_s:
            balance = self._open + self._debt
            self._bins.append(max(0.0, balance))
            self._debt = min(0.0, balance) / 2
            self._open = 0.0
            self._bin_ends_s += BIN_S


class Boots:
    """How long instances took from their start to their worker's first sign of life."""

    def __init__(self, default_s: float) -> None:
        self._default_s = default_s
        self._seconds: deque[float] = deque(maxlen=BOOTS)
        self._seen: set[tuple[str, int]] = set()

    def add(self, instance_id: str, run_s: int, boot_s: float) -> None:
        """Note a boot, once."""
        if (instance_id, run_s) not in self._seen:
            self._seen.add((instance_id, run_s))
            self._seconds.append(boot_s)

    def quantile(self, part: float) -> float:
        """By nearest rank; the setting's value until a boot was seen."""
        return nearest_rank(sorted(self._seconds), part) if self._seconds else self._default_s


class ServiceTime:
    """Seconds of one instance that a photo takes, averaged over the last ones."""

    def __init__(self, assumed_s: float) -> None:
        """`assumed_s` counts until something was measured."""
        self.seconds = assumed_s
        self._first: list[float] = []
        self._known = False

    @property
    def measured(self) -> bool:
        """Whether `seconds` were measured on photos, now or in the past."""
        return self._known or bool(self._first)

    def recall(self, seconds: float) -> None:
        """Go on from an average that was measured before."""
        self.seconds, self._known = seconds, True

    def hint(self, seconds: float) -> None:
        """Assume what a worker's model took for a photo of its own, until a real one was measured."""
        if not self.measured:
            self.seconds = seconds

    def add(self, seconds: float) -> None:
        """Count one photo."""
        if self._known:
            self.seconds += SMOOTHING * (min(seconds, OUTLIER * self.seconds) - self.seconds)
            return
        self._first.append(seconds)
        self.seconds = median_low(self._first)
        self._known = len(self._first) >= FIRST
