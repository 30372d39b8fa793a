"""A run over time: depth, instances and latency, as a PNG file or in the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from celery_sqs.errors import ConfigurationError
from celery_sqs.plots import Panel, draw
from celery_sqs.simulation.world import Result

BLOCKS = " ▁▂▃▄▅▆▇█"
COLUMNS = 900
"""Spans of time in a PNG file."""


def panels(result: Result, columns: int) -> list[Panel]:
    """Depth, instances and latency, each span with its highest value. The result needs its trace."""
    span_s = max(1.0, result.end_s) / columns

    def highest(points: Sequence[tuple[float, float]]) -> list[float]:
        values = [0.0] * columns
        for at_s, value in points:
            column = min(columns - 1, int(at_s / span_s))
            values[column] = max(values[column], value)
        return values

    trace = result.trace
    minutes = [column * span_s / 60 for column in range(columns)]
    found: dict[str, dict[str, Sequence[float]]] = {
        "messages": {
            "visible": highest([(each.now_s, each.visible) for each in trace]),
            "in flight": highest([(each.now_s, each.in_flight) for each in trace]),
        },
        "instances": {
            "billed": highest([(each.now_s, each.billed) for each in trace]),
            "ready": highest([(each.now_s, each.ready) for each in trace]),
        },
        "latency s": {"answered": highest(list(zip(result.done_s, result.latencies_s, strict=True)))},
    }
    return [Panel(title, minutes, lines, unit="min", steps=False) for title, lines in found.items()]


def terminal(result: Result, columns: int) -> str:
    """Lines of unicode blocks, one for each thing that is plotted, with its name and highest value."""
    columns = max(10, columns - 26)
    lines = [f"{result.policy} on {result.workload}, {result.end_s / 60:.0f} minutes"]
    for panel in panels(result, columns):
        for name, values in panel.lines.items():
            top = max(values) or 1.0
            bar = "".join(BLOCKS[math.ceil(value / top * (len(BLOCKS) - 1))] for value in values)
            lines.append(f"{f'{panel.title}: {name}':>19} {max(values):5.0f} {bar}")
    return "\n".join(lines)


def png(path: Path, results: Sequence[Result]) -> None:
    """Draw the results one below the other, each over its own time.

    Raises ConfigurationError when it cannot be written.
    """
    drawn = [
        replace(panel, title=f"{result.policy} on {result.workload}: {panel.title}")
        for result in results
        for panel in panels(result, COLUMNS)
    ]
    try:
        draw(path, drawn)
    except OSError as error:
        raise ConfigurationError(f"the plot cannot be written to {path}: {error}") from error
