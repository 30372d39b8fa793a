"""Real processes for tests: workers that run against the embedded AWS."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from celery_sqs.testing import waiting
from celery_sqs.testing.worker import started
from faceapp import tasks
from faceapp.config import Settings, settings
from faceapp.stack import data_tier as deployment
from tests.support import echo
from tests.support.aws import KEY, at

REPOSITORY = Path(__file__).parents[2]


PATIENCE_S = 240.0
"""How long a test waits for what takes a moment: it tells hung from slow, on the slowest of busy machines."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in listeners]
    for each in listeners:
        each.close()
    return ports


def free_port() -> int:
    """A port that nobody listens on now."""
    return free_ports(1)[0]


def wait_until(condition: Callable[[], object], *, timeout_s: float = PATIENCE_S, what: str = "the condition") -> None:
    """Return as soon as `condition()` is true; fail the test when it is not within `timeout_s`.

    Nothing is called late before `PATIENCE_S`: how long something takes says how busy the machine is.
    """
    waiting.wait_until(condition, timeout_s=max(timeout_s, PATIENCE_S), what=what)


def aws_environ(endpoint: str) -> dict[str, str]:
    """The AWS variables of a process that uses the embedded AWS, and nothing of the user's."""
    return at(endpoint).environ


def users_environ(**more: str) -> dict[str, str]:
    """The environment of what a user types: nothing of an AWS, no setting of faceapp, then `more`."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FACEAPP_"))}
    return {**own, **more}


def part_environ(**more: str) -> dict[str, str]:
    """The environment of a part of the service: a user's, with the credential of this session's start."""
    return users_environ(**{"FACEAPP_LOCAL_KEY": KEY, "PYTHONUNBUFFERED": "1", **more})


def environ(endpoint: str, settings: Settings, **more: str) -> dict[str, str]:
    """The environment of a service's process that uses the embedded AWS at `endpoint`."""
    # Short long polls: a worker that stops waits for the one in flight.
    faceapp = {"FACEAPP_PREFIX": settings.prefix, "FACEAPP_QUEUE_WAIT_S": "2"}
    return part_environ(**{**aws_environ(endpoint), **faceapp, **more})


@contextmanager
def celery_worker(
    app: str, log: Path, env: dict[str, str], *options: str, cwd: Path = REPOSITORY
) -> Iterator[subprocess.Popen[bytes]]:
    """`celery -A <app> worker` as a process that is ready when the block begins and gone when it ends."""
    with started(app, *options, log=log, env=env, cwd=cwd, patience_s=PATIENCE_S) as worker:
        yield worker.process


@pytest.fixture(scope="session")
def system(aws_endpoint: str) -> Iterator[Settings]:
    """The stack of this session's settings, created from the template that AWS gets."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in aws_environ(aws_endpoint).items():
            patch.setenv(name, value)
        deployment.apply(settings())
        yield settings()
        for app in (tasks.app, echo.app):
            app.backend.collector.close(delete_queue=True)


@pytest.fixture(scope="session")
def worker(
    system: Settings, aws_endpoint: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[subprocess.Popen[bytes]]:
    """A real worker with a real model on the session's queues."""
    log = tmp_path_factory.mktemp("worker") / "log"
    with celery_worker("faceapp.tasks", log, environ(aws_endpoint, system), "--concurrency", "1") as process:
        yield process
