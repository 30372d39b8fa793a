"""What `faceapp up` says while it starts: a line per step, with a spinner where there is a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.markup import escape


class Progress:
    """Lines on standard output, without colours and spinners where it is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Show `what` while it is going on, and the seconds that it took once it is done."""
        started_s = time.monotonic()
        with self._console.status(escape(what)):
            yield
        took_s = time.monotonic() - started_s
        self._print(f"[green]✓[/green] {escape(what)} [dim]({took_s:.1f} s)[/dim]")

    def note(self, text: str) -> None:
        """A plain line."""
        self._print(escape(text))

    def warn(self, text: str) -> None:
        """A line about something that did not work and that the start goes on without."""
        self._print(f"[yellow]![/yellow] {escape(text)}")

    def _print(self, line: str) -> None:
        # Standard output may be a file on a full disk, or a pipe that nobody reads any more.
        with suppress(OSError):
            self._console.print(line)
