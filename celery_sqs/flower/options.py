"""The options of Flower at home on SQS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class QueueRow(Protocol):
    """A queue as the broker page shows it."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str:
        """What it is for."""
        ...

    @property
    def visible(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def delayed(self) -> int: ...
    @property
    def messages(self) -> int:
        """All of them."""
        ...


@dataclass(frozen=True, kw_only=True)
class FlowerOptions:
    """Defaults, which Flower's own options and variables rule over, and what Flower does not have."""

    address: str = "127.0.0.1"
    port: int = 5555
    basic_auth: str = ""
    """USER:PASSWORD. Without one, or another of Flower's ways to log in, it answers this machine alone, and asks for
    the `key`."""
    key: str = ""
    """Told to whoever may use it. Default: a new one at each start, shown on the terminal."""
    printer: str = "Flower on a terminal"
    """Who prints the address with the key, for a sentence: 'open the address with ?key=... that NAME printed'."""
    cookie: str = "celery-sqs-flower"
    queues: Callable[[Any], Sequence[QueueRow]] | None = None
    """Lists the broker page's queues, with an SQS client; may raise BrokerUnavailable. Default: the work queues."""
    note: str = ""
    """A sentence below them."""
    password_setting: str = "FLOWER_BASIC_AUTH"
    key_setting: str = "the option key of celery_sqs.FlowerOptions"
    """How error messages call the two."""
    set_up_logging: Callable[[bool], object] | None = None
    """Sets up the process's logging, in detail for True (`--debug`). Default: logging.basicConfig."""
