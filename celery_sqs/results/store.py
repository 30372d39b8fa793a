"""What of results must be found later, in S3: a bucket's objects, read by whoever knows an id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

from botocore.exceptions import ClientError

from celery_sqs.aws import Aws
from celery_sqs.queues.temporary import code_of

ABSENT = ("NoSuchKey", "404", "NotFound")
TAKEN = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
DELETES = 1000
"""Objects that S3 deletes with one call."""
AT_ONCE = 16
"""Objects that are read at the same time."""


class Store:
    """The objects under `prefix` in `bucket`. Any thread may call any method; each raises botocore's errors."""

    def __init__(self, aws: Aws, bucket: str, prefix: str) -> None:
        self._aws, self.bucket, self._prefix = aws, bucket, prefix

    @cached_property
    def _s3(self) -> Any:
        return self._aws.client("s3")

    def get(self, key: str) -> bytes | None:
        """An object's content; None when it is not there."""
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
        self._s3.put_object(Bucket=self.bucket, Key=self._prefix + key, Body=body, ContentType="application/json")

    def put_new(self, key: str, body: bytes) -> bool:
        """Write an object that is not there yet; False when it is: of two writers one wins."""
        try:
            self._s3.put_object(
                Bucket=self.bucket, Key=self._prefix + key, Body=body, ContentType="application/json", IfNoneMatch="*"
            )
        except ClientError as error:
            if code_of(error) in TAKEN:
                return False
            raise
        return True

    def names(self, under: str) -> Iterator[str]:
        """The keys that begin with `under`, in order, without it."""
        start = self._prefix + under
        for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start):
            for each in page.get("Contents", ()):
                yield str(each["Key"])[len(start) :]

    def delete(self, *keys: str) -> None:
        """Delete objects; what is not there is deleted already."""
        for start in range(0, len(keys), DELETES):
            objects = [{"Key": self._prefix + key} for key in keys[start : start + DELETES]]
            self._s3.delete_objects(Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True})
