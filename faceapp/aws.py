"""Every boto3 client of faceapp: its region, time limits, connections and retries, and answers that are whole.

No other module makes one (tests/integration/test_aws.py). The endpoint and the credentials are those that boto3 finds.
"""

from __future__ import annotations

import os
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cache, partial
from typing import Any

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, IncompleteReadError
from botocore.utils import IMDSRegionProvider, parse_timestamp

from faceapp.config import Settings, settings
from faceapp.door import is_loopback_url
from faceapp.errors import ConfigError

EMBEDDED_REGION = "us-east-1"
"""The region of an AWS on this machine, where nothing names another."""
LEAST_CONNECTIONS = 64
"""That one client keeps: a worker's threads use fewer at once."""
NO_REGION = "No AWS region is set: set AWS_REGION, for example AWS_REGION=eu-central-1, or a region in the AWS profile."

DEFAULTS: dict[str, Any] = {
    # A fixed one: botocore builds its own anew for every call, which takes a sixth of the call's CPU.
    "user_agent": f"faceapp boto3/{boto3.__version__}",
    "tcp_keepalive": True,
    "connect_timeout": 3,
    "read_timeout": 30,
    "retries": {"mode": "standard", "total_max_attempts": 4},
}
"""botocore's settings for every client; reading waits longer than the longest long poll of SQS (20 s)."""

ONCE: dict[str, Any] = {"mode": "standard", "total_max_attempts": 1}
"""botocore's `retries` for a caller that tries again by itself, or not at all."""


def client(
    service: str,
    *,
    endpoint: str | None = None,
    credentials: tuple[str, str, str | None] | None = None,
    owner: str = "",
    extra: Config | None = None,
    **config: Any,
) -> Any:
    """A boto3 client for `service`; `config` and `extra` override single settings of botocore's.

    With an `owner`, or FACEAPP_ACCOUNT, S3 refuses each call for a bucket that is another account's: a name that was
    free for a moment may be anybody's. Raises ConfigError when no region is set, and botocore's errors for a profile
    that cannot be used. Safe to call in any thread, and each call makes a client of its own.
    """
    options = Config(**{**DEFAULTS, "max_pool_connections": connections(settings()), **_own(service), **config})
    if extra is not None:
        options = options.merge(extra)
    key_id, secret, token = credentials or (None, None, None)
    made: Any = session().client(  # type: ignore[call-overload] # boto3's stubs know services by literals only
        service,
        region_name=region(),
        endpoint_url=endpoint,
        config=options,
        aws_access_key_id=key_id,
        aws_secret_access_key=secret,
        aws_session_token=token,
    )
    made.meta.events.register_first("before-parse", _refuse_a_part)
    if service == "s3" and (owner := owner or settings().account):
        made.meta.events.register("before-parameter-build.s3", partial(_expect_owner, owner))
    return made


def session() -> boto3.session.Session:
    """A boto3 session of its own: the shared one is not safe to make clients from in several threads."""
    found = botocore.session.get_session()
    found.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_timestamp)
    return boto3.session.Session(botocore_session=found)


def region() -> str:
    """The region to ask: AWS_REGION, AWS_DEFAULT_REGION, the profile's, or, on EC2, the instance's own.

    An AWS on this machine (AWS_ENDPOINT_URL) needs none of them. Raises ConfigError where there is none.
    """
    if named := os.environ.get("AWS_REGION"):
        return named
    try:
        if found := session().region_name:
            return found
    except BotoCoreError as error:
        raise ConfigError(f"The AWS profile cannot be used: {error}") from error
    if is_loopback_url(os.environ.get("AWS_ENDPOINT_URL", "")):
        return EMBEDDED_REGION
    if found := _instance_region():
        return found
    raise ConfigError(NO_REGION)


@cache
def _instance_region() -> str:
    """EC2's answer on an instance, empty elsewhere and where AWS_EC2_METADATA_DISABLED is true."""
    return IMDSRegionProvider(botocore.session.get_session()).provide() or ""


def connections(settings: Settings) -> int:
    """The connections that one client may keep: one for each request that a web process holds open at once.

    They are opened as they are needed. A client with fewer closes one after each call beyond them, and warns each time.
    """
    return max(LEAST_CONNECTIONS, settings.web_connections)


def _own(service: str) -> dict[str, Any]:
    if service != "s3":
        return {}
    # An emulator or MinIO answers on one host: no bucket has a host name of its own there.
    own_endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return {
        # TLS guards the way already; a CRC of every photo in Python costs CPU that the workers need.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "s3": {"addressing_style": "path" if own_endpoint else "auto"},
    }


def _expect_owner(owner: str, params: dict[str, Any], model: Any, **_: Any) -> None:
    if model.input_shape and "ExpectedBucketOwner" in model.input_shape.members:
        params.setdefault("ExpectedBucketOwner", owner)


def _refuse_a_part(operation_model: Any, response_dict: dict[str, Any], **_: Any) -> None:
    """Raise IncompleteReadError for an answer whose connection ended in the middle.

    botocore takes what came of it for all of it: for a success that says nothing. A body that is streamed looks after
    itself.
    """
    expected, body = response_dict["headers"].get("Content-Length", ""), response_dict["body"]
    if operation_model.http.get("method") == "HEAD" or not isinstance(body, bytes) or not expected.isdigit():
        return
    if len(body) < int(expected):
        raise IncompleteReadError(actual_bytes=len(body), expected_bytes=int(expected))


def _timestamp(value: Any) -> datetime:
    """What botocore's own parser makes of it, without dateutil (boto/botocore#3070): that is a tenth of a GET's CPU and
    most of a LIST's."""
    if isinstance(value, str) and value.endswith(" GMT"):
        return parsedate_to_datetime(value)
    if isinstance(value, str) and value.endswith("Z"):
        return datetime.fromisoformat(value)
    return parse_timestamp(value)
