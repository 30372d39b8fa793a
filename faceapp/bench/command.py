"""`faceapp bench load`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from celery_sqs import texts
from faceapp.bench import report
from faceapp.bench.load import Api, Options, Run, load
from faceapp.bench.photos import find_photos, in_turn
from faceapp.errors import FaceappError, ServiceUnreachable
from faceapp.operations import tables
from faceapp.operations.client import Client


@dataclass(frozen=True, kw_only=True)
class Command:
    """What was asked for."""

    url: str
    images: Path
    concurrency: int
    photos: int
    api: str
    timeout: float
    limit: float
    failures: int
    retry: bool
    key: str
    plot: Path | None
    json_file: Path | None


def run(asked: Command) -> bool:
    """Load the service and show the table; whether every photo got its own, right answer.

    Raises BadRequest without photos, ServiceUnreachable when nothing answers.
    """
    found = find_photos(asked.images, people=_people(asked))
    apis: tuple[Api, ...] = ("classic", "v1") if asked.api == "both" else ("v1",) if asked.api == "v1" else ("classic",)
    photos = in_turn(found, asked.photos)
    runs: list[Run] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=tables.console(error=True)) as progress:
        for api in apis:
            options = Options(
                url=asked.url.rstrip("/"),
                api=api,
                concurrency=asked.concurrency,
                timeout_s=asked.timeout,
                limit_s=asked.limit,
                most_failures=asked.failures,
                retry=asked.retry,
                key=asked.key,
            )
            bar = progress.add_task(api, total=len(photos))
            runs.append(load(options, photos, tick=lambda _, bar=bar: progress.advance(bar)))  # type: ignore[misc]
            if runs[-1].stopped:
                break
    _show(asked, runs)
    return all(each.sound for each in runs)


def _show(asked: Command, runs: list[Run]) -> None:
    console = tables.console()
    console.print(report.table(runs))
    for each in runs:
        if each.stopped:
            console.print(f"{each.options.api} stopped early. {texts.printable(each.stopped)}", markup=False)
        for detail in report.document(each)["details"]:
            console.print(f"{each.options.api}: {texts.printable(detail)}", markup=False)
    if asked.json_file:
        asked.json_file.write_text(json.dumps([report.document(each) for each in runs], indent=2) + "\n")
    if asked.plot:
        report.plot(runs, asked.plot)


def _people(asked: Command) -> set[str]:
    """Who is enrolled; nobody when the key may not ask, so that no name is checked."""
    try:
        return set(Client(asked.url, key=asked.key).people())
    except ServiceUnreachable:
        raise
    except FaceappError:
        return set()
