"""boto3 clients with this service's settings; `celery_sqs.aws` makes them.

The endpoint and the credentials are those that boto3 finds.
"""

from __future__ import annotations

from typing import Any

from celery_sqs import aws
from celery_sqs.aws import LEAST_CONNECTIONS, ONCE, Aws, session
from celery_sqs.errors import ConfigurationError
from faceapp.config import Settings, settings
from faceapp.errors import ConfigError

__all__ = ["ONCE", "client", "connections", "of", "region", "session"]

USED_TAG = "faceapp:used"
"""The tag of a temporary queue; its value is the Unix time of the last use, in seconds, by SQS's clock."""


def of(settings: Settings, *, owner: str = "") -> Aws:
    """The AWS of a stack. With an `owner`, or FACEAPP_ACCOUNT, S3 refuses each call for another account's bucket."""
    return Aws(
        connections=connections(settings),
        bucket_owner=owner or settings.account,
        used_tag=USED_TAG,
    )


def client(service: str, *, owner: str = "", **config: Any) -> Any:
    """A boto3 client for `service`; `config` overrides single settings of botocore's.

    Raises ConfigError when no region is set, and botocore's errors for a profile that cannot be used. Safe to call in
    any thread, and each call makes a client of its own.
    """
    try:
        return of(settings(), owner=owner).client(service, **config)
    except ConfigurationError as error:
        raise ConfigError(str(error)) from error


def region() -> str:
    """The region to ask. Raises ConfigError where there is none."""
    try:
        return aws.region()
    except ConfigurationError as error:
        raise ConfigError(str(error)) from error


def connections(settings: Settings) -> int:
    """The connections that one client may keep: one for each request that a web process holds open at once.

    They are opened as they are needed. A client with fewer closes one after each call beyond them, and warns each time.
    """
    return max(LEAST_CONNECTIONS, settings.web_connections)
