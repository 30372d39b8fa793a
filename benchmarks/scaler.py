"""What the scaling policies make of nine workloads, beside what others do and beside a bound that knows the future.

`python -m benchmarks.scaler` simulates every policy on every workload, with new seeds each time unless `--seed` is
given (they are printed), and the default policy on days of their own: with everything going wrong that can, with events
that get lost, with slow boots, on a new stack. It prints the tables, and for each of the project's goals what was seen
and whether it is met; its status is 1 when one is not.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.table import print_table
from celery_sqs.simulation import plots, report, workloads
from celery_sqs.simulation.command import gather
from celery_sqs.simulation.contest import CONTESTANTS, BoundTask, Task, simulate
from celery_sqs.simulation.report import Overall, Row, percent
from celery_sqs.simulation.world import Bound, Faults, World

OURS = "work/balanced"
BEYOND = "sparse"
"""Too little to keep an instance and too much to stop one: no causal policy comes near the bound. For information."""
SHAPES = [shape for shape in workloads.SHAPES if shape != BEYOND]
PRICE_USD_PER_H = 0.0416
PLOTTED = {"burst": "bursts-100", "day": "diurnal", "flash-crowd": "flash-crowd"}


@dataclass(frozen=True)
class Trial:
    """The default policy, and perhaps others, on some workloads in a world of their own."""

    title: str
    shapes: Sequence[str]
    world: World
    policies: Sequence[str] = (OURS,)
    bounds: bool = False


EVENTS = Faults.named("lost-events,doubled-events,disordered-events,old-counts")
SLOW = World(boot_min_s=60, boot_max_s=90)
TRIALS = {
    "all": Trial("all faults", SHAPES, World(faults=Faults.named("all"))),
    "events": Trial(
        "a tenth of the events lost, a tenth doubled, all up to 2 s late, a tenth of the counts up to a minute old",
        SHAPES,
        World(faults=EVENTS),
        bounds=True,
    ),
    "slow": Trial("boots of 60 to 90 s", SHAPES, SLOW, policies=(OURS, "keda-tuned")),
    "overlapping": Trial("40 messages every 60 s", ["overlapping"], World(), bounds=True),
    "lonely": Trial("one message every 75 s", ["lonely"], World()),
    "new": Trial(
        "a new stack, three bursts of 1,000 photos of 0.035 s",
        ["thousands"],
        World(service_s=0.035, remembers=False),
        bounds=True,
    ),
}
Trials = Mapping[str, Mapping[str, Overall]]
"""What each trial gave, by policy."""


def goals(overall: Mapping[str, Overall], trials: Trials) -> Iterator[tuple[str, str, bool]]:
    """Each goal of the project for its scaler, what was seen, and whether that meets it.

    Costs over another's are geometric means over the workloads, so that each counts the same.
    """
    ours = overall[OURS]
    worst = max(ours.rows, key=lambda row: row.ratio)
    yield "no message later than 120 s, on any workload", percent(ours.worst_miss_share), ours.worst_miss_share == 0
    yield "no busy instance killed", str(ours.kills), ours.kills == 0
    yield "cost over the bound at most 1.40", f"{ours.ratio:.2f}", ours.ratio <= 1.40
    yield "and at most 1.7 on each workload", f"{worst.ratio:.2f} ({worst.workload})", worst.ratio <= 1.7
    for name, most in (("target-tracking", 0.37), ("keda", 0.31), ("keda-tuned", 1.0)):
        seen = ours.cost_over(overall[name])
        yield f"cost over {name}'s at most {most:g}", f"{seen:.2f}", seen <= most
    tuned = overall["keda-tuned"]
    seen, by_workload = ours.message_mean_s / tuned.message_mean_s, ours.mean_over(tuned)
    latency = f"{seen:.2f} ({by_workload:.2f} where each workload counts the same)"
    yield "mean latency of all messages over keda-tuned's at most 0.4", latency, seen <= 0.4
    for name, most in (("all", 0.01), ("events", 0.001)):
        faulty = trials[name][OURS]
        missed = f"{percent(faulty.miss_share)} (worst {percent(faulty.worst_miss_share)})"
        yield f"{TRIALS[name].title}: at most {most:.1%} later than 120 s", missed, faulty.miss_share <= most
    slow, slow_tuned = trials["slow"][OURS], trials["slow"]["keda-tuned"]
    seen = slow.cost_over(slow_tuned)
    late = f"{percent(slow.miss_share)} late, keda-tuned {percent(slow_tuned.miss_share)}"
    met = seen <= 1.3 and slow.miss_share < slow_tuned.miss_share
    yield f"{TRIALS['slow'].title}: at most 1.3 times keda-tuned's cost, fewer late", f"{seen:.2f}, {late}", met
    for name, most in (("overlapping", 1.7), ("new", 2.0)):
        seen = trials[name][OURS].ratio
        yield f"{TRIALS[name].title}: cost over the bound at most {most:g}", f"{seen:.2f}", seen <= most
    mean_s = trials["lonely"][OURS].mean_s
    yield f"{TRIALS['lonely'].title}: at most 30 s at the mean", f"{mean_s:.1f} s", mean_s <= 30


def print_goals(overall: Mapping[str, Overall], trials: Trials) -> bool:
    met = True
    for goal, seen, good in goals(overall, trials):
        print(f"goal: {goal}: seen {seen}: {'met' if good else 'NOT met'}")
        met &= good
    return met


def take(trial: Trial, seeds: Sequence[int], bounds: Sequence[Bound]) -> list[Row]:
    """A trial's rows. Faults do not change a bound, so those of the plain workloads serve there."""
    tasks: list[Task | BoundTask] = [
        Task(policy=policy, workload=shape, seed=seed, world=trial.world)
        for shape in trial.shapes
        for policy in trial.policies
        for seed in seeds
    ]
    if trial.bounds and not bounds:
        tasks += [BoundTask(workload=shape, seed=seed, world=trial.world) for shape in trial.shapes for seed in seeds]
    results, found = gather(tasks)
    return report.rows(results, (bounds or found) if trial.bounds else ())


