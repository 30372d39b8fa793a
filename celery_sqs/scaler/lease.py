"""Who may act: of several scalers one, the others stand by.

The lease is an object in S3 that its holder writes anew all the time, each write on the condition that
nobody else wrote in between. Nobody compares clocks: a scaler that stands by watches the object's ETag, and when it has
not changed for the lease's length, by its own monotonic clock, it takes the lease with the next fencing token. The
holder writes once more right before it acts; a write that fails means that somebody else holds the lease now.

EC2 checks no fencing tokens, so that write leaves room for one call's time limits before the lease could end. What is
left is a process that is halted for most of a lease between its write and its call.

Where an earlier version kept the lease in another bucket (`former_lease_bucket`), a scaler that finds one there
respects it for as long as it changes, and removes it then.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from celery_sqs.aws import Aws
from celery_sqs.errors import LeaseLost, StorageUnavailable
from celery_sqs.results.store import ABSENT, BUSY, TAKEN
from celery_sqs.scaler.options import ScalerOptions

logger = logging.getLogger(__name__)

LEASE_S = 20.0
TRIES = {"mode": "standard", "total_max_attempts": 3}
"""botocore's `retries`, for a call that a tick waits for."""
RENEW_S = 6.0
ACT_S = 13.0
"""The longest that one call takes that acts (see the time limits in fleet/ec2.py)."""


