"""A Celery app with the product's broker and a task that needs no model: `celery -A tests.echo worker`."""

from __future__ import annotations

import os
import signal
from typing import Any

from faceapp import broker
from faceapp.config import settings

app = broker.create_app(settings())


@app.task(name="tests.echo")
def echo(value: Any) -> Any:
    """Answer with what was asked."""
    return value


@app.task(name="tests.fail")
def fail(sentence: str) -> None:
    """Raise."""
    raise ValueError(sentence)


@app.task(name="tests.pid")
def pid() -> int:
    """The process that runs tasks."""
    return os.getpid()


@app.task(name="tests.die")
def die() -> None:
    """Kill the process that runs this."""
    os.kill(os.getpid(), signal.SIGKILL)
