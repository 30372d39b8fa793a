"""Dead letters as they are told of, and the queues that they come to and from."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from celery_sqs.options import Options


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """A message of a dead-letter queue, and what could be found out about it."""

    message_id: str
    queue: str
    """The work queue to which it is sent again; empty where nothing says which."""
    sent_s: float | None
    """Unix time at which the message was sent."""
    receive_count: int
    """How often SQS has handed it out: to workers, and to looks like this one."""
    task: str | None
    task_id: str | None
    """The task's id, or what else the application calls it by."""
    reason: str
    lost: str = ""
    """Why its text cannot be had, where S3 keeps that."""
    body: str
    document: Any
    """The decoded body: the task's headers and properties, with its arguments in `body`. None when it is no task."""


L = TypeVar("L", bound=DeadLetter)


@dataclass(frozen=True, kw_only=True)
class Listing(Generic[L]):
    """Dead letters, oldest first."""

    letters: tuple[L, ...]
    total: int
    """How many there are by SQS's count, which is approximate and includes those held by somebody else."""

    @classmethod
    def of(cls, letters: Sequence[L]) -> Listing[L]:
        """Just these."""
        return cls(letters=tuple(letters), total=len(letters))

    @property
    def complete(self) -> bool:
        return len(self.letters) >= self.total


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one letter."""

    message_id: str
    task_id: str | None
    done: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """A work queue whose messages become dead letters after so many tries."""

    name: str
    url: str
    arn: str
    tries: int


@dataclass(frozen=True, kw_only=True)
class DeadLetterQueue:
    """Where they come to, and from which work queues."""

    name: str
    url: str
    sources: tuple[Source, ...]


def dead_letter_queues(options: Options, sqs: Any) -> tuple[DeadLetterQueue, ...]:
    """Those of an application's work queues; none of one that is not there. Raises botocore's errors."""
    by_target: dict[str, list[Source]] = {}
    for name in options.queue_names:
        try:
            url = str(sqs.get_queue_url(QueueName=name)["QueueUrl"])
            answer = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn", "RedrivePolicy"])["Attributes"]
        except sqs.exceptions.QueueDoesNotExist:
            continue
        policy = json.loads(answer.get("RedrivePolicy", "{}"))
        if target := policy.get("deadLetterTargetArn"):
            source = Source(name=name, url=url, arn=answer["QueueArn"], tries=int(policy.get("maxReceiveCount", 0)))
            by_target.setdefault(str(target), []).append(source)
    names = {target: target.rpartition(":")[2] for target in by_target}
    return tuple(
        DeadLetterQueue(
            name=names[target], url=str(sqs.get_queue_url(QueueName=names[target])["QueueUrl"]), sources=tuple(sources)
        )
        for target, sources in by_target.items()
    )


def task_id_of(document: dict[str, Any] | None) -> str | None:
    """The id of the task in a decoded message."""
    return str(document["headers"]["id"]) if document and document["headers"].get("id") else None


def decoded(body: str) -> dict[str, Any] | None:
    """The Celery task in a message, with its arguments decoded where they can be; None when it is none."""
    document = _json(body)
    if document is None:
        document = _json(_base64(body))
    if not isinstance(document, dict):
        return None
    headers = document.get("headers")
    if not isinstance(headers, dict) or not isinstance(headers.get("task"), str):
        return None
    arguments = document.get("body")
    decoded = next((each for each in (_json(arguments), _json(_base64(arguments))) if each is not None), arguments)
    return {**document, "body": decoded}


def _json(text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None


def _base64(text: Any) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        return None
