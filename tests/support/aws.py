"""The embedded AWS for tests: the product's own, as a process on a free port of the loopback."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import boto3
import pytest

from celery_sqs.testing.aws import REGION, EmbeddedAws, embedded_aws
from faceapp.config import Settings
from faceapp.security.credential import aws_keys
from faceapp.security.key_text import new_text

KEY = os.environ.setdefault("FACEAPP_LOCAL_KEY", new_text())
"""The credential of this session's embedded AWS and of the web tiers and Flowers that are started on it."""
ACCESS = aws_keys(KEY)
WRONG_KEY = KEY[:-1] + ("B" if KEY.endswith("A") else "A")
"""One that differs from it in its last letter."""
BEARER = {"Authorization": f"Bearer {KEY}"}
"""Headers for whatever asks for the credential over HTTP."""
COUNTER = {"Authorization": f"Bearer {ACCESS['AWS_ACCESS_KEY_ID']}"}
"""Headers for the embedded AWS's own counter of calls."""


def session(keys: Mapping[str, str] = ACCESS) -> Any:
    """Somebody who has the access key."""
    return boto3.session.Session(keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"], region_name=REGION)


@cache
def plain_client(service: str, endpoint: str) -> Any:
    """One for all tests: making a client takes longer than most of what they do with it."""
    return session().client(service, endpoint_url=endpoint)


def at(endpoint: str) -> EmbeddedAws:
    """The embedded AWS there, for who has the access key."""
    return EmbeddedAws(
        endpoint=endpoint,
        access_key_id=ACCESS["AWS_ACCESS_KEY_ID"],
        secret_access_key=ACCESS["AWS_SECRET_ACCESS_KEY"],
    )


@pytest.fixture(scope="session")
def aws_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL that answers every AWS call of the session."""
    command = [sys.executable, "-m", "faceapp.local.aws", "--port", "0"]
    with embedded_aws(tmp_path_factory.mktemp("aws") / "log", command=command, patience_s=240) as found:
        yield found.endpoint


@pytest.fixture
def aws(aws_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """boto3 in this process and its children talks to the embedded AWS, and to nothing of the user's."""
    at(aws_endpoint).use(monkeypatch)
    return aws_endpoint


@pytest.fixture
def stack(aws: str) -> Settings:
    """Settings with a prefix that no other test has, and its buckets and queues."""
    settings = Settings(prefix=f"t{uuid.uuid4().hex[:12]}")
    s3, sqs = plain_client("s3", aws), plain_client("sqs", aws)
    for bucket in (settings.in_bucket, settings.out_bucket, settings.gallery_bucket):
        s3.create_bucket(Bucket=bucket)
    for queue in (settings.request_queue, settings.response_queue, settings.dead_letter_queue):
        sqs.create_queue(QueueName=queue)
    return settings
