"""Fixtures for the tests of faults, and the table of what became of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from faceapp.operations.samples import PEOPLE
from tests.faults.system import Books, System, running
from tests.support.services import aws_environ

COLUMNS = ("fault", "what happened", "accepted", "lost", "doubled")
Running = Callable[..., AbstractContextManager[System]]
Record = Callable[[str, str, Books], None]


@dataclass(frozen=True)
class Row:
    """One fault in the table."""

    fault: str
    happened: str
    books: Books

    def cells(self) -> tuple[str, ...]:
        books = self.books
        return self.fault, self.happened, str(books.accepted), str(len(books.lost)), str(len(books.doubled))


ROWS = pytest.StashKey[list[Row]]()


@pytest.fixture(scope="session")
def gallery(
    aws_endpoint: str, samples: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, bytes]:
    """The gallery's bucket after three people were enrolled, for every system of the session."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in aws_environ(aws_endpoint).items():
            patch.setenv(name, value)
        with running(aws_endpoint, tmp_path_factory.mktemp("gallery")) as system:
            for person, photos in PEOPLE.items():
                system.enrol(person, [samples[each] for each in photos])
            bucket = system.settings.gallery_bucket
            return {key: system.s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in system.keys(bucket)}


@pytest.fixture
def run(aws: str, gallery: Mapping[str, bytes], tmp_path: Path) -> Running:
    """`system.running` for this test: on the session's embedded AWS, with the gallery."""
    return partial(running, aws, tmp_path, gallery=gallery)


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Puts a fault into the table, and fails the test unless its books balance."""
    rows = request.config.stash.setdefault(ROWS, [])

    def note(fault: str, happened: str, books: Books) -> None:
        rows.append(Row(fault, happened, books))
        assert books.balanced, (books.lost, books.doubled, books.wrong)
        assert books.accepted > 0

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table, and write it to the file that FAULT_TABLE names."""
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    text = table([row.cells() for row in rows])
    terminalreporter.section("faults")
    terminalreporter.write_line(text)
    if path := os.environ.get("FAULT_TABLE"):
        Path(path).write_text(text + "\n", "utf-8")


def table(rows: list[tuple[str, ...]]) -> str:
    """The rows as Markdown, the numbers at the right."""
    lines = [COLUMNS, ("---", "---", "--:", "--:", "--:"), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
