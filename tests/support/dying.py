"""An application whose processes die in the middle of a chord: `celery -A tests.support.dying worker`.

A part says where (`STEPS`) and what (`process`: the one of the pool; `worker`: all of them) dies, once. The callback
leaves a line in `DYING_FOLDER` each time it runs.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from celery import Celery

import celery_sqs
from celery_sqs.results.chords import Chord
from celery_sqs.results.store import Store

STEPS = ("before its part is stored", "after its part is stored", "after the claim", "after the callback was sent")
FOLDER = Path(os.environ.get("DYING_FOLDER", "."))

app = Celery("dying", set_as_current=False)
celery_sqs.configure(
    app,
    celery_sqs.Options(
        prefix=os.environ.get("DYING_PREFIX", "dying"),
        results_bucket=f"{os.environ.get('DYING_PREFIX', 'dying')}-results",
        wait_s=1,
        visibility_s=4,
    ),
)
late = os.environ.get("DYING_ACKS", "late") == "late"
app.conf.update(task_acks_late=late, task_reject_on_worker_lost=late)

_armed: tuple[str, str, str] = ("", "", "")


def _die(step: str) -> None:
    name, where, what = _armed
    if step != where:
        return
    try:
        (FOLDER / f"{name}.died").touch(exist_ok=False)
    except FileExistsError:
        return
    if what == "worker":
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


_put_new, _finish = Store.put_new, Chord.finish


def _dying_put_new(self: Store, key: str, body: bytes) -> bool:
    part = "/part-" in key
    if part:
        _die(STEPS[0])
    made = _put_new(self, key, body)
    _die(STEPS[1] if part else STEPS[2])
    return made


def _dying_finish(self: Chord) -> None:
    _die(STEPS[3])
    _finish(self)


setattr(Store, "put_new", _dying_put_new)  # noqa: B010 - mypy forbids =
setattr(Chord, "finish", _dying_finish)  # noqa: B010


@app.task(name="dying.part")  # type: ignore[untyped-decorator] # Celery has no types
def part(n: int, name: str = "", step: str = "", what: str = "") -> int:
    """A chord's part; with a name, the process that ends it last dies at `step`."""
    global _armed
    _armed = name, step, what
    return n


@app.task(name="dying.collect")  # type: ignore[untyped-decorator] # Celery has no types
def collect(found: list[Any], name: str) -> Any:
    """A chord's callback."""
    with (FOLDER / f"{name}.ran").open("a") as file:
        file.write(f"{found}\n")
    return found
