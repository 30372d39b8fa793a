"""The scaler of faceapp. `faceapp scaler [--dry-run]`."""

from __future__ import annotations

from celery_sqs.scaler.loop import run

__all__ = ["run"]
