"""Who can be simulated, by name, and many simulations at once."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from celery_sqs.errors import ConfigurationError
from celery_sqs.scaler import policies
from celery_sqs.scaler.policies.base import Policy
from celery_sqs.scaler.policies.work import MODES
from celery_sqs.simulation import peers, workloads
from celery_sqs.simulation.bound import lower_bound
from celery_sqs.simulation.engine import Simulation
from celery_sqs.simulation.step import Step, StepTunables
from celery_sqs.simulation.target import Target, TargetTunables
from celery_sqs.simulation.world import Bound, Result, World


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A policy by the name that people call it, with a `make` that gives a new one for a fleet of so many."""

    name: str
    make: Callable[[World], Policy]
    force: bool = False
    """Whether it stops instances in mid-task."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One simulation, small enough to send to another process."""

    policy: str
    workload: str
    seed: int
    world: World
    keep_trace: bool = False


@dataclass(frozen=True, kw_only=True)
class BoundTask:
    """One lower bound."""

    workload: str
    seed: int
    world: World


def _ours(policy: str, mode: str = "balanced") -> Callable[[World], Policy]:
    def make(world: World) -> Policy:
        return policies.create(world.options(policy=policy, mode=mode))

    return make


def _keda_tuned(world: World) -> Policy:
    return peers.Keda(world.max_instances, queue_length=60, polling_s=5.0, stabilization_s=60.0, cooldown_s=60.0)


CONTESTANTS = {
    each.name: each
    for each in (
        *(Contestant(name=f"work/{mode}", make=_ours("work", mode)) for mode in MODES),
        *(Contestant(name=name, make=_ours(name)) for name in policies.NAMES if name != "work"),
        Contestant(name="target", make=lambda world: Target(TargetTunables(max_instances=world.max_instances))),
        Contestant(name="step", make=lambda world: Step(StepTunables(max_instances=world.max_instances))),
        Contestant(name="target-tracking", make=lambda world: peers.TargetTracking(world.max_instances), force=True),
        Contestant(name="keda", make=lambda world: peers.Keda(world.max_instances)),
        Contestant(name="keda-tuned", make=_keda_tuned),
        Contestant(name="knative", make=lambda world: peers.Knative(world.max_instances)),
        Contestant(name="naive", make=lambda world: peers.NaiveDepth(world.max_instances), force=True),
        Contestant(name="self-stop", make=lambda world: peers.SelfStop(world.max_instances)),
    )
}


def contestant(name: str) -> Contestant:
    """The contestant of that name; 'work' is its default mode. Raises ConfigurationError where there is none."""
    found = CONTESTANTS.get("work/balanced" if name == "work" else name)
    if found is None:
        raise ConfigurationError(f"there is no policy {name!r} to simulate: there are {', '.join(CONTESTANTS)}")
    return found


def simulate(task: Task) -> Result:
    """Run one task. Raises ConfigurationError for a policy or workload that cannot be used."""
    chosen = contestant(task.policy)
    workload = workloads.make(task.workload, task.seed, task.world)
    policy = chosen.make(task.world)
    result = Simulation(task.world, workload, policy, force=chosen.force, keep_trace=task.keep_trace).run()
    return replace(result, policy=chosen.name)


def bound(task: BoundTask) -> Bound:
    """Solve one task.

    Raises ConfigurationError for a workload that cannot be used or that the fleet cannot serve in time.
    """
    return lower_bound(workloads.make(task.workload, task.seed, task.world), task.world)


def run_all(tasks: Sequence[Task | BoundTask], *, processes: int | None = None) -> Iterator[Result | Bound]:
    """What each task gives, as it gets ready, from as many processes as there are cores (or tasks).

    Raises ConfigurationError, as the tasks do.
    """
    processes = min(processes or os.cpu_count() or 1, len(tasks))
    if processes <= 1:
        yield from map(_run, tasks)
        return
    with multiprocessing.get_context("forkserver").Pool(processes) as pool:
        yield from pool.imap_unordered(_run, tasks)


def _run(task: Task | BoundTask) -> Result | Bound:
    return bound(task) if isinstance(task, BoundTask) else simulate(task)
