"""A Celery app with the product's broker and tasks that need no model: `celery -A tests.support.echo worker`."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

from celery_sqs.flower import use
from faceapp import broker
from faceapp.config import Settings, settings
from faceapp.operations import flower


def prefix(settings: Settings) -> str:
    """Queues of its own: the product's workers would not know these tasks."""
    return f"{settings.prefix}-echo"


SETTINGS = dataclasses.replace(settings(), prefix=prefix(settings()))
app = broker.create_app(SETTINGS)
use(app, flower.options(SETTINGS))


@app.task(name="tests.echo")
def echo(value: Any) -> Any:
    """Answer with what was asked; never, in a worker whose environment has ECHO_HANGS."""
    if os.environ.get("ECHO_HANGS"):
        logging.getLogger(__name__).warning("hanging")
        threading.Event().wait()
    return value


@app.task(name="tests.fail")
def fail(sentence: str) -> None:
    """Raise."""
    raise ValueError(sentence)


@app.task(name="tests.hold")
def hold(path: str) -> str:
    """Make the file `path`, and end when somebody has removed it."""
    held = Path(path)
    held.touch()
    while held.exists():
        time.sleep(0.05)
    return "let go"
