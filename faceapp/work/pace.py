"""How a task's answer carries its seconds of work to the scaler."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_SECONDS = re.compile(r" in (\d{1,6}(?:\.\d{1,9})?) s$")


def with_seconds(line: str, seconds: float) -> str:
    """The line that tells of a recognition, with the seconds of work that it took."""
    return f"{line} in {seconds:.4f} s"


def seconds_in(line: str) -> float | None:
    """The seconds that `with_seconds` wrote; None when the line is of something else."""
    found = _SECONDS.search(line)
    return float(found[1]) if found else None


DONE = "done: "
"""How the line begins that tells of a recognition; those of older workers end without its seconds."""


def worked_s(event: Mapping[str, Any]) -> float | None:
    """The seconds of the recognition that an event task-succeeded tells of; None for any other task.

    An event without an answer, or with the answer of a worker from before an upgrade, says how long it ran.
    """
    line = event.get("result")
    if line is None or (str(line).startswith(DONE) and seconds_in(str(line)) is None):
        return event.get("runtime")
    return seconds_in(str(line))
