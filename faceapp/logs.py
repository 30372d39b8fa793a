"""Where log lines go and what they look like: one line each on standard error."""

from __future__ import annotations

import logging

from faceapp.config import Settings


def configure(settings: Settings) -> None:
    """Set the root logger up, once, for a process of this service."""
    logging.basicConfig(
        level=settings.log_level,
        format="%(asctime)s %(levelname)-7s %(processName)s %(name)s: %(message)s",
        force=True,
    )
    # They narrate every request; what matters of it comes back as an error.
    for name in ("botocore", "boto3", "urllib3", "s3transfer", "PIL"):
        logging.getLogger(name).setLevel(max(logging.INFO, logging.getLogger().level))
