"""What an application may give to the framework."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

Life = Literal["process", "place", "stack"]
"""How long a queue lives: it goes with its process; it stays for the next process in the same place, and is swept when
there has been none for long; it is the stack's own."""


@dataclass(frozen=True, kw_only=True)
class GivenUp:
    """A task that will not be tried again, and what ended it: the name of an exception's class."""

    task: str
    task_id: str
    arguments: tuple[Any, ...]
    error: str


def _take_all(_body: str) -> str:
    return ""


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """All of them may be left out."""

    refuse: Callable[[str], str] = _take_all
    """Why a worker takes a message's text (JSON, as SQS has it) for no task of its own; empty when it takes it. What is
    refused goes back, and to the dead letters where the queue has any."""
    give_up: Callable[[GivenUp], Any] | None = None
    """Makes the answer to a task that is given up, of any JSON, instead of Celery's failure; returning NotImplemented
    leaves that as it is. It may take a few seconds, and runs in the task's process or, where that was lost, in the
    worker's main process."""
    replying: Callable[[], AbstractContextManager[Any]] = nullcontext
    """A context in which a reply is sent: a tracing span."""
    reply_queue: Callable[[], tuple[str, Life]] | None = None
    """The whole name of the queue that this process's answers come to, and how long it lives; without it each process
    makes one of its own at its first call."""
    advice_on_shared_replies: str = "give each process a reply queue of its own (Hooks.reply_queue)"
    """What the log says where two processes read one reply queue."""
