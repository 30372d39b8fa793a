"""Flower with this stack's names: what `celery_sqs.flower` is to show, and who may see it."""

from __future__ import annotations

from dataclasses import replace

from celery_sqs import FlowerOptions
from faceapp.config import Settings
from faceapp.observability import logs
from faceapp.operations import queues


def options(settings: Settings) -> FlowerOptions:
    """Flower's options on a stack."""
    return FlowerOptions(
        address=settings.flower_host,
        port=settings.flower_port,
        basic_auth=settings.flower_basic_auth,
        key=settings.local_key,
        printer="'faceapp up' (or Flower, started by hand)",
        cookie="faceapp-flower",
        queues=lambda sqs: queues.queues(sqs, settings),
        note="'faceapp dead-letters list' shows why a message became a dead letter.",
        password_setting="FACEAPP_FLOWER_BASIC_AUTH",  # nosec B106 # its name
        key_setting="FACEAPP_LOCAL_KEY",
        set_up_logging=lambda debug: logs.configure(
            replace(settings, log_level="DEBUG") if debug else settings, service="faceapp-flower"
        ),
    )
