"""What the scaling policies make of nine workloads, beside what others do and beside a bound that knows the future.

`python -m benchmarks.scaler` simulates every policy on every workload, with new seeds each time unless `--seed` is
given (they are printed), and the default policy once more with everything going wrong that can. It prints the tables,
and for each of the project's goals what was seen and whether it is met; its status is 1 when one is not.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Mapping
from math import inf
from pathlib import Path
from statistics import fmean

from benchmarks.table import print_table
from faceapp.scaling.simulation import plots, report, workloads
from faceapp.scaling.simulation.command import gather
from faceapp.scaling.simulation.contest import CONTESTANTS, BoundTask, Task, simulate
from faceapp.scaling.simulation.report import Overall, Row, percent
from faceapp.scaling.simulation.world import Bound, Faults, World

OURS = "work/balanced"
BEYOND = "sparse"
"""Too little to keep an instance and too much to stop one: no causal policy comes near the bound. For information."""
SHAPES = [shape for shape in workloads.SHAPES if shape != BEYOND]
BOUND_LIMIT_S = 6.0
PRICE_USD_PER_H = 0.0416
PLOTTED = {"burst": "bursts-100", "day": "diurnal", "flash-crowd": "flash-crowd"}


def goals(overall: Mapping[str, Overall], faulty: Overall) -> Iterator[tuple[str, str, bool]]:
    """Each goal of the project for its scaler, what was seen, and whether that meets it.

    Costs over another's are geometric means over the workloads, so that each counts the same.
    """
    ours = overall[OURS]
    worst = max(ours.rows, key=lambda row: row.ratio)
    yield "no message later than 120 s, on any workload", percent(ours.worst_miss_share), ours.worst_miss_share == 0
    yield "no busy instance killed", str(ours.kills), ours.kills == 0
    yield "cost over the bound at most 1.45", f"{ours.ratio:.2f}", ours.ratio <= 1.45
    yield "and at most 1.8 on each workload", f"{worst.ratio:.2f} ({worst.workload})", worst.ratio <= 1.8
    for name, most in (("target-tracking", 0.37), ("keda", 0.31), ("keda-tuned", 1.0)):
        seen = ours.cost_over(overall[name])
        yield f"cost over {name}'s at most {most:g}", f"{seen:.2f}", seen <= most
    tuned = overall["keda-tuned"]
    seen, by_workload = ours.message_mean_s / tuned.message_mean_s, ours.mean_over(tuned)
    latency = f"{seen:.2f} ({by_workload:.2f} where each workload counts the same)"
    yield "mean latency of all messages over keda-tuned's at most 0.4", latency, seen <= 0.4
    missed = f"{percent(faulty.miss_share)} (worst {percent(faulty.worst_miss_share)})"
    yield "with all faults at most 1 % later than 120 s", missed, faulty.miss_share <= 0.01


def print_goals(overall: Mapping[str, Overall], faulty: Overall) -> bool:
    met = True
    for goal, seen, good in goals(overall, faulty):
        print(f"goal: {goal}: seen {seen}: {'met' if good else 'NOT met'}")
        met &= good
    return met


def print_rows(rows: list[Row]) -> None:
    print_table(report.HEADER, [row.cells(PRICE_USD_PER_H) for row in rows])


def print_bounds(bounds: list[Bound]) -> None:
    """The dual bounds of the programs, and how far below the optimum they may be (its best schedule found in time)."""
    by_shape = {shape: [bound for bound in bounds if bound.workload == shape] for shape in workloads.SHAPES}
    rows = [
        (
            shape,
            f"{fmean(each.billed_s for each in found):.0f}",
            f"{max(each.gap for each in found):.1%}" if all(each.found_s < inf for each in found) else "none found",
        )
        for shape, found in by_shape.items()
    ]
    print_table(("lower bound", "billed s", "largest gap"), rows)


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
    world, faulty_world = World(), World(faults=Faults.named("all"))
    started_s = time.monotonic()
    results, bounds = gather(
        [
            *(
                BoundTask(workload=shape, seed=seed, world=world, time_limit_s=BOUND_LIMIT_S)
                for shape in workloads.SHAPES
                for seed in seeds
            ),
            *(
                Task(policy=policy, workload=shape, seed=seed, world=world)
                for shape in workloads.SHAPES
                for policy in policies
                for seed in seeds
            ),
        ]
    )
    faults, _ = gather(
        [Task(policy=OURS, workload=shape, seed=seed, world=faulty_world) for shape in SHAPES for seed in seeds]
    )
    print(
        f"seeds {seeds[0]} to {seeds[-1]}; {world.max_instances} instances, 1 s a message, SLO {world.slo_s:g} s; ",
        end="",
    )
    print(f"took {time.monotonic() - started_s:.0f} s\n")
    rows = report.rows(results, bounds)
    overall = report.overall([row for row in rows if row.workload in SHAPES])
    print_table(report.OVERALL_HEADER, [each.cells() for each in overall.values()])
    print_rows([row for row in rows if row.policy == OURS])
    print_bounds(bounds)
    print(f"{OURS} with all faults on:\n")
    faulty = report.overall(report.rows(faults))[OURS]
    print_rows(list(faulty.rows))
    if options.plots:
        draw(options.plots, first)
    return 0 if print_goals(overall, faulty) else 1


if __name__ == "__main__":
    raise SystemExit(main())
