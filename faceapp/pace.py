"""Numbers on which workers, scaler and simulator agree, and how a task's answer carries its seconds."""

from __future__ import annotations

import re

PREFETCH = 2
"""Messages that a worker holds for each of its processes: one at work, one that waits. More would be handed back by a
draining instance, and each time counts as a try towards the dead letters."""

_SECONDS = re.compile(r" in (\d{1,6}(?:\.\d{1,9})?) s$")


def with_seconds(line: str, seconds: float) -> str:
    """The line that tells of a recognition, with the seconds of work that it took."""
    return f"{line} in {seconds:.4f} s"


def seconds_in(line: str) -> float | None:
    """The seconds that `with_seconds` wrote; None when the line is of something else."""
    found = _SECONDS.search(line)
    return float(found[1]) if found else None
