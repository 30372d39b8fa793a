"""Where log lines go and what they look like: one line each on standard error."""

from __future__ import annotations

import logging

from faceapp.config import Settings

NARRATORS = (
    "botocore",
    "boto3",
    "kombu.transport.SQS",
    "PIL",
    # A line for each message received and one with the whole result of each task; the worker's own says what matters.
    "celery.app.trace",
    "celery.worker.strategy",
)
"""They tell of each call that went well: heard only at DEBUG."""


def configure(settings: Settings) -> None:
    """Set the root logger up, once, for a process of this service."""
    logging.basicConfig(
        level=settings.log_level,
        format="%(asctime)s %(levelname)-7s %(processName)s %(name)s: %(message)s",
        force=True,
    )
    if settings.log_level != "DEBUG":
        for name in NARRATORS:
            logging.getLogger(name).setLevel(logging.WARNING)
