"""A worker of an application, for tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from celery_sqs.testing.process import running
from celery_sqs.testing.waiting import PATIENCE_S, wait_until


@dataclass(frozen=True)
class Worker:
    """A worker that is ready: its process, and the file that its output goes to."""

    process: subprocess.Popen[bytes]
    log: Path

    def output(self) -> str:
        """What it has said so far, its tasks' logs among it."""
        return self.log.read_text(errors="replace")


@contextmanager
def started(
    app: str,
    *options: str,
    log: Path,
    env: Mapping[str, str] = os.environ,
    cwd: Path | None = None,
    patience_s: float = PATIENCE_S,
) -> Iterator[Worker]:
    """`celery -A <app> worker` with these options, in a process of its own: ready when the block begins, gone when it
    ends.

    Raises AssertionError with its output where it does not become ready.
    """
    ready = log.with_name(f"{log.name}.ready")
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "celery_sqs.testing.worker_process", str(ready), "-A", app, "worker"]
    with running([*command, "--loglevel", "INFO", *options], log=log, env=env, cwd=cwd, stop_s=patience_s) as process:
        worker = Worker(process, log)
        wait_until(
            lambda: process.poll() is not None or ready.exists(), timeout_s=patience_s, what=f"a worker of {app}"
        )
        if not ready.exists():
            raise AssertionError(f"the worker of {app} ended with status {process.returncode}:\n{worker.output()}")
        yield worker


def importing_as_here() -> dict[str, str]:
    """This process's environment, with the folders that it imports from: pytest adds some."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
