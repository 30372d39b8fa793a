"""Priorities: a queue on SQS for each step. The highest is asked first, and none starves.

The steps mean what they mean with kombu's Redis transport: priority 0 is the highest and what a message has that says
nothing, and a message goes to the last step that is not above its priority.
"""

from __future__ import annotations

import time
from bisect import bisect
from collections.abc import Callable, Sequence

from celery_sqs.errors import ConfigurationError

EMPTY_FOR_S = 0.5
"""A step that had nothing is not asked again for so long while others have something: the call would be billed."""
TURNS = 4
"""Of so many turns, all but one begin with the highest step; of those that do not, all but one in so many with the
next one."""


def check(steps: Sequence[int], queues: Sequence[str]) -> None:
    """Raises ConfigurationError for steps that cannot be used with these work queues."""
    if not steps:
        return
    if steps[0] != 0 or list(steps) != sorted(set(steps)) or steps[-1] > 9:
        raise ConfigurationError(f"priority_steps is {steps}: it takes rising numbers from 0 to 9, the first being 0")
    every = [each for name in queues for each in queues_of(name, steps)]
    if twice := sorted({each for each in every if every.count(each) > 1}):
        raise ConfigurationError(f"the queue {twice[0]} is a queue of its own, and a priority step of another")


def queues_of(queue: str, steps: Sequence[int]) -> tuple[str, ...]:
    """The queues of a work queue's steps, the highest first; the queue alone where there are no steps."""
    return tuple(_queue(queue, step) for step in steps) or (queue,)


def queue_for(queue: str, priority: int, steps: Sequence[int]) -> str:
    """The queue for a message of this priority."""
    return _queue(queue, steps[bisect(steps, max(0, priority)) - 1]) if steps else queue


def _queue(queue: str, step: int) -> str:
    if not step:
        return queue
    name = queue.removesuffix(".fifo")
    return f"{name}-{step}{queue.removeprefix(name)}"


class Turns:
    """The order in which the queues of a work queue's steps are asked, turn by turn."""

    def __init__(self, queues: Sequence[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._queues, self._clock = tuple(queues), clock
        self._turn = 0
        self._empty_s: dict[str, float] = {}

    def next(self) -> list[str]:
        """What to ask in this turn until one has something, without those that just had nothing."""
        self._turn += 1
        first, turn = 0, self._turn
        while turn % TURNS == 0 and first < len(self._queues) - 1:
            first, turn = first + 1, turn // TURNS
        order = [self._queues[first], *self._queues[:first], *self._queues[first + 1 :]]
        since_s = self._clock() - EMPTY_FOR_S
        return [each for each in order if self._empty_s.get(each, since_s) <= since_s]

    def note(self, queue: str, *, empty: bool) -> None:
        """What came of asking a queue."""
        if empty:
            self._empty_s[queue] = self._clock()
        else:
            self._empty_s.pop(queue, None)
