"""Processes that a test starts, and that end with it."""

from __future__ import annotations

import ctypes
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Let the kernel end this process when the one that started it is gone, as a killed pytest is (Linux only)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def running(
    command: Sequence[str], *, log: Path, env: Mapping[str, str], stop_s: float, cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The command as a process with its output in `log`, told to end (SIGTERM) when the block ends, and killed
    `stop_s` later: a worker ends what it has begun.

    It has a session of its own, so that Ctrl-C reaches the tests alone, which end it.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=cwd, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(stop_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
