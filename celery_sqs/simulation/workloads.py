"""Workloads: when messages arrive. Each is a function of a seed; sizes are those of an hour or two."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from celery_sqs.errors import ConfigurationError
from celery_sqs.simulation.world import World

MAX_CSV_ROWS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Messages in the order of their arrival."""

    name: str
    seed: int
    arrivals_s: tuple[float, ...]
    service_s: tuple[float, ...]
    """Seconds of an instance that each message takes."""


def step(rng: random.Random) -> list[float]:
    """A thousand messages within five seconds, twice."""
    return _burst(rng, 60.0, 1000, 5.0) + _burst(rng, 1800.0 + rng.uniform(0, 300), 1000, 5.0)


def bursts_10(rng: random.Random) -> list[float]:
    """Ten messages at once, every five to fifteen minutes for an hour."""
    return _bursts(rng, 10)


def bursts_50(rng: random.Random) -> list[float]:
    """Fifty messages at once, every five to fifteen minutes for an hour."""
    return _bursts(rng, 50)


def bursts_100(rng: random.Random) -> list[float]:
    """A hundred messages at once, every five to fifteen minutes for an hour."""
    return _bursts(rng, 100)


def diurnal(rng: random.Random) -> list[float]:
    """A day in two hours: from nothing to eight messages a second and back."""
    return _poisson(rng, lambda now: 4.0 * (1 - math.cos(2 * math.pi * now / 7200)), peak=8.0, until_s=7200)


def mmpp(rng: random.Random) -> list[float]:
    """A Markov-modulated Poisson process: 0.1, 2 or 8 messages a second, for two minutes each on average."""
    rates: list[tuple[float, float]] = []
    now = 0.0
    while now < 3600:
        rates.append((now, rng.choice((0.1, 2.0, 8.0))))
        now += rng.expovariate(1 / 120)
    return _poisson(rng, lambda at: next(rate for since, rate in reversed(rates) if since <= at), peak=8.0)


def flash_crowd(rng: random.Random) -> list[float]:
    """One message every two seconds, and a crowd of fifteen a second for two minutes that wears off."""
    start = rng.uniform(900, 1500)

    def rate(now: float) -> float:
        crowd = 15.0 if start <= now < start + 120 else 15.0 * math.exp(-(now - start - 120) / 120)
        return 0.5 + (crowd if now >= start else 0.0)

    return _poisson(rng, rate, peak=15.5)


def on_off(rng: random.Random) -> list[float]:
    """Five minutes at five messages a second, five minutes of nothing."""
    return _poisson(rng, lambda now: 5.0 if now % 600 < 300 else 0.0, peak=5.0)


def trickle(rng: random.Random) -> list[float]:
    """One message every two seconds on average: half of an instance."""
    return _poisson(rng, lambda now: 0.5, peak=0.5)


def sparse(rng: random.Random) -> list[float]:
    """One message every twenty seconds on average: too little to keep an instance, and too much to stop it."""
    return _poisson(rng, lambda now: 0.05, peak=0.05)


def overlapping(rng: random.Random) -> list[float]:
    """Forty messages at once, every minute for forty minutes: two thirds of an instance."""
    return [at for n in range(40) for at in _burst(rng, 30 + 60 * n, 40, 1.0)]


def thousands(rng: random.Random) -> list[float]:
    """A thousand messages at once, three times in half an hour."""
    return [at for n in range(3) for at in _burst(rng, rng.uniform(30, 90) + 650 * n, 1000, 1.0)]


def lonely(rng: random.Random) -> list[float]:
    """One message every 75 seconds, for fifty minutes."""
    first = rng.uniform(10, 85)
    return [first + 75 * n for n in range(40)]


SHAPES: dict[str, Callable[[random.Random], list[float]]] = {
    "step": step,
    "bursts-10": bursts_10,
    "bursts-50": bursts_50,
    "bursts-100": bursts_100,
    "diurnal": diurnal,
    "mmpp": mmpp,
    "flash-crowd": flash_crowd,
    "on-off": on_off,
    "trickle": trickle,
    "sparse": sparse,
}
SPECIAL: dict[str, Callable[[random.Random], list[float]]] = {
    "overlapping": overlapping,
    "thousands": thousands,
    "lonely": lonely,
}
"""Days on which the policy once went wrong; they are not among all workloads."""


