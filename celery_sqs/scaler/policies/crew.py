"""The instances as a policy weighs them: who works, who may yet come up, who never will, and who may go first."""

from __future__ import annotations

import math
from dataclasses import dataclass

from celery_sqs.scaler.policies.base import Instance, Observation

DEAD_BOOT_S = 120.0
"""Nobody is given up before this."""
SLOW_BOOT = 1.3
"""Nine in ten boots that go well take at most this many times the usual."""
LATE_SHARE = 1.1
LATE_BOOT_S = 3.0
"""A boot is late after LATE_SHARE times what nine in ten take, and this. The design had 1.2 and 5 s: with all faults on
a fifth more messages then missed the SLO, because the replacement came later."""
MIN_LATE_S = 50.0
"""Nobody is late before this: the first boots that were seen may have been quick ones (5 % dearer without)."""


@dataclass(frozen=True, kw_only=True)
class Crew:
    """One observation's instances, sorted by what can be expected of them."""

    ready: tuple[Instance, ...]
    booting: tuple[Instance, ...]
    """Those that may still be on time."""
    late: tuple[Instance, ...]
    """Booting for longer than nearly all boots do: nothing is expected of them, and nothing is done to them yet."""
    dead: tuple[Instance, ...]
    """Booting for so long that they will not come up: to be replaced."""
    exist: int
    """All of them, draining ones included: what counts against the most there may be."""

    @classmethod
    def of(cls, observation: Observation) -> Crew:
        slow_s = slow_boot_s(observation)
        booting = observation.phase("booting")
        late_s, dead_s = max(MIN_LATE_S, LATE_SHARE * slow_s + LATE_BOOT_S), max(DEAD_BOOT_S, 2.5 * slow_s)
        return cls(
            ready=observation.phase("ready"),
            booting=tuple(each for each in booting if each.billed_s <= min(late_s, dead_s)),
            late=tuple(each for each in booting if late_s < each.billed_s <= dead_s),
            dead=tuple(each for each in booting if each.billed_s > dead_s),
            exist=len(observation.instances),
        )

    @property
    def expected(self) -> int:
        """Those that work or will soon."""
        return len(self.ready) + len(self.booting)

    @property
    def live(self) -> int:
        """Those that work or may yet."""
        return self.expected + len(self.late)

    @property
    def quiet_s(self) -> float:
        """For how long no worker has had a task; 0 when one has or may have, or when there is none."""
        return min((each.idle_s or 0.0 for each in self.ready), default=0.0)

    @property
    def dead_ids(self) -> tuple[str, ...]:
        return tuple(each.id for each in self.dead)

    def younger_than(self, age_s: float) -> int:
        """How many of the live ones were started within the last `age_s`."""
        return sum(each.billed_s < age_s for each in (*self.ready, *self.booting, *self.late))

    def active(self, within_s: float) -> int:
        """How many workers have, or may have, had a task within that time."""
        return sum((each.idle_s or 0.0) < within_s for each in self.ready)

    def by_idleness(self) -> list[Instance]:
        """The ready ones in the order in which they may go: the longest idle first, then those that work or of which
        nobody knows, the oldest first."""
        return sorted(self.ready, key=lambda each: (-(each.idle_s or 0.0), -each.billed_s, each.id))

    def newest_boots(self) -> list[Instance]:
        """The booting ones, late ones included, the last started first."""
        return sorted((*self.booting, *self.late), key=lambda each: (each.billed_s, each.id))

    def room(self, max_instances: int) -> int:
        """How many more there may be. One that is on its way out still counts until it is gone."""
        return max(0, max_instances - self.exist)


def slow_boot_s(observation: Observation) -> float:
    """How long nine boots in ten last at most, of those that go well: a few that hang for minutes are no measure."""
    return min(finite(observation.boot_p90_s), SLOW_BOOT * finite(observation.boot_p50_s))


def finite(value: float, high: float = 86_400.0) -> float:
    """`value` within 0 and `high`; an estimate that is no number counts as 0."""
    return 0.0 if math.isnan(value) else min(max(value, 0.0), high)
