"""Line plots as PNG files, drawn with Pillow: panels below each other, each over its own time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SCALE = 2
"""Drawn at twice the size, for screens with fine pixels."""
WIDTH, HEIGHT = 900, 230
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 40, 34
INK, GRID, PAPER = "#24292f", "#d8dee4", "#ffffff"
COLOURS = ("#0969da", "#bc4c00", "#1a7f37")


@dataclass(frozen=True)
class Panel:
    """Lines over time: a title, and by name the values at `times`; `steps` holds each value until the next."""

    title: str
    times: Sequence[float]
    lines: dict[str, Sequence[float]]
    unit: str = "s"
    steps: bool = True


def draw(path: Path, panels: Sequence[Panel]) -> None:
    """Write the panels to `path`, one below the other. Raises OSError."""
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * len(panels) * SCALE), PAPER)
    pen = ImageDraw.Draw(image)
    for n, panel in enumerate(panels):
        _panel(pen, n * HEIGHT, panel)
    image.save(path, format="PNG", optimize=True)


def _panel(pen: ImageDraw.ImageDraw, y0: int, panel: Panel) -> None:
    longest = max(panel.times, default=0.0) or 1.0
    highest = max((value for line in panel.lines.values() for value in line), default=0.0) or 1.0
    step, time_step = _tick(highest, 4), _tick(longest, 8)
    highest = math.ceil(highest / step) * step

    def x(at: float) -> float:
        return (LEFT + at / longest * (WIDTH - LEFT - RIGHT)) * SCALE

    def y(value: float) -> float:
        return (y0 + HEIGHT - BOTTOM - value / highest * (HEIGHT - TOP - BOTTOM)) * SCALE

    font = ImageFont.load_default(13 * SCALE)
    for n in range(round(highest / step) + 1):
        pen.line([(x(0), y(n * step)), (x(longest), y(n * step))], GRID, SCALE)
        pen.text((x(0) - 8 * SCALE, y(n * step)), f"{n * step:g}", INK, font, anchor="rm")
    for n in range(int(longest / time_step) + 1):
        unit = "" if n else f" {panel.unit}"
        pen.text((x(n * time_step), y(0) + 6 * SCALE), f"{n * time_step:g}{unit}", INK, font, anchor="ma")
    pen.text((x(0), (y0 + 12) * SCALE), panel.title, INK, font)
    legend = x(longest)
    for (name, values), colour in zip(panel.lines.items(), COLOURS, strict=False):
        points = [(x(at), y(value)) for at, value in zip(panel.times, values, strict=True)]
        if panel.steps:
            corners = [(b[0], a[1]) for a, b in itertools.pairwise(points)]
            points = [each for pair in zip(points, corners, strict=False) for each in pair] + points[-1:]
        pen.line(points, colour, 2 * SCALE, joint="curve")
        pen.text((legend, (y0 + 12) * SCALE), name, colour, font, anchor="ra")
        legend -= pen.textlength(name, font) + 18 * SCALE


def _tick(longest: float, count: int) -> float:
    """A round step (1, 2 or 5 times a power of ten) with about `count` of them in `longest`."""
    rough = longest / count
    power: float = 10 ** math.floor(math.log10(rough))
    return next(step * power for step in (1.0, 2.0, 5.0, 10.0) if step * power >= rough * 0.999)
