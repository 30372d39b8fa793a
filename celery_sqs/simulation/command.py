"""The simulation as a command: policies over workloads, as a table and plots."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from celery_sqs.simulation import contest, plots, report, workloads
from celery_sqs.simulation.contest import BoundTask, Task
from celery_sqs.simulation.world import Bound, Faults, Result, World
from celery_sqs.texts import table


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command was asked for."""

    policies: Sequence[str]
    workloads: Sequence[str]
    world: World
    seed: int | None = None
    runs: int = 1
    bound: bool = False
    plot: bool = False
    png: Path | None = None
    price_usd_per_h: float = 0.0416


def options_of(
    *,
    policies: Sequence[str],
    workloads: Sequence[str],
    instances: int,
    slo: float,
    service: float,
    faults: str,
    price: float,
    **rest: Any,
) -> Options:
    """Options out of the command line's. Raises ConfigurationError for a fault that does not exist."""
    world = World(max_instances=instances, slo_s=slo, service_s=service, faults=Faults.named(faults))
    return Options(policies=policies, workloads=workloads, world=world, price_usd_per_h=price, **rest)


def simulate(options: Options) -> None:
    """Print the table, after a progress bar.

    Raises ConfigurationError for a policy, workload or file that cannot be used.
    """
    names = list(contest.CONTESTANTS) if "all" in options.policies else list(dict.fromkeys(options.policies))
    shapes = list(workloads.SHAPES) if "all" in options.workloads else list(dict.fromkeys(options.workloads))
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    seeds = range(seed, seed + options.runs)
    for name in names:
        contest.contestant(name)
    for shape in shapes:
        workloads.make(shape, seed, options.world)
    tasks: list[Task | BoundTask] = []
    if options.bound:
        tasks += [BoundTask(workload=shape, seed=each, world=options.world) for shape in shapes for each in seeds]
    traced = options.plot or options.png is not None
    tasks += [
        Task(policy=name, workload=shape, seed=each, world=options.world, keep_trace=traced and each == seed)
        for shape in shapes
        for name in names
        for each in seeds
    ]
    results, bounds = gather(tasks)
    last = f" to {seeds[-1]}" if len(seeds) > 1 else ""
    console = Console(highlight=False)
    console.print(f"seed {seed}{last}; {options.world.max_instances} instances, SLO {options.world.slo_s:g} s")
    cells = [row.cells(options.price_usd_per_h) for row in report.rows(results, bounds)]
    for line in table(report.HEADER, cells, numbers=report.HEADER[2:]):
        console.out(line, highlight=False)
    drawn = [result for result in results if result.trace]
    if options.plot:
        for result in drawn:
            console.out(plots.terminal(result, min(160, shutil.get_terminal_size().columns)), highlight=False)
    if options.png:
        plots.png(options.png, drawn)
        console.print(f"plotted to {options.png}")


def gather(tasks: Sequence[Task | BoundTask]) -> tuple[list[Result], list[Bound]]:
    """Everything that the tasks give, in a fixed order, with a progress bar on standard error while they run."""
    results: list[Result] = []
    bounds: list[Bound] = []
    columns = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("simulating", total=len(tasks))
        for each in contest.run_all(tasks):
            if isinstance(each, Bound):
                bounds.append(each)
            else:
                results.append(each)
            progress.advance(bar)
    order = {name: n for n, name in enumerate(contest.CONTESTANTS)}
    shapes = {Path(task.workload).stem: n for n, task in enumerate(tasks)}
    results.sort(key=lambda result: (shapes[result.workload], order[result.policy], result.seed))
    return results, bounds
