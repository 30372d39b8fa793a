"""Line plots as PNG files, drawn with Pillow: panels below each other over one time axis."""

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
    """Lines over time: a title, and by name the values at `times_s`; `steps` holds each value until the next."""

    title: str
    lines: dict[str, Sequence[float]]
    steps: bool = True


def draw(path: Path, times_s: Sequence[float], panels: Sequence[Panel]) -> None:
    """Write the panels to `path`, one below the other."""
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * len(panels) * SCALE), PAPER)
    pen = ImageDraw.Draw(image)
    for n, panel in enumerate(panels):
        _panel(pen, n * HEIGHT, times_s, panel, last=n == len(panels) - 1)
    image.save(path, optimize=True)


def _panel(pen: ImageDraw.ImageDraw, y0: int, times_s: Sequence[float], panel: Panel, *, last: bool) -> None:
    longest_s = max(times_s, default=0.0) or 1.0
    highest = max((value for line in panel.lines.values() for value in line), default=0.0) or 1.0
    step, step_s = _tick(highest, 4), _tick(longest_s, 8)
    highest = math.ceil(highest / step) * step

    def x(at_s: float) -> float:
        return (LEFT + at_s / longest_s * (WIDTH - LEFT - RIGHT)) * SCALE

    def y(value: float) -> float:
        return (y0 + HEIGHT - BOTTOM - value / highest * (HEIGHT - TOP - BOTTOM)) * SCALE

    font = ImageFont.load_default(13 * SCALE)
    for n in range(round(highest / step) + 1):
        pen.line([(x(0), y(n * step)), (x(longest_s), y(n * step))], GRID, SCALE)
        pen.text((x(0) - 8 * SCALE, y(n * step)), f"{n * step:g}", INK, font, anchor="rm")
    for n in range(int(longest_s / step_s) + 1):
        unit = " s" if last else ""
        pen.text((x(n * step_s), y(0) + 6 * SCALE), f"{n * step_s:g}{unit}", INK, font, anchor="ma")
    pen.text((x(0), (y0 + 12) * SCALE), panel.title, INK, font)
    legend = x(longest_s)
    for (name, values), colour in zip(panel.lines.items(), COLOURS, strict=False):
        points = [(x(at_s), y(value)) for at_s, value in zip(times_s, values, strict=True)]
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