class Lease:
    """This process's part in the lease. Not safe to share between threads.

    `memory` is a small document that travels with the lease from holder to holder; the holder may change it.
    """

    def __init__(
        self,
        options: ScalerOptions,
        aws: Aws,
        *,
        client: Any = None,
        owner: str = "",
        length_s: float = LEASE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.owner = owner or f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.memory: dict[str, Any] = {}
        self.token = 0
        """The fencing token: one more with each holder."""
        self.holder = ""
        self._bucket, self._key = options.lease_bucket, options.lease_key
        self._client = client or aws.client("s3", connect_timeout=2, read_timeout=20, retries=TRIES)
        self._length_s, self._clock = length_s, clock
        self._former: _Former | None = None
        if options.former_lease_bucket:
            self._former = _Former(self._client, options.former_lease_bucket, self._key, length_s, clock)
        self._etag: str | None = None
        self._was_deleted = False
        """Whether the last write failed for want of the object, and not because of another's write."""
        self._seen_s = clock()
        self._renewed_s = float("-inf")

    @property
    def held(self) -> bool:
        """Whether this process holds it, as far as it knows."""
        return self.holder == self.owner and self._clock() - self._renewed_s < self._length_s

    def hold(self) -> bool:
        """Keep the lease, or take it if it is free; once a tick. Raises StorageUnavailable when S3 does not answer."""
        if self.holder == self.owner:
            if self._clock() - self._renewed_s >= RENEW_S:
                self._renew()
        elif self._former and not self._former.is_gone():
            self.holder = self._former.holder
        else:
            self._succeed()
            self._watch()
        return self.held

    def fence(self) -> int:
        """Right before acting: the token, if nobody else has the lease. Raises LeaseLost."""
        if self.holder != self.owner or not self._renew() or self._clock() - self._renewed_s > self._length_s - ACT_S:
            raise LeaseLost(f"{self.holder or 'nobody'} has the scaler's lease: this one does nothing now")
        return self.token

    def release(self) -> None:
        """Let the next scaler begin at once."""
        if self.holder == self.owner and self._write(holder=""):
            self.holder = ""

    def _renew(self) -> bool:
        if not self._write(holder=self.owner):
            if self._was_deleted:
                logger.warning("the lease object %s/%s was deleted: it is taken again", self._bucket, self._key)
            else:
                logger.warning("another scaler has taken the lease: this one stands by")
            self._watch()
        return self.held

    def _succeed(self) -> None:
        """Once: go on from where the former object's last holder was."""
        if self._former:
            self.token, self.memory, self.holder = self._former.token, self._former.memory, ""
            self._former = None

    def _watch(self) -> None:
        etag, document = _read(self._client, self._bucket, self._key)
        if etag != self._etag:
            self._etag, self._seen_s = etag, self._clock()
            self.holder = document.get("holder", "")
            # Never back, not even when somebody deleted the object.
            self.token = max(self.token, document.get("token", 0))
            self.memory = dict(document.get("memory", {}))
        # A holder of our own name can only be a write of ours whose answer was lost.
        if not self.holder or self._clock() - self._seen_s >= self._length_s:
            self._take()

    def _take(self) -> None:
        last = self.holder
        self.token += 1
        if self._write(holder=self.owner):
            logger.info("this scaler (%s) has the lease, token %d, after %s", self.owner, self.token, last or "nobody")
        else:
            self._seen_s = self._clock()

    def _write(self, *, holder: str) -> bool:
        began_s = self._clock()
        document = {"holder": holder, "token": self.token, "nonce": uuid.uuid4().hex, "memory": self.memory}
        condition = {"IfMatch": self._etag} if self._etag else {"IfNoneMatch": "*"}
        try:
            answer = self._client.put_object(
                Bucket=self._bucket,
                Key=self._key,
                Body=json.dumps(document).encode(),
                ContentType="application/json",
                **condition,
            )
        except ClientError as error:
            if (code := error.response["Error"]["Code"]) in (*TAKEN, *BUSY, *ABSENT):
                self.holder, self._etag, self._was_deleted = "", None, code in ABSENT
                return False
            raise StorageUnavailable(f"The scaler's lease cannot be written: {error}") from error
        except BotoCoreError as error:
            raise StorageUnavailable(f"The scaler's lease cannot be written: {error}") from error
        # From before the call: the lease may have begun to run out while the answer was on its way.
        self._etag, self.holder, self._seen_s, self._renewed_s = answer["ETag"], holder, began_s, began_s
        return True


class _Former:
    """The object that was the lease in earlier versions. Only a scaler of such a version writes it."""

    def __init__(self, client: Any, bucket: str, key: str, length_s: float, clock: Callable[[], float]) -> None:
        self.holder, self.token = "", 0
        self.memory: dict[str, Any] = {}
        self._client, self._bucket, self._key = client, bucket, key
        self._length_s, self._clock = length_s, clock
        self._etag: str | None = None
        self._seen_s = clock()

    def is_gone(self) -> bool:
        """Whether nobody holds it. Removes an object that was released, or did not change for the lease's length.

        Raises StorageUnavailable.
        """
        etag, document = _read(self._client, self._bucket, self._key)
        if etag is None:
            return True
        if etag != self._etag:
            self._etag, self._seen_s = etag, self._clock()
            self.holder, self.token = document.get("holder", ""), document.get("token", 0)
            self.memory = dict(document.get("memory", {}))
        if self.holder and self._clock() - self._seen_s < self._length_s:
            return False
        try:
            self._client.delete_object(Bucket=self._bucket, Key=self._key)
        except (BotoCoreError, ClientError) as error:
            raise StorageUnavailable(f"The scaler's former lease in {self._bucket} stays: {error}") from error
        logger.info("removed the scaler's lease of an earlier version, %s/%s", self._bucket, self._key)
        # A scaler of that version may have written it anew.
        return _read(self._client, self._bucket, self._key)[0] is None


def _read(client: Any, bucket: str, key: str) -> tuple[str | None, Mapping[str, Any]]:
    try:
        answer = client.get_object(Bucket=bucket, Key=key)
        body = answer["Body"].read()
    except ClientError as error:
        if error.response["Error"]["Code"] in ABSENT:
            return None, {}
        raise StorageUnavailable(f"The scaler's lease cannot be read: {error}") from error
    except BotoCoreError as error:
        raise StorageUnavailable(f"The scaler's lease cannot be read: {error}") from error
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not _is_lease(document):
        logger.warning("%s/%s is no lease: it counts as somebody's until it has run out", bucket, key)
        document = {"holder": "unknown"}
    return answer["ETag"], document


def _is_lease(document: Any) -> bool:
    shape = {"holder": str, "token": int, "memory": dict}
    return isinstance(document, dict) and all(isinstance(document.get(key), kind) for key, kind in shape.items())
