"""Waiting for what comes true in a while, instead of for a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 60.0
"""It tells hung from slow, on a busy machine."""
POLL_S = 0.02


def wait_until(condition: Callable[[], object], *, timeout_s: float = PATIENCE_S, what: str = "the condition") -> None:
    """Return as soon as `condition()` is true. Raises AssertionError where it is not within `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise AssertionError(f"{what} did not come true within {timeout_s:g} s")
        time.sleep(POLL_S)
