"""The gallery between two starts: the embedded AWS forgets everything, the people who were enrolled should stay.

A folder mirrors the gallery bucket: one file per object, under a name made of its key and ETag, and `index.json`, which
says which files count. A file is complete before the index names it, and the index is replaced in one step, so the
folder is consistent after any crash.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from botocore.exceptions import BotoCoreError, ClientError

from faceapp.errors import LocalError
from faceapp.people.people import VECTORS, split_key
from faceapp.security.credential import states_folder

MARKS = ("version", "keys/keys.json")
"""Objects that tell of changes: the gallery replaces the first after each, and the API keys are all in the second."""
FLEETING = ("incoming/", "forgetting/", "scaler/")
"""Photos that wait to be enrolled, orders to forget somebody in results, and the scaler's lease: their requests, the
results and that scaler will not be there any more."""

TICK_S = 1.0
"""The embedded S3 dates objects by whole seconds."""


def default_folder(prefix: str) -> Path:
    """The folder of a prefix."""
    return states_folder() / prefix


def keep_private() -> None:
    """From now on this process and its children make files and folders that only this user may read and write.

    Photos of faces, vectors, hashes of API keys and logs are among them.
    """
    os.umask(0o077)


def _tighten(folder: Path) -> None:
    """Take what was made before from other users: folders become 0700, files 0600."""
    for place, _, files in os.walk(folder):
        os.chmod(place, 0o700)
        for path in (Path(place, name) for name in files):
            if not path.is_symlink():
                path.chmod(0o600)


def lock(folder: Path) -> IO[str]:
    """Make the state folder, for this user alone, and hold it until the file is closed.

    Raises LocalError when another process does, and when the folder cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.parent.chmod(0o700)
        _tighten(folder)
        file = (folder / "lock").open("w")
    except OSError as error:
        raise LocalError(f"The state folder {folder} cannot be used: {error.strerror or error}.") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise LocalError(f"Another 'faceapp up' uses {folder}: choose another name with FACEAPP_PREFIX.") from None
    return file


class GalleryState:
    """The gallery `bucket` of the embedded AWS, reached through the S3 client `s3`, and its mirror in `folder`."""

    def __init__(self, s3: Any, bucket: str, folder: Path) -> None:
        self._s3, self._bucket, self._folder = s3, bucket, folder
        self._saved_version: tuple[str | None, ...] = (None,) * len(MARKS)

    def restore(self) -> int:
        """Put the mirrored objects into the bucket, and say how many. Raises LocalError when the folder is damaged."""
        try:
            index = json.loads(self._index.read_text("utf-8"))
            for n, keys in enumerate(_rounds(index.keys())):
                if n:
                    time.sleep(TICK_S)
                for key in keys:
                    body = (self._folder / index[key]).read_bytes()
                    self._s3.put_object(Bucket=self._bucket, Key=key, Body=body)
        except FileNotFoundError as error:
            if error.filename == str(self._index):
                return 0
            raise LocalError(
                f"The kept gallery lacks {error.filename}: 'faceapp up --fresh' starts without."
            ) from error
        except (ValueError, AttributeError) as error:
            raise LocalError(
                f"The kept gallery's {self._index} is damaged: 'faceapp up --fresh' starts without."
            ) from error
        self._saved_version = self._version()
        return len(index)

    def save(self) -> None:
        """Mirror the bucket, if the gallery has changed since the last time. Raises LocalError."""
        try:
            self._save()
        except (BotoCoreError, ClientError, OSError) as error:
            raise LocalError(f"The gallery could not be kept in {self._folder}: {error}") from error

    def _save(self) -> None:
        version = self._version()
        if version == self._saved_version:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        # What a save left that a full disk, or a kill, cut off.
        for part in self._folder.glob("*.part"):
            part.unlink()
        index = {}
        for key, etag in self._objects():
            index[key] = name = hashlib.sha256(f"{key}\n{etag}".encode()).hexdigest()
            if not (self._folder / name).exists():
                try:
                    body = self._s3.get_object(Bucket=self._bucket, Key=key)["Body"].read()
                except self._s3.exceptions.NoSuchKey:
                    # Deleted since the listing: the index has nothing of it, either.
                    del index[key]
                    continue
                self._write(self._folder / name, body)
        self._write(self._index, json.dumps(index, indent=1).encode())
        for file in self._folder.iterdir():
            if file != self._index and file.name not in index.values():
                file.unlink()
        # Read before the listing: a change since then is seen as one the next time.
        self._saved_version = version

    @property
    def _index(self) -> Path:
        return self._folder / "index.json"

    def _version(self) -> tuple[str | None, ...]:
        return tuple(map(self._etag, MARKS))

    def _etag(self, key: str) -> str | None:
        try:
            return str(self._s3.head_object(Bucket=self._bucket, Key=key)["ETag"])
        except ClientError:
            return None

    def _objects(self) -> list[tuple[str, str]]:
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket)
        found = [each for page in pages for each in page.get("Contents", ())]
        # The oldest first, as they are restored.
        found.sort(key=lambda each: each["LastModified"])
        return [(each["Key"], each["ETag"]) for each in found if not each["Key"].startswith(FLEETING)]

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        part = path.with_suffix(".part")
        try:
            part.write_bytes(content)
            part.replace(path)
        except OSError:
            # The disk may be full: what was written of it helps nobody.
            part.unlink(missing_ok=True)
            raise


def _rounds(keys: Iterable[str]) -> list[list[str]]:
    """The keys in rounds, each to be stored in later seconds than the one before.

    Of two people with one photo the gallery names whoever was first, so their vectors are in two rounds. Nearly always
    there is one round.
    """
    rounds: list[list[str]] = [[]]
    before: Counter[str] = Counter()
    for key in keys:
        found = split_key(key) if key.startswith(VECTORS) else None
        n = before[found[1]] if found else 0
        if found:
            before[found[1]] += 1
        if n == len(rounds):
            rounds.append([])
        rounds[n].append(key)
    return rounds
