"""Messages that are larger than SQS takes (celery/kombu#279): S3 keeps the text, and the SQS message names the object.

The bucket and the prefix are options, never the message's: who may write to a queue must not send a worker elsewhere.
An object goes when SQS has deleted its message. A worker killed between the two leaves an object, which the bucket's
lifecycle rule removes, and never a message without one.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError
from kombu.utils.json import dumps

from celery_sqs.aws import Aws
from celery_sqs.errors import MessageTooLarge
from celery_sqs.queues.temporary import code_of
from celery_sqs.transport.messages import decoded

logger = logging.getLogger(__name__)

PREFIX = "celery-messages/"
LIMIT_BYTES = 262_144
"""What every queue takes unless it says less; those made since August 2025 take 1 MiB."""
SNS_LIMIT_BYTES = 262_144
LARGEST_BYTES = 64 * 2**20
"""Of an object: a worker reads ten of them at once."""
POINTER = "celery-sqs:message"
"""In an SQS message: the name of the object that has its text."""
OBJECT, SENT = "celery-sqs:object", "celery-sqs:sent"
"""In a received message whose text was in an object: that object's name, and the body as SQS has it."""
ABSENT = ("NoSuchKey", "NotFound", "404")
PASSED_ON = ("message_attributes", "MessageGroupId", "MessageDeduplicationId", "delay_seconds", "DelaySeconds")
"""Properties of a message that are SQS's business."""
BUCKET_NEEDED = (
    "set messages_bucket or results_bucket, and S3 keeps what is larger; or set largest_message_bytes, where the queue "
    "takes more"
)
SEND_WHERE = "put the data somewhere, and send where it is"
TOLD = ("id", "task")
"""Headers that the SQS message has, too, for those who look at dead letters."""
_NAME = re.compile(r"[0-9a-f]{32}")


class Unreadable(Exception):
    """The text of a message cannot be had, now or later, for this reason."""


class Gone(Unreadable):
    """Its object does not exist: the message was done before, or has waited longer than the bucket keeps objects."""


@dataclass(frozen=True, kw_only=True)
class Offload:
    """The objects under `prefix` in `bucket`; without a bucket what is larger than `limit_bytes` is an error.

    Any thread may call any method.
    """

    aws: Aws
    bucket: str
    prefix: str
    limit_bytes: int

    def fitted(self, message: dict[str, Any], *, where: str) -> dict[str, Any]:
        """What to send for `message`: itself, or a message that names an object that has just been written.

        Raises MessageTooLarge and botocore's errors.
        """
        text, size_bytes = _size(message)
        if size_bytes <= self.limit_bytes:
            return message
        if not self.bucket:
            raise _too_large(message, where, size_bytes, self.limit_bytes, BUCKET_NEEDED)
        if len(text) > LARGEST_BYTES:
            raise _too_large(message, where, size_bytes, LARGEST_BYTES, SEND_WHERE)
        name = uuid.uuid4().hex
        self.aws.shared("s3").put_object(
            Bucket=self.bucket, Key=self.prefix + name, Body=text, ContentType="application/json"
        )
        headers, properties = message.get("headers") or {}, message["properties"]
        return {
            POINTER: name,
            "headers": {each: str(headers[each])[:200] for each in TOLD if each in headers},
            "properties": {each: properties[each] for each in PASSED_ON if each in properties},
        }

    def read(self, messages: list[dict[str, Any]]) -> list[Exception | None]:
        """Put the text of received messages into those that only name it; what went wrong with each.

        That is Unreadable, or any other error for what may go well another time.
        """
        pointers = [each for each in messages if _may_point(each["Body"])]
        if not pointers:
            return [None] * len(messages)
        with ThreadPoolExecutor(len(pointers)) as threads:
            troubles = dict(zip(map(id, pointers), threads.map(self._tried, pointers), strict=True))
        return [troubles.get(id(each)) for each in messages]

    def _tried(self, message: dict[str, Any]) -> Exception | None:
        try:
            self._read(message)
        except Exception as error:  # whatever it is (no credentials, no region): raised, it would end the polling
            return error
        return None

    def _read(self, message: dict[str, Any]) -> None:
        name = object_in(message["Body"])
        if name is None:
            return
        if not self.bucket:
            raise Unreadable(f"its text is the object {name}, and neither messages_bucket nor results_bucket is set")
        text = self._object(name)
        message.update({SENT: message["Body"], OBJECT: name, "Body": text})

    def _object(self, name: str) -> str:
        try:
            answer = self.aws.quick("s3").get_object(Bucket=self.bucket, Key=self.prefix + name)
        except ClientError as error:
            if code_of(error) not in ABSENT:
                raise
            raise Gone(
                f"its text, the object {self.prefix}{name}, is gone: it was done before, or has waited longer than "
                "the bucket keeps objects"
            ) from None
        if answer["ContentLength"] > LARGEST_BYTES:
            raise Unreadable(f"its text has {answer['ContentLength']} bytes")
        try:
            return str(answer["Body"].read().decode())
        except UnicodeDecodeError:
            raise Unreadable("its text is not UTF-8") from None

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects whose messages SQS has deleted. What stays is the lifecycle rule's."""
        if not (objects := [{"Key": self.prefix + name} for name in names]):
            return
        try:
            self.aws.quick("s3").delete_objects(Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True})
        except Exception as error:  # as in `_tried`
            logger.warning("%d objects of messages that are done stay in the bucket: %s", len(objects), error)


def check(message: dict[str, Any], limit_bytes: int, *, where: str) -> None:
    """Raises MessageTooLarge for a message that has more, and whose receivers read nothing from S3."""
    _, size_bytes = _size(message)
    if size_bytes > limit_bytes:
        raise _too_large(message, where, size_bytes, limit_bytes, SEND_WHERE)


def _size(message: dict[str, Any]) -> tuple[bytes, int]:
    """The text of a message and how much of SQS's limit it takes, its attributes included."""
    properties = dict(message.get("properties") or {})
    attributes: dict[str, Any] = properties.pop("message_attributes", None) or {}
    text = dumps({**message, "properties": properties}).encode()
    size_bytes = len(text)
    for name, each in attributes.items():
        size_bytes += len(name.encode())
        size_bytes += sum(len(str(part).encode()) for part in (each.values() if isinstance(each, dict) else [each]))
    return text, size_bytes


def _too_large(message: dict[str, Any], where: str, size_bytes: int, limit_bytes: int, advice: str) -> MessageTooLarge:
    what = (message.get("headers") or {}).get("task") or "no task"
    return MessageTooLarge(
        f"the message ({what}) for {where} has {size_bytes} bytes of at most {limit_bytes}: {advice}"
    )


def object_in(body: str) -> str | None:
    """The name of the object that a message's body says has its text; None where the body is the text.

    Raises Unreadable for a name that is none of ours.
    """
    try:
        name = decoded(body).get(POINTER)
    except (ValueError, RecursionError):
        return None
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise Unreadable("it names an object that is none of ours")
    return name


def _may_point(body: Any) -> bool:
    # Looked into only when it may be one: nearly none is.
    return isinstance(body, str) and (POINTER in body or not body.startswith("{"))
