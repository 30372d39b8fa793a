"""Tables for people and for the README: Markdown that lines up in a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table; the first column is text, the others are set flush right."""
    widths = [max(len(row[n]) for row in [header, *rows]) for n in range(len(header))]
    line = [f"{'-' * (width + 1)}{'-' if n == 0 else ':'}" for n, width in enumerate(widths)]
    print(_row(header, widths))
    print(f"|{'|'.join(line)}|")
    for row in rows:
        print(_row(row, widths))
    print()


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell.ljust(w) if n == 0 else cell.rjust(w) for n, (cell, w) in enumerate(zip(cells, widths, strict=True))]
    return f"| {' | '.join(padded)} |"