def make(name: str, seed: int, world: World) -> Workload:
    """The workload of that name, or the arrivals in that CSV file. The same seed makes the same messages.

    Raises ConfigurationError for a name that does not exist and for a CSV that cannot be used.
    """
    rng = random.Random(f"{name}/{seed}")  # nosec B311 # repeatable
    if shape := SHAPES.get(name) or SPECIAL.get(name):
        arrivals = shape(rng)
    elif name.endswith(".csv"):
        arrivals = read_csv(Path(name))
    else:
        known = ", ".join((*SHAPES, *SPECIAL))
        raise ConfigurationError(f"there is no workload {name!r}: workloads are {known}, or a file that ends in .csv")
    return of(Path(name).stem, seed, arrivals, world)


def of(name: str, seed: int, arrivals_s: Iterable[float], world: World) -> Workload:
    """A workload of these arrivals, with service times drawn for them."""
    arrivals = tuple(sorted(arrivals_s))
    rng = random.Random(f"service/{name}/{seed}")  # nosec B311 # repeatable
    sigma = math.sqrt(math.log1p(world.service_spread**2))
    mu = math.log(world.service_s) - sigma * sigma / 2
    service = tuple(rng.lognormvariate(mu, sigma) for _ in arrivals)
    return Workload(name=name, seed=seed, arrivals_s=arrivals, service_s=service)


def boots_s(name: str, seed: int, world: World) -> Iterator[float]:
    """How long each start of the workload of that name and seed takes to boot, in the order of the starts. Every policy
    gets the same ones, so that they can be compared, with one another and with a bound that knows them."""
    rng = random.Random(f"boots/{name}/{seed}")  # nosec B311 # repeatable
    while True:
        yield rng.uniform(world.boot_min_s, world.boot_max_s)


def read_csv(path: Path) -> list[float]:
    """The column 'seconds' of a CSV file with a header, or the only column of one without: one row a message.

    Raises ConfigurationError when the file cannot be read, has no such column, no rows or too many, or a cell that is
    no time.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [(reader.line_num, row) for reader in [csv.reader(file)] for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"the arrivals in {path} cannot be read: {error}") from error
    column = 0
    if rows and not _is_number(rows[0][1][0]):
        header = [cell.strip().lower() for cell in rows[0][1]]
        if "seconds" not in header:
            raise ConfigurationError(f"{path} has no column 'seconds': its header is {', '.join(header)}")
        column = header.index("seconds")
        rows = rows[1:]
    if not rows:
        raise ConfigurationError(f"{path} has no arrivals: a row for each message, with the second of its arrival")
    if len(rows) > MAX_CSV_ROWS:
        raise ConfigurationError(f"{path} has {len(rows)} arrivals; {MAX_CSV_ROWS} are the most")
    return [_seconds(path, line, row, column) for line, row in rows]


def _seconds(path: Path, line: int, row: list[str], column: int) -> float:
    cell = row[column] if column < len(row) else ""
    if not _is_number(cell) or not 0 <= float(cell) < math.inf:
        raise ConfigurationError(f"{path}, line {line}: {cell!r} is not a time of arrival (seconds, 0 or more)")
    return float(cell)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _burst(rng: random.Random, at_s: float, count: int, within_s: float) -> list[float]:
    return [at_s + rng.uniform(0, within_s) for _ in range(count)]


def _bursts(rng: random.Random, count: int) -> list[float]:
    arrivals: list[float] = []
    now = rng.uniform(10, 120)
    while now < 3600:
        arrivals += _burst(rng, now, count, 1.0)
        now += rng.uniform(300, 900)
    return arrivals


def _poisson(
    rng: random.Random, rate: Callable[[float], float], *, peak: float, until_s: float = 3600.0
) -> list[float]:
    """An inhomogeneous Poisson process by thinning (Lewis and Shedler, 1979); `rate` never exceeds `peak`."""
    arrivals: list[float] = []
    now = rng.expovariate(peak)
    while now < until_s:
        if rng.random() * peak < rate(now):
            arrivals.append(now)
        now += rng.expovariate(peak)
    return arrivals
