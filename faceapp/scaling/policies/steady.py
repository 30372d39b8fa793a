"""Time as the policies count it: what they remember lasts through clocks that jump."""

from __future__ import annotations

from collections import deque

JUMP_S = 60.0
"""More than this between two observations is a clock that jumped, or a scaler that slept: the policy looks once more
before it acts."""


NEW_HIGH = 1.1
"""A count this much above the ones before is news; less may be their noise."""


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
