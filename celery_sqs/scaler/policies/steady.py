"""Time as the policies count it: what they remember lasts through clocks that jump."""

from __future__ import annotations

from collections import deque

JUMP_S = 60.0
"""More than this between two observations is a clock that jumped, or a scaler that slept: the policy looks once more
before it acts."""

NEW_HIGH = 1.1
"""A count this much above the ones before is news; less may be their noise."""
BLINK_S = 0.5
"""Work that ended this much later than what was known to be the last is new work."""


class SteadyClock:
    """Seconds that only ever go forward, and never far at once."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.jumped = False
        self._last_s: float | None = None

    def advance(self, now_s: float) -> float:
        """The steady time at `now_s`; `jumped` says whether `now_s` was out of line with the call before."""
        step_s = 0.0 if self._last_s is None else now_s - self._last_s
        self._last_s = now_s
        self.jumped = not 0 <= step_s <= JUMP_S
        if not self.jumped:
            self.now_s += step_s
        return self.now_s


class Highest:
    """The highest number of the last seconds."""

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self._falling: deque[tuple[float, int]] = deque()

    def add(self, now_s: float, value: int) -> int:
        """Remember `value`, and answer the highest of the window, `value` included."""
        while self._falling and self._falling[0][0] <= now_s - self.window_s:
            self._falling.popleft()
        while self._falling and self._falling[-1][1] <= value:
            self._falling.pop()
        self._falling.append((now_s, value))
        return self._falling[0][1]


class Since:
    """For how long, and how many observations in a row, something has been so."""

    def __init__(self) -> None:
        self.times = 0
        self._since_s = 0.0

    def update(self, now_s: float, holds: bool) -> float:
        """Seconds since it began to hold; 0 when it does not."""
        if not holds:
            self.times = 0
            return 0.0
        if self.times == 0:
            self._since_s = now_s
        self.times += 1
        return now_s - self._since_s


class Rises:
    """A count of which single answers may be old. It falls at once, and rises at once above all that was there lately;
    to what was there before it rises when a few answers in a row agree."""

    def __init__(self, *, old_s: float, agreeing: int) -> None:
        self._lately = Highest(old_s)
        self._last: deque[int] = deque(maxlen=agreeing)

    def update(self, now_s: float, count: int) -> int:
        """The count to act on."""
        before = self._lately.add(now_s, 0)
        self._lately.add(now_s, count)
        if count > NEW_HIGH * before:
            self._last.clear()
        self._last.append(count)
        return min(self._last)


class Gaps:
    """How long nothing was to be done, the last times that there was something before and after."""

    def __init__(self, remembered: int) -> None:
        self._gaps: deque[float] = deque(maxlen=remembered)
        self._from_s: float | None = None

    def update(self, now_s: float, quiet_s: float | None, *, waits: bool) -> None:
        """`quiet_s` ago the last work ended (None: nobody knows, or nobody works); `waits`: there is some now."""
        ended_s = None if quiet_s is None else now_s - quiet_s
        if self._from_s is not None and (waits or (ended_s is not None and ended_s > self._from_s + BLINK_S)):
            began_s = now_s if ended_s is None or waits else ended_s
            self._gaps.append(began_s - self._from_s)
            self._from_s = None
        if not waits and ended_s is not None and self._from_s is None:
            self._from_s = ended_s

    def __len__(self) -> int:
        return len(self._gaps)

    def keep_s(self, *, paid_s: float, restart_s: float, slack_s: float) -> float:
        """For how long an idle instance is best kept: until a restart, which is worth `restart_s`, is the lesser evil,
        had the coming gap been one of those that were (ski rental with a known distribution). The first `paid_s` of
        each gap cost nothing; what is kept for a gap is kept twice as long and `slack_s`."""

        def cost(keep_s: float) -> float:
            return sum(
                max(0.0, min(gap_s, keep_s) - paid_s) + (restart_s if gap_s > keep_s else 0.0) for gap_s in self._gaps
            )

        candidates = (0.0, *(2 * gap_s + slack_s for gap_s in sorted(self._gaps)))
        return min(candidates, key=cost)
