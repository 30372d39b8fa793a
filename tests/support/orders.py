"""A Celery app on celery_sqs alone, with the options of ORDERS_OPTIONS (JSON), and tasks that note what they do."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from celery import Celery, Task
from kombu.common import Broadcast

import celery_sqs


def made(options: dict[str, Any], *, broadcast: str = "", transport: dict[str, Any] | None = None) -> Celery:
    """An app with these options, whose tasks note what they do in the file that ORDERS_NOTES names.

    `broadcast` is an exchange whose messages go to every worker; `transport` has more of the transport's options.
    """
    lists = {name: tuple(value) for name, value in options.items() if isinstance(value, list)}
    app = Celery("orders", set_as_current=False)
    celery_sqs.configure(app, celery_sqs.Options(**{**options, **lists}))
    app.conf.update(task_acks_late=True, broker_transport_options=app.conf.broker_transport_options | (transport or {}))
    if broadcast:
        app.conf.task_queues = [*app.conf.task_queues, Broadcast(broadcast)]
    # Each app has its own.
    app.task(name="orders.length", shared=False)(length)
    app.task(name="orders.note", shared=False)(note)
    app.task(name="orders.fail_once", bind=True, shared=False)(fail_once)
    app.task(name="orders.fail", shared=False)(fail)
    return app


def length(text: str) -> int:
    """How long the text is."""
    return len(text)


def note(word: str, seconds: float = 0.0) -> str:
    """Note the word when it begins and when it ends."""
    _write(f"{word} begins")
    time.sleep(seconds)
    _write(f"{word} ends")
    return word


def fail_once(self: Task[Any, Any], word: str, countdown_s: float = 0.0) -> str:
    """Fail at the first try, and note each of them with its group and priority."""
    properties = self.request.properties or {}
    _write(f"{word} {self.request.retries} {properties.get('MessageGroupId')} {properties.get('priority')}")
    if not self.request.retries:
        raise self.retry(countdown=countdown_s)
    return word


def fail(word: str) -> None:
    """Note the word, and raise."""
    _write(f"{word} fails")
    raise ValueError(word)


def _write(line: str) -> None:
    with open(os.environ["ORDERS_NOTES"], "a") as notes:
        notes.write(line + "\n")


app = made(
    json.loads(os.environ.get("ORDERS_OPTIONS", '{"prefix": "orders"}')),
    broadcast=os.environ.get("ORDERS_BROADCAST", ""),
    transport=json.loads(os.environ.get("ORDERS_TRANSPORT", "{}")),
)