def print_rows(rows: list[Row]) -> None:
    print_table(report.HEADER, [row.cells(PRICE_USD_PER_H) for row in rows])


def print_bounds(bounds: list[Bound]) -> None:
    by_shape = {shape: [bound for bound in bounds if bound.workload == shape] for shape in workloads.SHAPES}
    rows = [(shape, f"{fmean(each.billed_s for each in found):.0f}") for shape, found in by_shape.items()]
    print_table(("lower bound", "billed s"), rows)


def draw(folder: Path, seed: int) -> None:
    """Plots of the default policy and tuned KEDA on a few workloads."""
    for file, shape in PLOTTED.items():
        tasks = [
            Task(policy=policy, workload=shape, seed=seed, world=World(), keep_trace=True)
            for policy in (OURS, "keda-tuned")
        ]
        path = folder / f"scaler-{file}.png"
        plots.png(path, [simulate(task) for task in tasks])
        print(f"plotted to {path}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="the first seed (default: a new one)")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds (default: 3)")
    parser.add_argument("--policy", action="append", help="only this one beside those that the goals name")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw scaler-*.png into this folder")
    options = parser.parse_args()
    first = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    seeds = range(first, first + options.seeds)
    needed = (OURS, "target-tracking", "keda", "keda-tuned")
    policies = [name for name in CONTESTANTS if not options.policy or name in (*needed, *options.policy)]
    world = World()
    started_s = time.monotonic()
    results, bounds = gather(
        [
            *(BoundTask(workload=shape, seed=seed, world=world) for shape in workloads.SHAPES for seed in seeds),
            *(
                Task(policy=policy, workload=shape, seed=seed, world=world)
                for shape in workloads.SHAPES
                for policy in policies
                for seed in seeds
            ),
        ]
    )
    rows = report.rows(results, bounds)
    overall = report.overall([row for row in rows if row.workload in SHAPES])
    print(f"seeds {seeds[0]} to {seeds[-1]}; {world.max_instances} instances, 1 s a message, SLO {world.slo_s:g} s\n")
    print_table(report.OVERALL_HEADER, [each.cells() for each in overall.values()])
    print_rows([row for row in rows if row.policy == OURS])
    print_bounds(bounds)
    trials: dict[str, Mapping[str, Overall]] = {}
    for name, trial in TRIALS.items():
        print(f"{trial.title}:\n")
        found = take(trial, seeds, bounds if name == "events" else ())
        print_rows(found)
        trials[name] = report.overall(found)
        if trial.bounds:
            print_table(report.OVERALL_HEADER, [each.cells() for each in trials[name].values()])
    print(f"took {time.monotonic() - started_s:.0f} s\n")
    if options.plots:
        draw(options.plots, first)
    return 0 if print_goals(overall, trials) else 1


if __name__ == "__main__":
    raise SystemExit(main())
