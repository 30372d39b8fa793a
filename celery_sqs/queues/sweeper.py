"""Sweeping without a scaler: one worker of all does the janitor's work, in a thread of its own.

Which one is said by a tag of the first work queue: the name of the worker that swept last, and when (Unix time, SQS's).
It sweeps again; when it has not for long, the first that notices takes over. Tags may be a minute old, so two may
sweep at the same time, which costs requests and harms nothing.
"""

from __future__ import annotations

import uuid
from typing import Any

from celery import signals

from celery_sqs import options as sqs_options
from celery_sqs.clocks import answered_s
from celery_sqs.options import Options
from celery_sqs.queues.janitor import EVERY_S, Janitor

SWEPT_TAG = "celery-sqs:swept"
TAKE_OVER_S = 3 * EVERY_S


class Turn:
    """Whether this process is the one that sweeps. Asking costs two requests where it is, else one."""

    def __init__(self, options: Options, *, name: str = "") -> None:
        self._aws, self._queue = options.aws, options.queue_name_prefix + options.queues[0]
        self._name = name or uuid.uuid4().hex[:12]

    def __call__(self) -> bool:
        """Raises botocore's errors."""
        sqs = self._aws.shared("sqs")
        url = sqs.get_queue_url(QueueName=self._queue)["QueueUrl"]
        answer = sqs.list_queue_tags(QueueUrl=url)
        owner, _, since = str(answer.get("Tags", {}).get(SWEPT_TAG, "")).partition(":")
        now_s = answered_s(answer)
        if owner != self._name and since.isdecimal() and now_s - int(since) < TAKE_OVER_S:
            return False
        sqs.tag_queue(QueueUrl=url, Tags={SWEPT_TAG: f"{self._name}:{int(now_s)}"})
        return True


def install() -> None:
    """Let workers whose app has the option `sweep` take part; doing so again changes nothing."""
    signals.worker_ready.connect(_start, dispatch_uid="celery_sqs.sweeper")


def _start(sender: Any, **_: Any) -> None:
    app = getattr(sender, "app", None)
    if app is None or not str(app.conf.broker_transport).startswith("celery_sqs."):
        return
    options = sqs_options.of(app)
    if options.sweep:
        Janitor(options, leads=Turn(options)).start()
