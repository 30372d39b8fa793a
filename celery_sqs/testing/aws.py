"""The embedded AWS of a test session, and the environment that leads to it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery_sqs.errors import ConfigurationError
from celery_sqs.testing.process import running
from celery_sqs.testing.waiting import PATIENCE_S, wait_until

if TYPE_CHECKING:
    import pytest

REGION = "us-east-1"
LISTENING = "listening on "
"""What a server says when it does, with its address behind it."""
SERVER = (sys.executable, "-m", "celery_sqs.testing.server")


@dataclass(frozen=True, kw_only=True)
class EmbeddedAws:
    """An AWS on this machine, and as whom it is asked."""

    endpoint: str
    access_key_id: str = "test"
    secret_access_key: str = "test"

    @property
    def environ(self) -> dict[str, str]:
        """The AWS variables of a process that uses it, and nothing of the user's."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1",
        }

    def use(self, patch: pytest.MonkeyPatch) -> None:
        """Let this process and its children talk to it, and to nothing of the user's, until `patch` is undone."""
        for variable in [each for each in os.environ if each.startswith("AWS_")]:
            patch.delenv(variable)
        for name, value in self.environ.items():
            patch.setenv(name, value)

    def client(self, service: str, *, region: str = REGION) -> Any:
        """A boto3 client for it."""
        from celery_sqs.aws import Aws

        own = Aws(
            region=region,
            endpoint_url=self.endpoint,
            access_key_id=self.access_key_id,
            secret_access_key=self.secret_access_key,
        )
        return own.shared(service)


@contextmanager
def embedded_aws(
    log: Path,
    *,
    command: Sequence[str] = SERVER,
    env: Mapping[str, str] = os.environ,
    patience_s: float = PATIENCE_S,
    **keys: str,
) -> Iterator[EmbeddedAws]:
    """One in a process of its own, until the block ends; it forgets everything then. `keys` are of whom it answers.

    Raises ConfigurationError where moto is not installed, and AssertionError where the server does not start.
    """
    if missing := [each for each in ("moto", "gevent") if find_spec(each) is None]:
        raise ConfigurationError(f"The embedded AWS needs {' and '.join(missing)}: pip install '.[testing]'.")
    # A profile of the user's is none that the server has.
    own = {name: value for name, value in env.items() if not name.startswith("AWS_")}
    with running(command, log=log, env={**own, "PYTHONUNBUFFERED": "1"}, stop_s=patience_s) as process:
        wait_until(
            lambda: process.poll() is not None or LISTENING in log.read_text(),
            timeout_s=patience_s,
            what="the embedded AWS",
        )
        if LISTENING not in (said := log.read_text()):
            raise AssertionError(f"the embedded AWS ended: {said}")
        yield EmbeddedAws(endpoint=said.partition(LISTENING)[2].split()[0], **keys)
