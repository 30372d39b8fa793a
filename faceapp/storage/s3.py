"""S3: photos in, results out, photos waiting to be enrolled, and the gallery's objects.

One method is one AWS call, except where its docstring says otherwise: calls are billed, and a photo's whole path has a
budget of eight.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote, unquote

from botocore.exceptions import BotoCoreError, ClientError

from celery_sqs.clocks import answered
from faceapp.config import Settings, aws
from faceapp.errors import NotFound, RecognitionNotFound, StorageUnavailable
from faceapp.schema import ID_DIGITS, REQUEST_ID, Recognition

INCOMING = "incoming/"
MISSING = {"NoSuchKey", "404", "NotFound"}
CHANGED = {"PreconditionFailed", "ConditionalRequestConflict"}
MAX_FILE_NAME_BYTES = 1024
"""Of a percent-encoded file name: S3 takes 2 KB of metadata in all, and a person's name needs 768 bytes at most."""
MAX_SUFFIX = 16
HEADER_TEXT = re.compile("[!-~]+(?: [!-~]+)*")
OCTETS = "application/octet-stream"
KEYS_PER_DELETE = 1000
KEYS_PER_LIST = 1000
PHOTO_NUMBER = re.compile("[0-9]{1,4}")
DIGITS = "0123456789abcdef"
MAX_RESULT_BYTES = 16 * 1024 * 1024
"""A photo of 10,000 faces gives a result of 10 MB."""
ARCHIVES = {"GLACIER", "DEEP_ARCHIVE"}
"""Storage classes whose objects cannot be read."""
PATIENT: dict[str, Any] = {
    "connect_timeout": 2,
    "read_timeout": 20,
    "retries": {"mode": "standard", "total_max_attempts": 3},
}
QUICK: dict[str, Any] = {"connect_timeout": 1, "read_timeout": 3, "retries": aws.ONCE}


@dataclass(frozen=True, kw_only=True)
class StoredPhotoHead:
    """What is known about a photo in the in-bucket without fetching it."""

    file_name: str
    """As uploaded; shortened in the middle if it was longer than S3's metadata can hold."""
    content_type: str
    sha256: str
    size_bytes: int
    last_modified: datetime
    """When it was stored, by S3's clock."""
    answered: datetime
    """When S3 told this, by the same clock."""


@dataclass(frozen=True, kw_only=True)
class StoredPhoto(StoredPhotoHead):
    """A photo in the in-bucket."""

    data: bytes


@dataclass(frozen=True, kw_only=True)
class IncomingPhoto:
    """A photo that waits to be enrolled as `name`."""

    data: bytes
    name: str
    file_name: str
    sha256: str
    """Empty for a photo that an earlier version handed in."""
    last_modified: datetime


@dataclass(frozen=True, kw_only=True)
class GalleryObject:
    """An object as it was when S3 `answered`; both times are by S3's clock."""

    data: bytes
    etag: str
    last_modified: datetime
    answered: datetime
    content_type: str = ""


@dataclass(frozen=True, kw_only=True)
class StoredResult:
    """What a listing says of a result."""

    id: str
    stored: datetime
    """By S3's clock."""
    readable: bool
    """False for what no worker can have stored: it is larger than any result, or in an archive."""


@dataclass(frozen=True, kw_only=True)
class ResultPage:
    """Some results in the order of their ids."""

    results: tuple[StoredResult, ...]
    next: str | None
    """The id at which the listing goes on; None at its end."""
    answered: datetime
    """When S3 told this, by its clock."""


class _Changed(Exception):
    """A write was conditional and the object is not what it was."""


