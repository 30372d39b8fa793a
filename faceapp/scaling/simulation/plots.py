"""A run over time: depth, instances and latency, as a PNG file (drawn with Pillow) or in the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from faceapp.errors import ConfigError
from faceapp.scaling.simulation.world import Result

BLOCKS = " ▁▂▃▄▅▆▇█"
SCALE = 2
WIDTH_PX, PANEL_PX, LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX = 960, 170, 64, 16, 30, 26
PAPER, INK, GRID = "#ffffff", "#24292f", "#d8dee4"
COLOURS = ("#0969da", "#bf8700", "#1a7f37")


@dataclass(frozen=True)
class Panel:
    """Lines of values over the same `columns` spans of time."""

    title: str
    lines: dict[str, list[float]]


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
    return [
        Panel(
            "messages",
            {
                "visible": highest([(each.now_s, each.visible) for each in trace]),
                "in flight": highest([(each.now_s, each.in_flight) for each in trace]),
            },
        ),
        Panel(
            "instances",
            {
                "billed": highest([(each.now_s, each.billed) for each in trace]),
                "ready": highest([(each.now_s, each.ready) for each in trace]),
            },
        ),
        Panel("latency s", {"answered": highest(list(zip(result.done_s, result.latencies_s, strict=True)))}),
    ]


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
    """Draw the results beside each other's time, one below the other. Raises ConfigError when it cannot be written."""
    columns = WIDTH_PX - LEFT_PX - RIGHT_PX
    drawn = [(result, panel) for result in results for panel in panels(result, columns)]
    image = Image.new("RGB", (WIDTH_PX * SCALE, PANEL_PX * len(drawn) * SCALE), PAPER)
    pen = ImageDraw.Draw(image)
    for n, (result, panel) in enumerate(drawn):
        _draw(pen, n * PANEL_PX, result, panel)
    try:
        image.save(path, format="PNG", optimize=True)
    except OSError as error:
        raise ConfigError(f"the plot cannot be written to {path}: {error}") from error


def _draw(pen: ImageDraw.ImageDraw, top_px: int, result: Result, panel: Panel) -> None:
    font = ImageFont.load_default(12 * SCALE)
    most = max(1.0, *(value for values in panel.lines.values() for value in values))
    step = _nice(most / 3)
    most = step * math.ceil(most / step)
    floor = top_px + PANEL_PX - BOTTOM_PX
    per_value = (PANEL_PX - TOP_PX - BOTTOM_PX) / most

    def at(column: float, value: float) -> tuple[float, float]:
        return (LEFT_PX + column) * SCALE, (floor - value * per_value) * SCALE

    columns = WIDTH_PX - LEFT_PX - RIGHT_PX
    for n in range(round(most / step) + 1):
        pen.line([at(0, n * step), at(columns, n * step)], GRID, SCALE)
        x, y = at(-8, n * step)
        pen.text((x, y), f"{n * step:g}", INK, font, anchor="rm")
    minutes = _nice(result.end_s / 60 / 8)
    for n in range(int(result.end_s / 60 / minutes) + 1):
        x, y = at(n * minutes * 60 / result.end_s * columns, 0)
        pen.text((x, y + 4 * SCALE), f"{n * minutes:g}{' min' if n == 0 else ''}", INK, font, anchor="ma")
    pen.text(
        at(0, most + 14 / per_value), f"{result.policy} on {result.workload}: {panel.title}", INK, font, anchor="lm"
    )
    x = float(WIDTH_PX * SCALE - RIGHT_PX * SCALE)
    for (name, values), colour in zip(panel.lines.items(), COLOURS, strict=False):
        pen.line([at(n, value) for n, value in enumerate(values)], colour, 2 * SCALE, joint="curve")
        pen.text((x, at(0, most + 14 / per_value)[1]), name, colour, font, anchor="rm")
        x -= pen.textlength(name, font) + 14 * SCALE


def _nice(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(max(least, 1.0)))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
