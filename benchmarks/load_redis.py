"""A peer of `benchmarks.load`: the product's work behind Celery with Redis as broker and as result backend.

What Celery and Redis are used for is set as in faceapp.broker: late acknowledgement, two messages prefetched a process,
JSON, the model loaded before the pool forks. Thread-safe is what Celery's documentation calls a result backend that all
waiters share: without it each of them has connections of its own. Events are off, which is Celery's default; ours are
on.
"""

from __future__ import annotations

import os
from typing import Any

import flask
from celery import Celery, signals

from benchmarks.load_web import REDIS_URL, peer_app
from faceapp.config import settings

app = Celery("benchmarks.load_redis", broker=os.environ[REDIS_URL], backend=os.environ[REDIS_URL])
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_pool_limit=16,
    broker_pool_acquire_timeout=60,
    accept_content=["json"],
    task_serializer="json",
    result_serializer="json",
    result_backend_thread_safe=True,
    task_acks_late=True,
    task_time_limit=settings().task_time_limit_s,
    worker_prefetch_multiplier=2,
    worker_concurrency=settings().worker_processes,
)
_ = app.backend  # made once, before there are threads


@app.task(name="benchmarks.recognise")
def recognise(request_id: str) -> dict[str, Any] | None:
    """What `faceapp.tasks.recognize` does with a photo."""
    from faceapp.work.worker import this_worker

    result = this_worker().recognise(request_id)
    return result.to_dict() if result else None


@signals.worker_init.connect
def load(**_: Any) -> None:
    """As faceapp.tasks: the model in the parent."""
    from faceapp.work.worker import this_worker

    this_worker().warm()


def web() -> flask.Flask:
    """For gunicorn: `benchmarks.load_redis:web()`."""

    def ask(request_id: str) -> dict[str, Any]:
        document: dict[str, Any] = recognise.delay(request_id).get(timeout=settings().web_wait_s)
        return document

    return peer_app(ask)