class Storage:
    """The three buckets. Safe to share between threads, and across a fork: a child makes a client of its own.

    Every method raises StorageUnavailable when S3 does not answer or refuses, and says for which bucket and call.
    """

    def __init__(self, settings: Settings, *, client: Any = None, quick: bool = False) -> None:
        """`quick` gives up after seconds and one try: for an event loop, and for what may fail."""
        self.settings = settings
        self._given = client
        self._quick = quick
        # By process id: a forked child must share neither the parent's sockets nor a lock that one of its threads held.
        self._clients: dict[int, Any] = {}
        self._locks: dict[int, threading.Lock] = {}

    @property
    def client(self) -> Any:
        """This process's S3 client, made at the first use."""
        if self._given is not None:
            return self._given
        process = os.getpid()
        if process not in self._clients:
            with self._locks.setdefault(process, threading.Lock()):
                if process not in self._clients:
                    self._clients[process] = self._new_client()
        return self._clients[process]

    def _new_client(self) -> Any:
        return aws.client("s3", **(QUICK if self._quick else PATIENT))

    def ready(self) -> None:
        """Ask for all three buckets (three calls). Raises StorageUnavailable unless each is there and open to us."""
        for bucket in (self.settings.in_bucket, self.settings.out_bucket, self.settings.gallery_bucket):
            self._call("head_bucket", bucket)

    def put_photo(self, request_id: str, data: bytes, *, file_name: str, content_type: str) -> None:
        """Store an upload under its request id. A content type that no HTTP header can carry is left out."""
        self._call(
            "put_object",
            self.settings.in_bucket,
            Key=_checked(request_id),
            Body=data,
            ContentType=content_type if HEADER_TEXT.fullmatch(content_type) else "application/octet-stream",
            Metadata={"file-name": encode_file_name(file_name), "sha256": hashlib.sha256(data).hexdigest()},
        )

    def get_photo(self, request_id: str) -> StoredPhoto:
        """Raises RecognitionNotFound."""
        key = _checked(request_id)
        try:
            answer = self._call("get_object", self.settings.in_bucket, Key=key)
        except NotFound:
            raise RecognitionNotFound(f"There is no photo with the id {request_id}.") from None
        return StoredPhoto(data=answer["Body"], **_head_fields(answer))

    def delete_photo(self, request_id: str) -> None:
        """Drop an upload that nobody will be told about; one that is not there is no error."""
        self._call("delete_object", self.settings.in_bucket, Key=_checked(request_id))

    def photo_exists(self, request_id: str) -> StoredPhotoHead | None:
        key = _checked(request_id)
        try:
            return StoredPhotoHead(**_head_fields(self._call("head_object", self.settings.in_bucket, Key=key)))
        except NotFound:
            return None

    def put_result(self, recognition: Recognition) -> None:
        self._put_result(recognition)

    def put_failed(self, recognition: Recognition) -> bool:
        """Store a failed result unless there is a result already, which may be a better one. False if so."""
        try:
            self._put_result(recognition, IfNoneMatch="*")
        except _Changed:
            return False
        return True

    def get_result(self, request_id: str) -> Recognition | None:
        """The result, or None while there is none. Raises SchemaError on a document of another version."""
        key = _checked(request_id)
        try:
            return Recognition.from_json(self._call("get_object", self.settings.out_bucket, Key=key)["Body"])
        except NotFound:
            return None

    def result_exists(self, request_id: str) -> bool:
        try:
            self._call("head_object", self.settings.out_bucket, Key=_checked(request_id))
        except NotFound:
            return False
        return True

    def delete_result(self, request_id: str) -> None:
        """One that is not there is no error."""
        self._call("delete_object", self.settings.out_bucket, Key=_checked(request_id))

    def list_results(self, *, start: str = "", most: int = KEYS_PER_LIST) -> ResultPage:
        """Up to `most` results from the id `start` on, and where the next page begins.

        A call; one more for each `most` keys in a row that are no results'.
        """
        after = _just_before(start) if start else ""
        while True:
            page = self._call("list_objects_v2", self.settings.out_bucket, StartAfter=after, MaxKeys=most)
            contents = page.get("Contents", ())
            results = tuple(_listed(each) for each in contents if REQUEST_ID.fullmatch(each["Key"]))
            # The page ends where S3 says so. How many of its keys are results tells nothing.
            following = first_id_after(contents[-1]["Key"]) if page.get("IsTruncated") and contents else None
            if results or following is None:
                return ResultPage(results=results, next=following, answered=answered(page))
            after = max(contents[-1]["Key"], _just_before(following))

    def get_result_document(self, request_id: str) -> GalleryObject | None:
        """The result as it is stored, of any version."""
        try:
            answer = self._call("get_object", self.settings.out_bucket, Key=_checked(request_id))
        except NotFound:
            return None
        return _object(answer)

    def replace_result(self, recognition: Recognition, *, etag: str) -> bool:
        """Store the result unless what is stored is no longer `etag`. False if so."""
        try:
            self._put_result(recognition, IfMatch=etag)
        except (NotFound, _Changed):
            return False
        return True

    def put_incoming(self, request_id: str, n: int, data: bytes, *, name: str, file_name: str) -> str:
        """Keep the request's `n`-th photo for a worker to enrol as `name`; answers its SHA-256 in hexadecimal."""
        sha256 = hashlib.sha256(data).hexdigest()
        self._call(
            "put_object",
            self.settings.gallery_bucket,
            Key=f"{INCOMING}{_checked(request_id)}/{n}",
            Body=data,
            Metadata={
                "name": quote(name, safe=""),
                "file-name": encode_file_name(file_name),
                "sha256": sha256,
            },
        )
        return sha256

    def list_incoming(self, request_id: str) -> list[int]:
        """The numbers of the request's photos that still wait, in order."""
        prefix = f"{INCOMING}{_checked(request_id)}/"
        numbers = (key.removeprefix(prefix) for key, _ in self.list_gallery(prefix))
        return sorted(int(number) for number in numbers if PHOTO_NUMBER.fullmatch(number))

    def get_incoming(self, request_id: str, n: int) -> IncomingPhoto:
        """Raises NotFound, also when the photo was enrolled already."""
        answer = self._call("get_object", self.settings.gallery_bucket, Key=f"{INCOMING}{_checked(request_id)}/{n}")
        return IncomingPhoto(data=answer["Body"], last_modified=answer["LastModified"], **_names(answer["Metadata"]))

    def head_incoming(self, request_id: str, n: int) -> IncomingPhoto:
        """The photo's names without its data. Raises NotFound."""
        answer = self._call("head_object", self.settings.gallery_bucket, Key=f"{INCOMING}{_checked(request_id)}/{n}")
        return IncomingPhoto(data=b"", last_modified=answer["LastModified"], **_names(answer["Metadata"]))

    def list_all_incoming(self) -> Iterator[tuple[str, datetime]]:
        """The key of every photo that waits, of all requests, with the time it came by S3's clock."""
        return ((each["Key"], each["LastModified"]) for each in self._list_gallery(INCOMING))

    def name_of_incoming(self, key: str) -> str | None:
        """Who a waiting photo is to be enrolled as: empty where nothing says it, None if the photo waits no more."""
        try:
            return _names(self._call("head_object", self.settings.gallery_bucket, Key=key)["Metadata"])["name"]
        except NotFound:
            return None

    def delete_incoming(self, request_id: str) -> None:
        """Drop all of the request's waiting photos (a list and a delete)."""
        self.delete_gallery(key for key, _ in self.list_gallery(f"{INCOMING}{_checked(request_id)}/"))

    def put_gallery(self, key: str, data: bytes, *, content_type: str = OCTETS) -> None:
        self._call("put_object", self.settings.gallery_bucket, Key=key, Body=data, ContentType=content_type)

    def replace_gallery(
        self, key: str, data: bytes, *, etag: str | None, made_by: str = "", content_type: str = OCTETS
    ) -> bool:
        """Store the object unless it is no longer what it was: `etag`, or not there for None. False if so.

        `made_by` is kept beside it: the id of the request that wants it stored.
        """
        condition: dict[str, Any] = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
        condition["ContentType"] = content_type
        if made_by:
            condition["Metadata"] = {"made-by": made_by}
        try:
            self._call("put_object", self.settings.gallery_bucket, Key=key, Body=data, **condition)
        except (NotFound, _Changed):
            return False
        return True

    def get_gallery(self, key: str) -> GalleryObject | None:
        try:
            answer = self._call("get_object", self.settings.gallery_bucket, Key=key)
        except NotFound:
            return None
        return _object(answer)

    def gallery_etag(self, key: str) -> str | None:
        """The object's ETag without its content; None if there is no such object."""
        try:
            return str(self._call("head_object", self.settings.gallery_bucket, Key=key)["ETag"])
        except NotFound:
            return None

    def gallery_made_by(self, key: str) -> str | None:
        """The id of the request that had the object stored, empty if that is not known; None if there is no object."""
        try:
            found = self._call("head_object", self.settings.gallery_bucket, Key=key)
            return str(found["Metadata"].get("made-by", ""))
        except NotFound:
            return None

    def list_gallery(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Every key that begins with `prefix`, with its ETag (a call per 1,000 keys)."""
        return ((each["Key"], each["ETag"]) for each in self._list_gallery(prefix))

    def gallery_ages(self, prefix: str) -> Iterator[tuple[str, float]]:
        """The same with the seconds since each was stored, by S3's clock."""
        for page in self._gallery_pages(prefix):
            for each in page.get("Contents", ()):
                yield each["Key"], (answered(page) - each["LastModified"]).total_seconds()

    def list_gallery_since(self, prefix: str) -> Iterator[tuple[str, str, datetime]]:
        """The same, with the time that each was stored by S3's clock."""
        return ((each["Key"], each["ETag"], each["LastModified"]) for each in self._list_gallery(prefix))

    def list_gallery_folders(self, prefix: str) -> list[str]:
        """The first 1,000 folders below `prefix`, each with a slash at its end."""
        page = self._call("list_objects_v2", self.settings.gallery_bucket, Prefix=prefix, Delimiter="/")
        return [each["Prefix"] for each in page.get("CommonPrefixes", ())]

    def _list_gallery(self, prefix: str) -> Iterator[dict[str, Any]]:
        return (each for page in self._gallery_pages(prefix) for each in page.get("Contents", ()))

    def _gallery_pages(self, prefix: str) -> Iterator[dict[str, Any]]:
        more: dict[str, str] = {}
        while True:
            page = self._call("list_objects_v2", self.settings.gallery_bucket, Prefix=prefix, **more)
            yield page
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def delete_gallery(self, keys: Iterable[str]) -> None:
        """Delete the objects, those already gone included (a call per 1,000 keys)."""
        todo = [{"Key": key} for key in keys]
        bucket = self.settings.gallery_bucket
        for start in range(0, len(todo), KEYS_PER_DELETE):
            objects = todo[start : start + KEYS_PER_DELETE]
            answer = self._call("delete_objects", bucket, Delete={"Objects": objects, "Quiet": True})
            for error in answer.get("Errors", ()):
                raise StorageUnavailable(f"The bucket {bucket} did not delete an object: {error['Code']}")

    def _put_result(self, recognition: Recognition, **condition: str) -> None:
        self._call(
            "put_object",
            self.settings.out_bucket,
            Key=_checked(recognition.id),
            Body=recognition.to_json().encode(),
            ContentType="application/json",
            **condition,
        )

    def _call(self, operation: str, bucket: str, **arguments: Any) -> dict[str, Any]:
        """Ask S3. The body is read here too: a connection that ends in the middle of it is the same failure."""
        try:
            answer: dict[str, Any] = getattr(self.client, operation)(Bucket=bucket, **arguments)
            if "Body" in answer:
                answer["Body"] = answer["Body"].read()
        except ClientError as error:
            if "Key" in arguments and error.response["Error"]["Code"] in MISSING:
                # A key of the gallery has a person's name in it, and this may be logged.
                raise NotFound(f"There is no such object in the bucket {bucket}.") from None
            if error.response["Error"]["Code"] in CHANGED:
                raise _Changed from None
            code = error.response["Error"]["Code"]
            raise StorageUnavailable(f"The bucket {bucket} refused {operation}: {code}") from None
        except BotoCoreError as error:
            # What botocore says holds the object's key: a person's name, or an id that opens a result.
            raise StorageUnavailable(
                f"The bucket {bucket} did not answer {operation}: {type(error).__name__}"
            ) from None
        return answer


def encode_file_name(name: str, *, limit_bytes: int = MAX_FILE_NAME_BYTES) -> str:
    """Percent-encode any file name into the ASCII that S3 metadata takes, in at most `limit_bytes`.

    One that is too long loses the end of its stem and keeps its suffix, and no character is cut in two.
    """
    whole = quote(name, safe="", errors="replace")
    if len(whole) <= limit_bytes:
        return whole
    stem, dot, suffix = name.rpartition(".")
    if not stem or len(suffix) > MAX_SUFFIX:
        stem, dot, suffix = name, "", ""
    end = quote(dot + suffix, safe="", errors="replace")
    kept, left_bytes = [], limit_bytes - len(end)
    for character in stem:
        encoded = quote(character, safe="", errors="replace")
        left_bytes -= len(encoded)
        if left_bytes < 0:
            break
        kept.append(encoded)
    return "".join(kept) + end


def _checked(request_id: str) -> str:
    if not REQUEST_ID.fullmatch(request_id):
        raise RecognitionNotFound(f"{request_id[:64]!r} is not an id: those are 32 hexadecimal digits.")
    return request_id


def _head_fields(answer: dict[str, Any]) -> dict[str, Any]:
    metadata = answer["Metadata"]
    return {
        "file_name": unquote(metadata.get("file-name", "")),
        "content_type": answer.get("ContentType", ""),
        "sha256": metadata.get("sha256", ""),
        "size_bytes": answer["ContentLength"],
        "last_modified": answer["LastModified"],
        "answered": answered(answer),
    }


def _object(answer: dict[str, Any]) -> GalleryObject:
    return GalleryObject(
        data=answer["Body"],
        etag=answer["ETag"],
        last_modified=answer["LastModified"],
        answered=answered(answer),
        content_type=answer.get("ContentType", ""),
    )


def _listed(described: dict[str, Any]) -> StoredResult:
    return StoredResult(
        id=described["Key"],
        stored=described["LastModified"],
        readable=described["Size"] <= MAX_RESULT_BYTES and described.get("StorageClass") not in ARCHIVES,
    )


def first_id_after(key: str) -> str | None:
    """The least request id that sorts after `key`; None when none does."""
    head = re.split("[^0-9a-f]", key, maxsplit=1)[0][:ID_DIGITS]
    if len(head) < ID_DIGITS:
        # What follows the digits decides: a greater digit may stand in its place.
        greater = next((digit for digit in DIGITS if digit > key[len(head) : len(head) + 1]), None)
        if greater:
            return (head + greater).ljust(ID_DIGITS, "0")
    if not head.strip("f"):
        return None
    return f"{int(head, 16) + 1:0{len(head)}x}".ljust(ID_DIGITS, "0")


def _just_before(request_id: str) -> str:
    """A key that sorts before the id, with no other key between them that anybody would choose."""
    return request_id[:-1] + chr(ord(request_id[-1]) - 1) + "\ufffd"


def _names(metadata: dict[str, str]) -> dict[str, str]:
    """What was written beside a photo that waits to be enrolled."""
    return {
        "name": unquote(metadata.get("name", "")),
        "file_name": unquote(metadata.get("file-name", "")),
        "sha256": metadata.get("sha256", ""),
    }
