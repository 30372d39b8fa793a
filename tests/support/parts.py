"""An application whose chord's parts are of every kind: `celery -A tests.support.parts worker`."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, Task, chain, chord, group

import celery_sqs

PREFIX = os.environ.get("PARTS_PREFIX", "parts")

app = Celery("parts", set_as_current=False)
celery_sqs.configure(app, celery_sqs.Options(prefix=PREFIX, results_bucket=f"{PREFIX}-results", wait_s=1))
app.conf.task_acks_late = True


@app.task(name="parts.same")  # type: ignore[untyped-decorator] # Celery has no types
def same(n: Any) -> Any:
    return n


@app.task(name="parts.first")  # type: ignore[untyped-decorator]
def first(found: list[Any]) -> Any:
    return found[0]


@app.task(name="parts.replaced", bind=True)  # type: ignore[untyped-decorator]
def replaced(self: Task, n: int, kind: str) -> Any:
    """A part that another task, a chain or a chord takes the place of."""
    instead = {
        "task": lambda: same.si(n),
        "chain": lambda: chain(same.si(0), same.si(n)),
        "chord": lambda: chord([same.si(n), same.si(0)], first.s(), app=app),
        "group": lambda: group([same.si(n)], app=app),
    }
    return self.replace(instead[kind]())


@app.task(name="parts.tried", bind=True)  # type: ignore[untyped-decorator]
def tried(self: Task, n: int) -> int:
    """A part that is tried once more."""
    if not self.request.retries:
        raise self.retry(countdown=0)
    return n


@app.task(name="parts.adding", bind=True)  # type: ignore[untyped-decorator]
def adding(self: Task, n: int) -> int:
    """A part that adds another one, which comes to -1."""
    self.add_to_chord(same.si(-1))
    return n


KINDS = (
    lambda n: same.si(n),
    lambda n: chain(same.si(0), same.si(n)),
    lambda n: chord([same.si(n), same.si(0)], first.s(), app=app),
    lambda n: replaced.si(n, "task"),
    lambda n: replaced.si(n, "chain"),
    lambda n: replaced.si(n, "chord"),
    lambda n: replaced.si(n, "group"),
    lambda n: tried.si(n),
)
