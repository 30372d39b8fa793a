"""The options of a scaler."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from celery_sqs.errors import ConfigurationError
from celery_sqs.scaler import policies
from celery_sqs.scaler.machine import Naming

if TYPE_CHECKING:
    from celery_sqs.options import Options
    from celery_sqs.scaler.fleet.base import FleetMaker


@dataclass(frozen=True, kw_only=True)
class ScalerOptions:
    """What is scaled, by what, and where the scaler keeps what it knows. Times are in seconds.

    Raises ConfigurationError for values that cannot be used.
    """

    stack: str = ""
    """One fleet's name: the value of its instances' tag `<tag_namespace>:stack`. Default: the application's prefix."""
    queues: tuple[str, ...] = ()
    """Which of the application's work queues this fleet works on; all of them count together. Default: all."""
    max_instances: int = 15
    policy: str = "work"
    """`work`, or `depth`: one instance for each message, up to the most."""
    mode: str = "balanced"
    """Of the policy work: `fast`, `balanced` or `eco`, what a second of waiting is worth."""
    slo_s: float = 120.0
    """A task is to be done within this time."""
    tick_s: float = 3.0
    service_s: float = 1.0
    """Of one instance for one task, until tasks were measured."""
    boot_s: float = 45.0
    """From an instance's start to its first task, until boots were measured."""
    starts_per_minute: int = 60
    daily_instance_s: int = 0
    """A day's budget of instance-seconds; 0: none."""

    fleet: FleetMaker | None = None
    """Makes the fleet. Default: instances on EC2, with the options that follow."""
    launch_template: str = ""
    """Of the workers' instances. Default: `<stack>-worker`."""
    instance_name: str = "worker-{n}"
    tag_namespace: str = "celery-sqs"
    tier: str = "workers"
    other_instances: tuple[str, ...] = ()
    """Names of instances that carry the stack's tag and are no workers."""
    subnets: tuple[str, ...] = ()
    """For new instances, tried in turn when one has no capacity; none: the default network's."""
    instance_types: tuple[str, ...] = ()
    """Tried in turn when one has no capacity, after the launch template's own."""

    lease_bucket: str = ""
    """Where the object is for which scalers compete. Default: the bucket of results."""
    lease_key: str = ""
    """Default: `scaler/<stack>/lease.json`."""
    former_lease_bucket: str = ""
    """Where an earlier version kept it: what is found there is respected, and removed once nobody holds it."""
    dead_letter_queue: str = ""
    """Counted in the metrics, if there is one."""

    status_host: str = "127.0.0.1"
    status_port: int = 8001
    """0: any that is free."""
    metrics_prefix: str = "celery_sqs_scaler"
    version: str = ""
    """Of the application, for the metric `build_info`."""
    cloudwatch_namespace: str = ""
    """Where CloudWatch is told of dead boots and the budget; empty: it is not."""

    prefetch: int = 0
    """Messages that a worker holds for each of its processes. 0: the application's `worker_prefetch_multiplier`."""
    worked_s: Callable[[Mapping[str, Any]], float | None] | None = None
    """Of an event task-succeeded: the seconds of work in it; None when they say nothing. Default: its runtime."""
    span: Callable[[str], AbstractContextManager[Any]] = lambda _: nullcontext()
    """A context in which a tick runs: a tracing span."""
    note: Callable[[Mapping[str, Any]], object] = lambda _: None
    """Is told in it what the tick came to."""

    def __post_init__(self) -> None:
        for name, least in (("max_instances", 0), ("starts_per_minute", 1), ("daily_instance_s", 0), ("prefetch", 0)):
            if getattr(self, name) < least:
                raise ConfigurationError(f"{name} is {getattr(self, name)}, and {least} is the least")
        for name in ("slo_s", "tick_s", "service_s", "boot_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigurationError(f"{name} is {getattr(self, name)}, and has to be more than 0")
        if not 0 <= self.status_port <= 65_535:
            raise ConfigurationError(f"status_port is {self.status_port}, and a port is a number from 0 to 65535")
        if not re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", self.metrics_prefix):
            raise ConfigurationError(f"metrics_prefix is {self.metrics_prefix!r}: it takes letters, digits and _")
        given: object = self.queues
        if isinstance(given, str):
            raise ConfigurationError(f"queues is a text: write ({given!r},)")
        policies.create(self)  # which checks policy and mode
        _ = self.naming  # which checks instance_name

    @property
    def naming(self) -> Naming:
        """How the instances are named and tagged."""
        return Naming(
            stack=self.stack,
            namespace=self.tag_namespace,
            name=self.instance_name,
            tier=self.tier,
            others=self.other_instances,
        )

    def of(self, application: Options) -> ScalerOptions:
        """With the defaults that an application gives. Raises ConfigurationError where something is missing."""
        if strange := [each for each in self.queues if each not in application.queues]:
            raise ConfigurationError(
                f"The scaler's queue {strange[0]!r} is none of the application's: {', '.join(application.queues)}"
            )
        stack = self.stack or application.prefix
        found = replace(
            self,
            stack=stack,
            queues=self.queues or application.queues,
            launch_template=self.launch_template or f"{stack}-worker",
            lease_bucket=self.lease_bucket or application.results_bucket,
            lease_key=self.lease_key or f"scaler/{stack}/lease.json",
        )
        if not found.stack:
            raise ConfigurationError("The fleet has no name: set the option prefix, or the scaler's option stack")
        if not found.lease_bucket:
            raise ConfigurationError("The scaler's lease has no bucket: set results_bucket, or the option lease_bucket")
        return found
