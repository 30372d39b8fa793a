"""Workers forked from a process that has loaded everything: each boots in a second, and they share the model's memory.

What runs in the child is Celery's own worker program, in a session of its own, as `celery -A faceapp.tasks worker`
would run it: the pool below it, acks, time limits and the warm shutdown are those of an instance on EC2.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from faceapp.errors import LocalError

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that the parent handles and that mean to the worker what Celery makes of them."""

PROGRAM = (
    "billiard.heap",
    "billiard.popen_fork",
    "billiard.sharedctypes",
    "celery.app.control",
    "celery.apps.worker",
    "celery.bin.celery",
    "celery.bin.worker",
    "celery.concurrency.prefork",
    "celery.worker.autoscale",
    "celery.worker.components",
    "celery.worker.consumer",
    "celery.worker.consumer.delayed_delivery",
    "celery.worker.strategy",
    "kombu.asynchronous.http.curl",
    "kombu.pidbox",
)
"""What the worker program imports while it starts."""


def load() -> None:
    """Load the program, the model and the gallery, once for all the workers to come."""
    from celery import signals

    from faceapp import tasks

    for module in PROGRAM:
        import_module(module)
    tasks.app.finalize()
    # What a worker does before its pool forks: the model and the gallery.
    signals.worker_init.send(sender=None)
    gc.collect()
    # The collector writes into every object that it visits: what is here stays out of its sight, so that its pages
    # stay shared.
    gc.freeze()


def fork_worker(options: list[str], *, log: Path, release: Callable[[], None]) -> int:
    """Fork `celery worker OPTIONS`, its output appended to `log`; returns its process id, which is its session's too.

    `release` closes, in the child, what belongs to the parent. Raises LocalError when this process has threads: a lock
    that one of them held would stay locked in the child.
    """
    if (threads := len(os.listdir("/proc/self/task"))) > 1 or threading.active_count() > 1:
        raise LocalError(f"The compute host has {threads} threads: it cannot fork workers.")
    sys.stdout.flush()
    sys.stderr.flush()
    # A SIGTERM to the child must not end in the parent's handler.
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        pid = os.fork()
        if pid == 0:
            _be_worker(options, log, release)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)


class _Log(io.FileIO):
    """A log whose lines are lost while the disk is full: a worker must not end by its banner."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


def _write_to(log: Path) -> None:
    """Append this process's output to `log`, which only this user may read."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    sys.stdout = sys.__stdout__ = _text(1)  # type: ignore[misc] # Celery prints its banner to the second
    sys.stderr = sys.__stderr__ = _text(2)  # type: ignore[misc]


def _text(stream: int) -> io.TextIOWrapper:
    raw = io.BufferedWriter(_Log(stream, "wb", closefd=False))
    return io.TextIOWrapper(raw, "utf-8", errors="backslashreplace", line_buffering=True)


def _be_worker(options: list[str], log: Path, release: Callable[[], None]) -> NoReturn:
    """The child's life. It never returns into the parent's frames, nor runs the parent's exit handlers."""
    status = 1
    try:
        os.setsid()
        for number in HANDLED:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        release()
        _write_to(log)
        from faceapp import tasks

        tasks.app.worker_main(["worker", *options])
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
