"""The day's instance-seconds, against its budget."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime


class Spent:
    """Instance-seconds of the day (UTC), counted by EC2's clock, so that a gap between two scalers counts as well."""

    def __init__(self, budget_s: int) -> None:
        self._budget_s = budget_s
        self._day, self.seconds = "", 0.0
        self._at_s: float | None = None

    @property
    def over(self) -> bool:
        return 0 < self._budget_s <= self.seconds

    @property
    def memory(self) -> dict[str, object]:
        """What a restart must know."""
        return {"day": self._day, "spent_s": round(self.seconds, 1), "at_s": self._at_s}

    def recall(self, memory: Mapping[str, object]) -> None:
        """Go on from `memory`; one that does not have its shape is passed over."""
        day, spent_s, at_s = memory.get("day"), memory.get("spent_s"), memory.get("at_s")
        if isinstance(day, str) and isinstance(spent_s, (int, float)) and isinstance(at_s, (int, float)):
            self._day, self.seconds, self._at_s = day, float(spent_s), float(at_s)

    def update(self, now_s: float, billed: int) -> None:
        """`billed` instances run, at `now_s` (Unix time)."""
        day = datetime.fromtimestamp(now_s, UTC).date().isoformat()
        since_s = now_s - self._at_s if self._at_s is not None else 0.0
        if day != self._day:
            self._day, self.seconds = day, 0.0
            since_s = min(since_s, now_s % 86_400)
        self.seconds += max(0.0, since_s) * billed
        self._at_s = now_s
