"""An application on celery_sqs alone (tests.support.orders), its queues and bucket, and its workers."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery import Celery

from tests.support import orders
from tests.support.aws import plain_client
from tests.support.services import aws_environ, celery_worker, users_environ

NAMES = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed"]


@dataclass
class Place:
    """Where the application with these options is."""

    endpoint: str
    options: dict[str, Any]

    def __post_init__(self) -> None:
        self.sqs, self.s3 = plain_client("sqs", self.endpoint), plain_client("s3", self.endpoint)

    @property
    def app(self) -> Celery:
        """A new app, for this process."""
        return orders.made(self.options)

    @contextmanager
    def worker(self, folder: Path, *options: str, endpoint: str = "", **env: str) -> Iterator[subprocess.Popen[bytes]]:
        """A worker whose tasks note in `folder`/notes; `endpoint` is AWS's for it."""
        own = {"ORDERS_OPTIONS": json.dumps(self.options), "ORDERS_NOTES": str(folder / "notes")}
        environ = {**users_environ(PYTHONUNBUFFERED="1"), **aws_environ(endpoint or self.endpoint), **own, **env}
        log = folder / f"log-{uuid.uuid4().hex[:8]}"
        with celery_worker("tests.support.orders", log, environ, *options) as process:
            yield process

    def queue(self, name: str = "celery") -> str:
        """A queue's URL."""
        return str(self.sqs.get_queue_url(QueueName=f"{self.options['prefix']}-{name}")["QueueUrl"])

    def counts(self, name: str = "celery") -> list[int]:
        """Messages that the queue has: waiting, in flight, delayed."""
        answer = self.sqs.get_queue_attributes(QueueUrl=self.queue(name), AttributeNames=NAMES)
        return [int(answer["Attributes"][each]) for each in NAMES]

    def objects(self) -> list[str]:
        """The keys of what is in the bucket for messages."""
        found = self.s3.list_objects_v2(Bucket=self.options["results_bucket"], Prefix="celery-messages/")
        return [str(each["Key"]) for each in found.get("Contents", ())]

    def redrive(self, tries: int) -> str:
        """Give the queue dead letters; the URL of their queue."""
        dead = str(self.sqs.create_queue(QueueName=f"{self.options['prefix']}-dead")["QueueUrl"])
        arn = self.sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": tries})
        self.sqs.set_queue_attributes(QueueUrl=self.queue(), Attributes={"RedrivePolicy": policy})
        return dead


def place(endpoint: str, **options: Any) -> Place:
    """One with a prefix and a bucket of its own."""
    prefix = f"p{uuid.uuid4().hex[:8]}"
    plain_client("s3", endpoint).create_bucket(Bucket=f"{prefix}-results")
    return Place(endpoint, {"prefix": prefix, "results_bucket": f"{prefix}-results", "wait_s": 1, **options})


def notes(folder: Path) -> list[str]:
    """What a worker's tasks have noted."""
    found = folder / "notes"
    return found.read_text().splitlines() if found.exists() else []
