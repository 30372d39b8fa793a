"""The Celery app and its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery import Celery
from kombu import Queue

import celery_sqs.transport.channel  # noqa: F401 - makes sqs:// ours
from celery_sqs.control import Control
from celery_sqs.events import Events
from faceapp.broker.messages import AMQP, refusal
from faceapp.config import Settings
from faceapp.pace import PREFETCH


@dataclass(frozen=True, kw_only=True)
class GivenUp:
    """A task that will not be tried again, and what ended it: the name of an exception's class."""

    task: str
    task_id: str
    arguments: tuple[Any, ...]
    error: str


class FaceappCelery(Celery):
    """Celery whose callers are answered on the response queue that their process reads."""

    events_cls = Events
    settings: Settings
    give_up: Callable[[GivenUp], Any] | None = None
    """Makes the answer to a task that is given up, of any JSON, instead of Celery's. It may take a few seconds."""

    @property
    def thread_oid(self) -> str:
        return str(self.backend.reply_queue)


class Refused:
    """Why a worker of `app` takes a message's text for no task of its own; empty when it does."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def __call__(self, body: str) -> str:
        # Celery's own tasks do what their arguments say: call others.
        return refusal(body, tasks={name for name in self._app.tasks if not name.startswith("celery.")})

    def __json__(self) -> str:
        # `inspect stats` tells of a connection's options.
        return refusal.__qualname__


def create_app(settings: Settings) -> FaceappCelery:
    """The Celery app for the queues that `settings` name. Opens no connection."""
    app = FaceappCelery(
        "faceapp", amqp=AMQP, backend="celery_sqs.results:ResponseBackend", control=Control, set_as_current=True
    )
    app.settings = settings
    app.conf.update(
        broker_url="sqs://",
        broker_transport_options={
            "queue_name_prefix": f"{settings.prefix}-",
            "request_queue": settings.request_queue,
            "refused": Refused(app),
            "wait_time_seconds": settings.queue_wait_s,
            # The pause after a poll that brought nothing: it has waited already, or SQS has refused it.
            "polling_interval": 0.5,
            # Of queues that kombu makes itself (events, remote control); the request queue's is the template's.
            "visibility_timeout": 60,
            "fetch_message_attributes": ["ApproximateReceiveCount", "SentTimestamp"],
            "supports_fanout": True,
            # The messages are JSON: base64 inside base64 would be three quarters more bytes.
            "sqs_base64_encoding": False,
            "body_encoding": "utf-8",
        },
        broker_connection_retry_on_startup=True,
        # Threads of the web tier wait here for one of the pool's connections, for as long as the longest back-off.
        broker_pool_limit=16,
        broker_pool_acquire_timeout=60,
        task_default_queue="req-queue",
        task_queues=[Queue("req-queue", routing_key="req-queue")],
        task_create_missing_queues=False,
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        result_backend_thread_safe=True,
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
        # The scaler knows from them which workers are there, idle or busy, and how long a photo takes.
        worker_send_task_events=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )
    # Made now: since celery/celery#8058 threads share it, but Celery makes it at first use without a lock, and two of
    # them would read one queue.
    _ = app.backend
    return app
