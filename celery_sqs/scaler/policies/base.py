"""What a policy sees and what it answers.

A policy decides from an `Observation` and its own small memory, and does nothing else: no clock, no AWS, no randomness.
So the same objects run live, in a dry run and in the simulator, and the same observations give the same decisions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

BIN_S = 5.0
"""Seconds of one bin of `Observation.arrivals`."""
BINS = 24
"""Bins of `Observation.arrivals`: two minutes, so that they tell how old what waits is."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The work queues' messages, as SQS reports them: approximate, and at times a minute old."""

    visible: int
    in_flight: int
    delayed: int = 0
    """Sent, and not to be received yet, as an erasure that waits. They count as work once they are visible."""
    oldest_age_s: float = 0.0
    """Seconds that the oldest visible message has waited; 0 when nobody knows."""

    @property
    def outstanding(self) -> int:
        """The messages that a worker can do something about."""
        return self.visible + self.in_flight


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One worker instance that is billed."""

    id: str
    phase: Literal["booting", "ready", "draining"]
    """`ready` means that its worker was heard from, not that EC2 says running. `draining` takes no new messages."""
    billed_s: float
    """Seconds since it was started. AWS bills each second, and at least 60."""
    idle_s: float | None = None
    """Seconds since its worker last had a task; 0 while it has one, None when nobody knows."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Everything that a policy may know at one tick."""

    now_s: float
    """A monotonic clock, in seconds."""
    counts: Counts | None
    """None when the queue could not be asked or the answer is too old to act on."""
    service_s: float
    """Seconds that one instance needs for one message, on average of late."""
    boot_p50_s: float
    boot_p90_s: float
    """Quantiles of the last boots, from the start to the worker's first sign of life."""
    arrivals: tuple[float, ...] = ()
    """Messages that arrived in each of the last `BINS` bins of `BIN_S` seconds, oldest first; fewer right after a
    start."""
    instances: tuple[Instance, ...] = ()

    def phase(self, phase: str) -> tuple[Instance, ...]:
        """The instances in that phase."""
        return tuple(instance for instance in self.instances if instance.phase == phase)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What is to be done now. `reason` is one clause for the log and the page, with the numbers that decided."""

    wanted: int
    """How many instances there should be, booting ones included."""
    start: int = 0
    """How many to start, all in one call."""
    drain: tuple[str, ...] = ()
    """Ids to drain: each finishes what it holds and stops."""
    replace: tuple[str, ...] = ()
    """Ids that never came up: they are stopped, and others started for them (counted in `start`)."""
    reason: str = ""


class Policy(Protocol):
    """Decides how many instances there should be. Objects carry their own memory; one object serves one fleet."""

    name: str
    max_instances: int

    def decide(self, observation: Observation) -> Decision:
        """What to do now. Never starts beyond `max_instances`; does nothing when `observation.counts` is None (a dead
        boot may still be replaced)."""
        ...
