"""What of results must be found later, in S3: a bucket's objects, read by whoever knows an id."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from celery_sqs.aws import Aws
from celery_sqs.errors import ResultsUnavailable
from celery_sqs.queues.temporary import code_of

ABSENT = ("NoSuchKey", "404", "NotFound")
TAKEN = ("PreconditionFailed", "412")
BUSY = ("ConditionalRequestConflict", "409")
"""Another conditional write of the same object is under way, and may come to nothing: S3 asks to try again."""
BUSY_TRIES = 8
PASSING = ("SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", *BUSY)
"""Errors that are not 5xx, and pass all the same."""
DELETES = 1000
"""Objects that S3 deletes with one call."""
AT_ONCE = 16
"""Objects that are read at the same time."""


class Store:
    """The objects under `prefix` in `bucket`. Any thread may call any method; each raises ResultsUnavailable."""

    def __init__(self, aws: Aws, bucket: str, prefix: str) -> None:
        self._aws, self.bucket, self._prefix = aws, bucket, prefix

    @cached_property
    def _s3(self) -> Any:
        return self._aws.client("s3")

    def get(self, key: str) -> bytes | None:
        """An object's content; None when it is not there."""
        with self._clearly("s3:GetObject and s3:ListBucket", key):
            try:
                body: bytes = self._s3.get_object(Bucket=self.bucket, Key=self._prefix + key)["Body"].read()
            except ClientError as error:
                if code_of(error) in ABSENT:
                    return None
                raise
        return body

    def get_all(self, keys: Iterable[str]) -> list[bytes | None]:
        """Several at once, in their order."""
        with ThreadPoolExecutor(AT_ONCE) as threads:
            return list(threads.map(self.get, keys))

    def put(self, key: str, body: bytes) -> None:
        """Write an object, over what is there."""
        with self._clearly("s3:PutObject", key):
            self._put(key, body)

    def put_new(self, key: str, body: bytes) -> bool:
        """Write an object that is not there yet; False when it is: of two writers one wins."""
        with self._clearly("s3:PutObject", key):
            for busy in range(BUSY_TRIES):
                try:
                    self._put(key, body, IfNoneMatch="*")
                except ClientError as error:
                    if code_of(error) in TAKEN:
                        return False
                    if code_of(error) not in BUSY or busy == BUSY_TRIES - 1:
                        raise
                    time.sleep(random.uniform(0.0, 0.05 * 2**busy))  # nosec B311 # jitter
                else:
                    break
        return True

    def _put(self, key: str, body: bytes, **condition: str) -> None:
        self._s3.put_object(
            Bucket=self.bucket, Key=self._prefix + key, Body=body, ContentType="application/json", **condition
        )

    def names(self, under: str) -> Iterator[str]:
        """The keys that begin with `under`, in order, without it."""
        start = self._prefix + under
        with self._clearly("s3:ListBucket", under):
            for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start):
                for each in page.get("Contents", ()):
                    yield str(each["Key"])[len(start) :]

    def delete(self, *keys: str) -> None:
        """Delete objects; what is not there is deleted already."""
        for start in range(0, len(keys), DELETES):
            objects = [{"Key": self._prefix + key} for key in keys[start : start + DELETES]]
            with self._clearly("s3:DeleteObject", keys[start]):
                answer = self._s3.delete_objects(Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True})
                for each in answer.get("Errors", ())[:1]:
                    raise ClientError({"Error": each, "ResponseMetadata": answer["ResponseMetadata"]}, "DeleteObjects")

    @contextmanager
    def _clearly(self, right: str, key: str) -> Iterator[None]:
        try:
            yield
        except (BotoCoreError, ClientError) as error:
            message = f"{right} on s3://{self.bucket}/{self._prefix}{key} failed: {error}"
            raise ResultsUnavailable(message, passing=_passes(error)) from error


def is_missing(aws: Aws, bucket: str) -> bool:
    """Whether S3 says that there is no such bucket; False where it does not say."""
    try:
        aws.quick("s3").head_bucket(Bucket=bucket)
    except ClientError as error:
        return code_of(error) in (*ABSENT, "NoSuchBucket")
    except BotoCoreError:
        pass
    return False


def _passes(error: BotoCoreError | ClientError) -> bool:
    """Whether the same call may succeed in a while."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        return status >= 500 or code_of(error) in PASSING
    return not isinstance(error, ParamValidationError)
