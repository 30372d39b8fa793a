"""Every boto3 client: its region, endpoint, credentials, time limits, connections and retries, and whole answers.

No other module makes one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cache, partial
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, IncompleteReadError
from botocore.utils import IMDSRegionProvider, parse_timestamp

from celery_sqs.errors import ConfigurationError

LOCAL_REGION = "us-east-1"
"""The region of an AWS on this machine, where nothing names another."""
LEAST_CONNECTIONS = 64
"""That one client keeps: a worker's threads use fewer at once."""
NO_REGION = "No AWS region is set: set AWS_REGION, for example AWS_REGION=eu-central-1, or a region in the AWS profile."

DEFAULTS: dict[str, Any] = {
    # A fixed one: botocore builds its own anew for every call, which takes a sixth of the call's CPU.
    "user_agent": f"celery-sqs boto3/{boto3.__version__}",
    "tcp_keepalive": True,
    "connect_timeout": 3,
    "read_timeout": 30,
    "retries": {"mode": "standard", "total_max_attempts": 4},
}
"""botocore's settings for every client; reading waits longer than the longest long poll of SQS (20 s)."""

ONCE: dict[str, Any] = {"mode": "standard", "total_max_attempts": 1}
"""botocore's `retries` for a caller that tries again by itself, or not at all."""


QUICK: dict[str, Any] = {"read_timeout": 5, "retries": ONCE}
"""For calls that an event loop waits for, and that may fail: events, and deleting what would only be done again."""


@dataclass(frozen=True, kw_only=True)
class Aws:
    """Where AWS is asked, and as whom. What is empty here is what boto3 finds: the environment, the profile, the role.

    `used_tag` is the key of the tag by which temporary queues say when they were used last; `bucket_owner` an account
    without whose buckets S3 refuses every call; `connections` how many each client may keep open; `config` settings of
    botocore's for every client.
    """

    region: str = ""
    endpoint_url: str = ""
    access_key_id: str = ""
    secret_access_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    used_tag: str = "celery-sqs:used"
    bucket_owner: str = ""
    connections: int = LEAST_CONNECTIONS
    config: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def client(self, service: str, *, extra: Config | None = None, **config: Any) -> Any:
        """A boto3 client of its own for `service`; `config` and `extra` override single settings of botocore's.

        Raises ConfigurationError when no region is set or a setting is none of botocore's, and botocore's errors for a
        profile that cannot be used. Safe to call in any thread.
        """
        own = self._for_s3() if service == "s3" else {}
        settings = {**DEFAULTS, "max_pool_connections": self.connections, **own, **self.config, **config}
        try:
            options = Config(**settings)
        except TypeError as error:
            raise ConfigurationError(f"botocore does not take this client-config: {error}") from error
        if extra is not None:
            options = options.merge(extra)
        made: Any = session().client(  # type: ignore[call-overload] # boto3's stubs know services by literals only
            service,
            region_name=self.asked_region(),
            endpoint_url=self.endpoint_url or None,
            config=options,
            aws_access_key_id=self.access_key_id or None,
            aws_secret_access_key=self.secret_access_key or None,
            aws_session_token=self.session_token or None,
        )
        made.meta.events.register_first("before-parse", _refuse_a_part)
        if service == "s3" and self.bucket_owner:
            # A name that was free for a moment may be anybody's.
            made.meta.events.register("before-parameter-build.s3", partial(_expect_owner, self.bucket_owner))
        return made

    def shared(self, service: str) -> Any:
        """This process's client for `service`: clients are safe to share between threads and cost 30 ms to make."""
        return _shared(self, service, quick=False)

    def quick(self, service: str) -> Any:
        """This process's client for calls that may fail but must not take long."""
        return _shared(self, service, quick=True)

    def asked_region(self) -> str:
        """The region that clients ask. Raises ConfigurationError where none is set."""
        return self.region or region(self.endpoint_url)

    def _for_s3(self) -> dict[str, Any]:
        # An emulator or MinIO answers on one host: no bucket has a host name of its own there.
        own_endpoint = self.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return {
            # TLS guards the way already; a CRC of every object in Python costs CPU that workers need.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "s3": {"addressing_style": "path" if own_endpoint else "auto"},
        }


_clients: dict[tuple[object, ...], Any] = {}
_making = threading.Lock()


def _shared(aws: Aws, service: str, *, quick: bool) -> Any:
    # A forked child makes its own, and whoever changes the environment means another AWS.
    key = (os.getpid(), os.environ.get("AWS_ENDPOINT_URL"), os.environ.get("AWS_ACCESS_KEY_ID"), aws, service, quick)
    with _making:
        if key not in _clients:
            _clients[key] = aws.client(service, **(QUICK if quick else {}))
        return _clients[key]


def _new_lock() -> None:
    global _making
    _making = threading.Lock()


os.register_at_fork(after_in_child=_new_lock)


def session() -> boto3.session.Session:
    """A boto3 session of its own: the shared one is not safe to make clients from in several threads."""
    found = botocore.session.get_session()
    found.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_timestamp)
    return boto3.session.Session(botocore_session=found)


def region(endpoint_url: str = "") -> str:
    """The region to ask: AWS_REGION, AWS_DEFAULT_REGION, the profile's, or, on EC2, the instance's own.

    An AWS on this machine (`endpoint_url` or AWS_ENDPOINT_URL) needs none of them. Raises ConfigurationError where
    there is none.
    """
    if named := os.environ.get("AWS_REGION"):
        return named
    try:
        if found := session().region_name:
            return found
    except BotoCoreError as error:
        raise ConfigurationError(f"The AWS profile cannot be used: {error}") from error
    if _is_here(endpoint_url or os.environ.get("AWS_ENDPOINT_URL", "")):
        return LOCAL_REGION
    if found := _instance_region():
        return found
    raise ConfigurationError(NO_REGION)


def _is_here(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or host.endswith(".localhost") or ip_address(host).is_loopback
    except ValueError:
        return False


@cache
def _instance_region() -> str:
    """EC2's answer on an instance, empty elsewhere and where AWS_EC2_METADATA_DISABLED is true."""
    return IMDSRegionProvider(botocore.session.get_session()).provide() or ""


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
