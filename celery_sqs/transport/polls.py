"""Whether this process's polls of the work queues succeed.

A worker that cannot poll must not look ready: its events, by which the scaler knows it, wait until a poll has
succeeded, and wait again when none has for a minute.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

FAILING_S = 60.0
"""Polls may fail for this long, while SQS is away for a moment or credentials are renewed."""


class Polls:
    """The polls of one process. `clock` returns seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failing_from_s: float | None = None
        self.working = False
        """Whether the last polls were answered. False before the first one."""
        self.when_working: Callable[[], None] = lambda: None
        """Called as soon as polls work, or work again."""

    def note(self, *, answered: bool) -> None:
        """A poll has come to its end."""
        if not answered:
            self.failed("SQS did not answer in time, or refused")
            return
        self._failing_from_s = None
        if not self.working:
            self.working = True
            logger.info("polls of the work queues are answered")
            self.when_working()

    def failed(self, reason: str) -> None:
        """A poll failed, for this reason."""
        now_s = self._clock()
        if self._failing_from_s is None:
            self._failing_from_s = now_s
            logger.warning("a poll of a work queue failed: %s", reason)
        elif now_s - self._failing_from_s >= FAILING_S:
            # The next line about it comes after another such time.
            self._failing_from_s, self.working = now_s, False
            logger.error("no poll of the work queues has succeeded for %g s: %s", FAILING_S, reason)


polls = Polls()
