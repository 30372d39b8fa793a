"""Which AWS the deploy commands work on: an account and a region, said before anything is changed."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError

from celery_sqs.door import is_loopback_url, no_proxy
from faceapp.config import Settings, aws
from faceapp.errors import ConfigError, DeployError
from faceapp.security import credential

LIMITS: dict[str, Any] = {
    "connect_timeout": 10,
    "read_timeout": 60,
    "retries": {"mode": "standard", "total_max_attempts": 5},
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """An AWS account in a region, and the stack that is meant there."""

    settings: Settings
    region: str
    account: str
    endpoint: str = ""
    """Where AWS answers instead of at its own addresses."""

    @property
    def prefix(self) -> str:
        """What the names of all that the stack has begin with, and the value of its tags."""
        return self.settings.prefix

    @property
    def stack(self) -> str:
        """The name that CloudFormation has for it."""
        return self.settings.stack_name

    @property
    def embedded(self) -> bool:
        """Whether this is an AWS on this machine, where nothing is billed and nothing can be lost."""
        return is_loopback_url(self.endpoint)

    def __str__(self) -> str:
        where = f" at {self.endpoint}" if self.endpoint else ""
        return f"AWS account {self.account}, region {self.region}{where}"

    @cached_property
    def _clients(self) -> dict[str, Any]:
        return {}

    def client(self, service: str) -> Any:
        """A boto3 client; the same one each time."""
        if service not in self._clients:
            self._clients[service] = aws.client(service, owner="" if self.embedded else self.account, **LIMITS)
        return self._clients[service]


def connect(
    *, prefix: str | None = None, stack: str | None = None, endpoint: str | None = None, region: str | None = None
) -> Target:
    """Point this process's AWS variables at the AWS that is meant, and ask it who we are there.

    What is not given is what boto3, FACEAPP_PREFIX and FACEAPP_STACK find. An endpoint on this machine gets the
    credential of the start that answers there, so that no mistake here can reach an account. Raises ConfigError and
    DeployError.
    """
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL", "")
    if endpoint and urlsplit(endpoint).scheme not in ("http", "https"):
        raise ConfigError(f"--endpoint-url {endpoint} is no URL: it takes one like http://127.0.0.1:4566")
    if is_loopback_url(endpoint):
        _forget_the_account(endpoint)
    if endpoint:
        os.environ["AWS_ENDPOINT_URL"] = endpoint
    region = region or aws.region()
    os.environ["AWS_REGION"] = os.environ["AWS_DEFAULT_REGION"] = region
    if prefix:
        os.environ["FACEAPP_PREFIX"] = prefix
    if stack:
        os.environ["FACEAPP_STACK"] = stack
    settings = Settings.from_environ(os.environ)
    target = Target(settings=settings, region=region, account="", endpoint=endpoint)
    try:
        return replace(target, account=str(target.client("sts").get_caller_identity()["Account"]))
    except (ClientError, BotoCoreError) as error:
        raise DeployError(f"AWS does not let us in (region {region}): {error}") from error


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
    os.environ.update(no_proxy(os.environ))
