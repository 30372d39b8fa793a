"""Flower on SQS: workers, tasks and queues in a browser, without a second broker.

`celery -A shop flower` is Flower's own command. Celery has loaded it when the app is made: `take_over` then gives it
our defaults and has it make our `celery_sqs.flower.app.Flower`. A process whose Celery has not loaded Flower never does
by this.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from celery_sqs.flower.options import FlowerOptions

INSPECT_TIMEOUT_MS = 3000.0
"""For the workers' answers, which come over SNS and SQS."""
PURGE_OFFLINE_S = 60
"""A worker that left stays in the list for this long."""


def use(app: Any, own: FlowerOptions) -> None:
    """Give an app that was configured already other options."""
    app.sqs_options = replace(app.sqs_options, flower=own)
    take_over(own)


def take_over(own: FlowerOptions) -> None:
    """Make Flower's command ours in a process that has loaded it; Flower's options and variables still rule."""
    command: Any = sys.modules.get("flower.command")
    if command is None:
        return
    options = command.options
    options.address, options.port = own.address, own.port
    options.basic_auth = [own.basic_auth] if own.basic_auth else []
    options.inspect_timeout = INSPECT_TIMEOUT_MS
    options.purge_offline_workers = PURGE_OFFLINE_S
    # Flower would tell every worker, every five seconds, to send events. Ours do anyway, and telling is billed.
    options.enable_events = False
    # Tornado would set up a second handler for every line.
    options.logging = "none"
    command.Flower = _make


def _make(**arguments: Any) -> Any:
    from celery_sqs.flower.app import make

    return make(**arguments)
