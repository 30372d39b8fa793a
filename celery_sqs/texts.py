"""What commands print: tables, counts, ages and JSON, for a terminal or a pipe."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

SHORT_ID = 8


def to_json(document: Any) -> str:
    """One line of JSON."""
    # A message can hold half a surrogate pair, which no terminal's encoding takes; as an escape it is JSON, too.
    return json.dumps(document, ensure_ascii=False).encode(errors="backslashreplace").decode()


def as_document(found: Any) -> dict[str, Any]:
    """A dataclass as JSON takes it."""
    document: dict[str, Any] = dataclasses.asdict(found)
    return document


def age(seconds: float) -> str:
    """Two digits or so: 8 s, 12 min, 3.4 h, 5.0 d."""
    if seconds < 100:
        return f"{max(0, seconds):.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"


def printable(text: str) -> str:
    """The text without what would steer a terminal: a message's body, or a tag, is anybody's."""
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)


def in_a_line(text: str) -> str:
    """The same, in one line."""
    return printable(text).replace("\n", "\\n")


def counted(count: int, noun: str) -> str:
    """1 photo, 2 photos."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Collection[str] = ()) -> Iterator[str]:
    """Lines with columns that line up, however narrow the terminal is; those of `numbers` are set flush right."""
    widths = [max(len(row[n]) for row in (header, *rows)) for n in range(len(header))]
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if name in numbers else cell.ljust(width)
            for name, width, cell in zip(header, widths, row, strict=True)
        ]
        yield "  ".join(cells).rstrip()


def indented(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a part, below its title."""
    return (f"  {each}" for each in lines)
