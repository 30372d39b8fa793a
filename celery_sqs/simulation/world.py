"""What is simulated: the setting, what goes wrong in it, and what a run leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

from celery_sqs.errors import ConfigurationError
from celery_sqs.pace import PREFETCH
from celery_sqs.quantiles import nearest_rank
from celery_sqs.scaler.options import ScalerOptions


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong on top of ordinary SQS and EC2, each as a rate; all are off by default."""

    lying_counts: float = 0.0
    """Share of answers about the queue's depth that are far off, or no answer at all (a quarter of them); with any, all
    answers stand still for up to a minute every ten minutes or so."""
    dead_starts: float = 0.0
    """Share of starts after which the worker is never heard from."""
    throttling: float = 0.0
    """Share of StartInstances calls that EC2 throttles (nothing starts) or has no capacity for (half of them start)."""
    spot_losses: float = 0.0
    """Losses per ready instance and hour. Nine in ten come with the two-minute notice, which becomes a drain."""
    slow_boots: float = 0.0
    """Share of boots that take three times as long."""
    duplicates: float = 0.0
    """Share of receives whose message another worker gets as well."""
    lost_events: float = 0.0
    """Share of the workers' events that never arrive, heartbeats among them."""
    doubled_events: float = 0.0
    """Share of the workers' events that arrive twice."""
    disordered_events: float = 0.0
    """Share of the workers' events that arrive up to two seconds late, and so after others that were sent later."""
    old_counts: float = 0.0
    """Share of answers about the queue's depth that are up to a minute old, beside the few that always are."""

    @classmethod
    def named(cls, names: str) -> Faults:
        """The usual rate of each fault in `names`: 'all', 'none', or names with commas between them.

        Raises ConfigurationError for a name that does not exist.
        """
        if names in ("", "none"):
            return cls()
        wanted = list(USUAL) if names == "all" else [name.strip().replace("-", "_") for name in names.split(",")]
        for name in wanted:
            if name not in USUAL:
                known = ", ".join(each.replace("_", "-") for each in USUAL)
                raise ConfigurationError(f"there is no fault {name!r}: faults are {known}, all and none")
        return cls(**{name: USUAL[name] for name in wanted})


USUAL = {
    "lying_counts": 0.1,
    "dead_starts": 0.05,
    "throttling": 0.2,
    "spot_losses": 1.0,
    "slow_boots": 0.1,
    "duplicates": 0.005,
    "lost_events": 0.1,
    "doubled_events": 0.1,
    "disordered_events": 1.0,
    "old_counts": 0.1,
}
assert set(USUAL) == {each.name for each in fields(Faults)}


@dataclass(frozen=True, kw_only=True)
class World:
    """The setting of a simulation. The defaults are those that the policies were designed in."""

    max_instances: int = 20
    slo_s: float = 120.0
    tick_s: float = 3.0
    service_s: float = 1.0
    """Mean seconds of a message; single ones are lognormal around it."""
    remembers: bool = True
    """Whether the stack has run before, so that the scaler knows how long a message takes."""
    assumed_service_s: float = 0.15
    """What it assumes where it has not: faceapp's default."""
    service_spread: float = 0.3
    """Standard deviation of a message's seconds over their mean."""
    boot_min_s: float = 20.0
    boot_max_s: float = 50.0
    """From StartInstances to the first message, uniform between the two."""
    stop_min_s: float = 10.0
    stop_max_s: float = 30.0
    """How long a stopped instance is 'stopping': no longer billed, and not to be started yet."""
    min_billed_s: float = 60.0
    """AWS bills Linux instances by the second, and at least a minute for each start."""
    visibility_s: float = 90.0
    """As in deploy/stack.yaml: how long a message that a killed worker held stays away."""
    max_receives: int = 3
    """As in deploy/stack.yaml: a message that comes back after so many receives is a dead letter."""
    prefetch: int = PREFETCH
    """Messages that one worker holds at most, the one it works on included."""
    exact_counts: bool = False
    """Whether the queue's counts are true and fresh; SQS's are neither."""
    tail_s: float = 3600.0
    """A run ends when everything is answered and stopped, and so long after the last arrival at the latest."""
    faults: Faults = Faults()

    def options(self, *, policy: str = "work", mode: str = "balanced") -> ScalerOptions:
        """A scaler's options in this world; what it does not say is their default."""
        return ScalerOptions(
            policy=policy,
            mode=mode,
            max_instances=self.max_instances,
            slo_s=self.slo_s,
            tick_s=self.tick_s,
            service_s=self.assumed_service_s,
        )


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One second of a run, for plots."""

    now_s: float
    visible: int
    in_flight: int
    ready: int
    billed: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one policy made of one workload."""

    policy: str
    workload: str
    seed: int
    slo_s: float
    messages: int
    latencies_s: tuple[float, ...]
    """Of the answered messages, from sent to done, in the order of the answers."""
    done_s: tuple[float, ...]
    """When each of them was done."""
    dead_letters: int
    billed_s: float
    launches: int
    kills: int
    """Busy instances that the policy stopped in mid-task."""
    losses: int
    """Busy instances that EC2 took without a notice."""
    duplicates: int
    """Messages that were done once more than needed."""
    end_s: float
    trace: tuple[Trace, ...] = ()

    @property
    def unanswered(self) -> int:
        return self.messages - len(self.latencies_s) - self.dead_letters

    @cached_property
    def _sorted(self) -> list[float]:
        return sorted(self.latencies_s)

    @property
    def mean_s(self) -> float:
        return sum(self.latencies_s) / max(1, len(self.latencies_s))

    def quantile_s(self, share: float) -> float:
        """The latency that `share` of the answered messages did not exceed (nearest rank); 0 without any."""
        return nearest_rank(self._sorted, share) if self._sorted else 0.0

    @property
    def misses(self) -> int:
        """Messages answered later than the SLO, or never."""
        return sum(latency > self.slo_s for latency in self.latencies_s) + self.messages - len(self.latencies_s)

    @property
    def miss_share(self) -> float:
        return self.misses / max(1, self.messages)


@dataclass(frozen=True, kw_only=True)
class Bound:
    """No schedule that keeps the SLO is billed less than `billed_s`."""

    workload: str
    seed: int
    billed_s: float
