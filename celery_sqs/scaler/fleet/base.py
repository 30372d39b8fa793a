"""What the scaler needs of a fleet, whatever its workers run on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from celery_sqs.scaler.machine import Machine

if TYPE_CHECKING:
    from celery_sqs.scaler.options import ScalerOptions


class Fleet(Protocol):
    """The workers' instances. Methods may raise FleetError, and LeaseLost; a later tick tries again.

    A fleet remembers what a restart of the scaler must not miss: a machine's marks (`celery_sqs.scaler.machine`) are
    those that `start`, `drain` and `mark_ready` made. A worker on a machine is heard by its host name, which is the
    machine's name; told to stop, it finishes what it holds.
    """

    @property
    def now_s(self) -> float:
        """Unix time by the fleet's own clock."""
        ...

    @property
    def trouble(self) -> str:
        """Why nothing can be started just now; empty when it can."""
        ...

    @property
    def latest(self) -> int:
        """The latest version of what new machines are made from; 0 when it is not known, or there are no versions."""
        ...

    def check(self) -> None:
        """At the scaler's start. Raises ConfigurationError when it cannot work like this, FleetError otherwise."""
        ...

    def instances(self) -> Sequence[Machine]:
        """All instances that carry the stack's tag, those that are no workers included."""
        ...

    def start(self, count: int) -> Sequence[str]:
        """Start up to `count` instances, never beyond the limits; the ids of those that start."""
        ...

    def drain(self, ids: Iterable[str], *, dead_boots: int = 0) -> Sequence[str]:
        """Let these finish what they hold and stop; the ids of those that do. With `dead_boots`, because they never
        came up, as the so many in a row."""
        ...

    def mark_ready(self, ids: Iterable[str], *, measured: bool) -> None:
        """Remember that these workers were heard from; `measured`: just now for the first time."""
        ...

    def tidy(self) -> None:
        """Finish what a scaler that ended in the middle began: names, and stops that were announced. End the stopped
        ones that an older version of the launch template made."""
        ...


class FleetMaker(Protocol):
    """Makes a scaler's fleet."""

    def __call__(
        self, options: ScalerOptions, *, fence: Callable[[], int], on_error: Callable[[str, str], None]
    ) -> Fleet:
        """`fence` is to be called right before whatever changes something: it raises when this scaler must not act any
        more, and answers the fencing token. `on_error` is to be told of what failed: the call, and the kind of trouble,
        one word each."""
        ...
