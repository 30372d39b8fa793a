"""The photos to post: each with a file name of its own, and the name that should come back."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from faceapp.errors import BadRequest
from faceapp.operations.folders import SUFFIXES


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One upload. `expected` is None where nothing is known about who is on it."""

    file_name: str
    data: bytes
    expected: str | None

    @property
    def stem(self) -> str:
        return self.file_name.rpartition(".")[0]


def find_photos(folder: Path, *, people: Collection[str]) -> list[tuple[Path, str | None]]:
    """Photos of `folder` and who is on each: its sub-folder's name, or its stem without the number at its end.

    A name that is none of `people` is not known. Raises BadRequest when there are no photos.
    """
    found = [each for each in sorted(folder.glob("*")) + sorted(folder.glob("*/*")) if each.suffix.lower() in SUFFIXES]
    if not found:
        raise BadRequest(f"{folder} holds no photos, as <name><number>.jpg or <name>/<photo>.jpg.")
    named = []
    for path in found:
        name = re.sub(r"[_-]?\d*$", "", path.stem) if path.parent == folder else path.parent.name
        named.append((path, name if name in people else None))
    return named


def in_turn(found: list[tuple[Path, str | None]], count: int) -> list[Photo]:
    """`count` uploads, the photos one after the other; equal photos share their bytes. Raises BadRequest."""
    try:
        contents = [path.read_bytes() for path, _ in found[:count]]
    except OSError as error:
        raise BadRequest(f"{error.filename} cannot be read: {error.strerror}.") from error
    photos = []
    for n in range(count):
        path, expected = found[n % len(found)]
        name = f"{path.stem}-{n:06d}{path.suffix}"
        photos.append(Photo(file_name=name, data=contents[n % len(found)], expected=expected))
    return photos
