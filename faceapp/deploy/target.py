"""Which AWS the deploy commands work on: an account and a region, said before anything is changed."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from faceapp import credential
from faceapp.config import Settings
from faceapp.errors import ConfigError, DeployError

EMBEDDED_REGION = "us-east-1"
CONFIG: Any = Config(connect_timeout=10, read_timeout=60, retries={"mode": "standard", "total_max_attempts": 5})


@dataclass(frozen=True, kw_only=True)
class Target:
    """An AWS account in a region, and the prefix, which is the stack's name."""

    settings: Settings
    region: str
    account: str
    endpoint: str = ""
    """Where AWS answers instead of at its own addresses."""

    @property
    def prefix(self) -> str:
        return self.settings.prefix

    @property
    def embedded(self) -> bool:
        """Whether this is an AWS on this machine, where nothing is billed and nothing can be lost."""
        return is_loopback(self.endpoint)

    def __str__(self) -> str:
        where = f" at {self.endpoint}" if self.endpoint else ""
        return f"AWS account {self.account}, region {self.region}{where}"

    @cached_property
    def _clients(self) -> dict[str, Any]:
        return {}

    def client(self, service: str) -> Any:
        """A boto3 client; the same one each time."""
        if service not in self._clients:
            session: Any = boto3.Session()
            self._clients[service] = session.client(service, config=CONFIG)
        return self._clients[service]


def connect(*, prefix: str | None = None, endpoint: str | None = None, region: str | None = None) -> Target:
    """Point this process's AWS variables at the AWS that is meant, and ask it who we are there.

    What is not given is what boto3 and FACEAPP_PREFIX find. An endpoint on this machine gets the credential of the
    start that answers there, so that no mistake here can reach an account. Raises ConfigError and DeployError.
    """
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL", "")
    if endpoint and urlsplit(endpoint).scheme not in ("http", "https"):
        raise ConfigError(f"--endpoint-url {endpoint} is no URL: it takes one like http://127.0.0.1:4566")
    if is_loopback(endpoint):
        _forget_the_account(endpoint)
    if endpoint:
        os.environ["AWS_ENDPOINT_URL"] = endpoint
    if region := region or _region(endpoint):
        os.environ["AWS_REGION"] = os.environ["AWS_DEFAULT_REGION"] = region
    if prefix:
        os.environ["FACEAPP_PREFIX"] = prefix
    settings = Settings.from_environ(os.environ)
    if not region:
        raise ConfigError("Say in which region: --region, AWS_REGION, or a region in the profile.")
    target = Target(settings=settings, region=region, account="", endpoint=endpoint)
    try:
        return replace(target, account=str(target.client("sts").get_caller_identity()["Account"]))
    except (ClientError, BotoCoreError) as error:
        raise DeployError(f"AWS does not let us in (region {region}): {error}") from error


def is_loopback(endpoint: str) -> bool:
    """Whether the URL's host is this machine."""
    host = urlsplit(endpoint).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _region(endpoint: str) -> str:
    """AWS_REGION (which boto3 does not read), then what boto3 finds."""
    found = os.environ.get("AWS_REGION")
    try:
        return found or boto3.Session().region_name or (EMBEDDED_REGION if is_loopback(endpoint) else "")
    except BotoCoreError as error:
        raise ConfigError(f"The AWS profile cannot be used: {error}") from error


def _forget_the_account(endpoint: str) -> None:
    for name in [each for each in os.environ if each.startswith("AWS_") and "REGION" not in each]:
        del os.environ[name]
    os.environ.update(
        credential.aws_keys(credential.local_key_for(endpoint)),
        AWS_CONFIG_FILE=os.devnull,
        AWS_SHARED_CREDENTIALS_FILE=os.devnull,
        AWS_EC2_METADATA_DISABLED="true",
    )
    # A proxy would be asked for the loopback, too.
    hosts = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1", "localhost"]))
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = hosts
