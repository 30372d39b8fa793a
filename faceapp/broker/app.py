"""The Celery app and its settings."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from celery import Celery

import celery_sqs
from celery_sqs import GivenUp, Hooks, Options
from celery_sqs.hooks import Life
from celery_sqs.pace import PREFETCH
from faceapp.broker.messages import refusal
from faceapp.config import Settings, aws
from faceapp.observability import tracing

TRIES = 3
"""How often a message is delivered before it is a dead letter: the request queue's maxReceiveCount."""

_slot: int | None = None


def use_slot(slot: int) -> None:
    """Read the response queue of web slot `slot` in this process; call it before the first request."""
    global _slot
    _slot = slot


class FaceappCelery(Celery):
    """Celery with the settings of a stack."""

    settings: Settings
    give_up: Callable[[GivenUp], Any] | None = None
    """Makes the answer to a task that is given up, of any JSON, instead of Celery's. It may take a few seconds."""


def create_app(settings: Settings) -> FaceappCelery:
    """The Celery app for the queues that `settings` name. Opens no connection."""
    app = FaceappCelery("faceapp", set_as_current=True)
    app.settings = settings
    celery_sqs.configure(app, options(settings, app))
    app.conf.update(
        # Threads of the web tier wait here for one of the pool's connections, for as long as the longest back-off.
        broker_pool_limit=16,
        broker_pool_acquire_timeout=60,
        task_create_missing_queues=False,
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        # A message is deleted when its task is done, so a killed worker's tasks are delivered again.
        task_acks_late=True,
        # A task that raised, ran out of time or took its process with it stays in the queue: SQS delivers it again,
        # three times, then it is a dead letter. What went wrong with the photo itself is a result, not an exception.
        task_acks_on_failure_or_timeout=False,
        # True would say nothing of a lost process to the result backend, and so to whoever waits.
        task_reject_on_worker_lost=False,
        # The result in S3 is for everybody: the backend is asked also where nobody waits for an answer.
        task_store_errors_even_if_ignored=True,
        task_time_limit=settings.task_time_limit_s,
        task_soft_time_limit=settings.task_soft_limit_s,
        worker_prefetch_multiplier=PREFETCH,
        worker_concurrency=settings.worker_processes,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )
    # Made now: since celery/celery#8058 threads share it, but Celery makes it at first use without a lock, and two of
    # them would read one queue.
    _ = app.backend
    return app


def options(settings: Settings, app: FaceappCelery | None = None) -> Options:
    """What the framework is to do on a stack whose template has made the queues, and for `app`."""
    place = aws.of(settings)
    return Options(
        prefix=settings.prefix,
        queues=(settings.request_queue.removeprefix(f"{settings.prefix}-"),),
        create_queues=False,
        wait_s=settings.queue_wait_s,
        # A task ends before its message is seen again: the template's visibility timeout is longer than any of them.
        extend_visibility=False,
        max_deliveries=TRIES,
        replies=settings.response_queue.removeprefix(f"{settings.prefix}-"),
        results_elsewhere=True,
        connections=place.connections,
        used_tag=place.used_tag,
        bucket_owner=place.bucket_owner,
        hooks=_hooks(settings, app) if app else Hooks(),
    )


def _hooks(settings: Settings, app: FaceappCelery) -> Hooks:
    return Hooks(
        # Celery's own tasks do what their arguments say: call others.
        refuse=lambda body: refusal(body, tasks={each for each in app.tasks if not each.startswith("celery.")}),
        give_up=lambda given_up: app.give_up(given_up) if app.give_up else NotImplemented,
        replying=lambda: tracing.span("reply", kind="PRODUCER", attributes={"messaging.system": "aws_sqs"}),
        reply_queue=lambda: _reply_queue(settings),
        advice_on_shared_replies="where several web servers run, all but one need a name (FACEAPP_WEB_NAME)",
    )


def _reply_queue(settings: Settings) -> tuple[str, Life]:
    """The name of this process's queue, and how long it lives.

    A web process has the one of its slot (slot 0 is the stack's response queue; a restarted process takes its
    predecessor's slot, so no queue is left behind), any other process one that goes with it.
    """
    name = settings.response_queue
    if _slot is None:
        return f"{name}-{uuid.uuid4().hex[:12]}", "process"
    if settings.web_name:
        return f"{name}-{settings.web_name}-{_slot}", "place"
    return (name, "stack") if _slot == 0 else (f"{name}-{_slot}", "place")
