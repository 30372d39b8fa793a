"""The polls of a work queue with priority steps, in an event loop.

While there are messages, one step is asked at a time, in the order of `Turns`, and answers at once. When none has any,
all are listened to, with a long poll each: as many calls as for so many work queues, and a message of any step is heard
at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from vine import transform

from celery_sqs.transport.polls import polls
from celery_sqs.transport.priorities import Turns

logger = logging.getLogger(__name__)

Then = Callable[[int], None]
"""Called with how many messages a poll has brought."""


class Poller(Protocol):
    """What a channel does for the polls of one work queue."""

    def ask(self, step: str, *, wait_s: int | None, share: int, then: Then) -> None:
        """Ask the queue of `step` for a `share`th of what there is room for; None waits as long as a long poll may.

        Raises nothing.
        """

    def has_room(self) -> bool:
        """Whether messages may be taken: another queue may have filled the prefetch."""

    def go_on(self) -> None:
        """Call `StepPolls.look` soon, as soon as there is room."""

    def pause(self, step: str, then: Callable[[], None]) -> None:
        """Call `then` after the pause that follows a poll of `step` without messages."""


class StepPolls:
    """One work queue's, from when it is consumed until it is not. All in the event loop's thread."""

    def __init__(self, steps: Sequence[str], poller: Poller) -> None:
        self._steps, self._poller = tuple(steps), poller
        self._turns = Turns(steps)
        self._listening: set[str] = set()
        self._looking = True
        """Whether a look at the steps is under way or to come; else they are listened to."""

    def look(self) -> None:
        """Ask the steps one after the other until one has something."""
        self._ask([each for each in self._turns.next() if each not in self._listening])

    def _ask(self, steps: list[str]) -> None:
        if not steps:
            self._looking = False
            for each in self._steps:
                self._listen(each)
            return
        first, *others = steps
        self._poller.ask(first, wait_s=0, share=1, then=partial(self._asked, first, others))

    def _asked(self, step: str, others: list[str], count: int) -> None:
        self._turns.note(step, empty=not count)
        if count:
            self._poller.go_on()
        else:
            self._ask(others)

    def _listen(self, step: str) -> None:
        if self._looking or step in self._listening:
            return
        if self._poller.has_room():
            self._listening.add(step)
            self._poller.ask(step, wait_s=None, share=len(self._steps), then=partial(self._heard, step))
        else:
            self._looking = True
            self._poller.go_on()

    def _heard(self, step: str, count: int) -> None:
        self._listening.discard(step)
        self._turns.note(step, empty=not count)
        if self._looking:
            return
        if count:
            self._looking = True
            self._poller.go_on()
        else:
            self._poller.pause(step, partial(self._listen, step))


class StepPoller:
    """What the polls of one work queue with priority steps need of a channel, until the queue is consumed again."""

    def __init__(self, channel: Any, queue: str, steps: Sequence[str]) -> None:
        self._channel, self._queue = channel, queue
        self._asked_s: dict[str, float] = {}
        self.polls = StepPolls(steps, self)

    def ask(self, step: str, *, wait_s: int | None, share: int, then: Then) -> None:
        channel = self._channel
        if not self._is_consumed():
            return
        self._asked_s[step] = time.monotonic()
        try:
            url, name = channel._new_queue(step), channel.canonical_queue_name(step)
            channel.asynsqs(queue=name).receive_message(
                name,
                url,
                number_messages=max(1, channel._most(url) // share),
                wait_time_seconds=channel.wait_time_seconds if wait_s is None else wait_s,
                callback=transform(channel._on_messages_ready, then, url, self._queue),
            )
        except Exception as error:  # as in Channel._schedule_queue
            logger.warning("cannot ask SQS for messages of %s: %r", step, error)
            polls.failed(repr(error))
            self.pause(step, lambda: then(0))

    def has_room(self) -> bool:
        return bool(self._channel._has_room())

    def go_on(self) -> None:
        if self._is_consumed():
            self._channel.soon(self._channel._schedule_queue, self._queue)

    def pause(self, step: str, then: Callable[[], None]) -> None:
        if self._is_consumed():
            self._channel.hub.call_later(self._channel.pause_s(self._asked_s[step]), then)

    def _is_consumed(self) -> bool:
        channel = self._channel
        return (
            not channel.closed and self._queue in channel._active_queues and channel._pollers.get(self._queue) is self
        )
