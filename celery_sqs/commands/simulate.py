"""Scaling policies on simulated days."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

NEEDED = ("numpy", "PIL", "rich")


@click.command()
@click.option("--policy", "policies", multiple=True, default=["work/balanced"], show_default=True, metavar="NAME|all")
@click.option("--workload", "workloads", multiple=True, default=["all"], show_default=True, metavar="NAME|FILE.csv|all")
@click.option("--seed", type=click.IntRange(0), help="The same seed gives the same run.  [default: a new one]")
@click.option("--runs", type=click.IntRange(1, 1000), default=1, show_default=True, help="Runs, with seeds in a row.")
@click.option("--instances", type=click.IntRange(1, 1000), default=20, show_default=True, help="Never more than these.")
@click.option("--slo", type=click.FloatRange(1, 86_400), default=120, show_default=True, help="Seconds for an answer.")
@click.option("--service", type=click.FloatRange(0.01, 20), default=1, show_default=True, help="Seconds of a message.")
@click.option("--faults", default="none", show_default=True, metavar="NAMES|all", help="What goes wrong, with commas.")
@click.option("--price", type=click.FloatRange(0), default=0.0416, show_default=True, help="USD an instance-hour.")
@click.option("--bound", is_flag=True, help="Compare with a lower bound that knows the future.")
@click.option("--plot", is_flag=True, help="Plot depth, instances and latency in the terminal.")
@click.option("--png", type=click.Path(path_type=Path), metavar="FILE", help="Plot them into this file.")
def simulate(**options: Any) -> None:
    """Try scaling policies on simulated days: what they make of workloads, and what they are billed.

    --policy and --workload can be given several times. Policies are this project's (work/fast, work/balanced, work/eco,
    depth, target, step) and what others do (target-tracking, keda, keda-tuned, knative, naive, self-stop).

    Workloads are step, bursts-10, bursts-50, bursts-100, diurnal, mmpp, flash-crowd, on-off, trickle and sparse;
    overlapping, thousands and lonely, which are not among all; or a CSV file with a column 'seconds': when each message
    arrives.

    Faults are lying-counts, dead-starts, throttling, spot-losses, slow-boots, duplicates, lost-events, doubled-events,
    disordered-events and old-counts.
    """
    try:
        from celery_sqs.simulation.command import options_of, simulate
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in NEEDED:
            raise
        raise click.ClickException(
            f"The simulation needs {error.name}, and numpy, Pillow and rich in all: pip install '.[simulation]'."
        ) from error

    simulate(options_of(**options))
