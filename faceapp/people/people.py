"""Keys, and what the web tier does with people: list, show and forget them."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote, unquote

from faceapp.errors import NotFound, PersonNotFound
from faceapp.people import names
from faceapp.people.journal import note_change
from faceapp.people.media_types import media_type
from faceapp.storage import Storage

VECTORS = "vectors/"
PHOTOS = "photos/"
SNAPSHOT = "snapshot"
PHOTO_ID_DIGITS = 24
KEY = re.compile(f"(?:{VECTORS}|{PHOTOS})([^/]+)/([0-9a-f]{{{PHOTO_ID_DIGITS}}})")


@dataclass(frozen=True, kw_only=True)
class Person:
    """Somebody enrolled, with the number of their photos."""

    name: str
    photos: int


@dataclass(frozen=True, kw_only=True)
class EnrolledPhoto:
    """A photo's bytes with their media type."""

    data: bytes
    content_type: str


class People:
    """The gallery as the web tier sees it. It reads no vectors: the rights to list, to read `photos/`, to delete and to
    write `version` are enough.

    Every method that takes any spelling of a name raises InvalidName for what cannot be one; every method raises
    StorageUnavailable.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def list_people(self) -> list[Person]:
        """Everybody enrolled, by name (an AWS call per 1,000 photos)."""
        keys = (split_key(key) for key, _ in self._storage.list_gallery(VECTORS))
        counts = Counter(key[0] for key in keys if key)
        return [Person(name=name, photos=photos) for name, photos in sorted(counts.items())]

    def find(self, name: str) -> tuple[str, list[str]]:
        """The name as it is enrolled, and the ids of the person's photos. Raises PersonNotFound."""
        for spelling in names.spellings(name):
            if photo_ids := self._photo_ids(spelling):
                return spelling, photo_ids
        raise self._nobody(name)

    def is_enrolled(self, name: str) -> bool:
        """Whether there is a photo of exactly this name (a call for every 1,000 photos of that person)."""
        return bool(self._photo_ids(name))

    def has(self, name: str, photo_ids: Iterable[str]) -> bool:
        """Whether all these photos of exactly this name are enrolled."""
        return set(self._photo_ids(name)).issuperset(photo_ids)

    def spellings(self, name: str) -> tuple[str, ...]:
        """The spelling of the name that is enrolled; all that it could have where none is."""
        possible = names.spellings(name)
        if len(possible) == 1:
            return possible
        return next(((each,) for each in possible if self.is_enrolled(each)), possible)

    def photo(self, name: str, photo_id: str) -> EnrolledPhoto:
        """The photo as it was enrolled. Raises NotFound."""
        checked = check_photo_id(photo_id)
        for spelling in names.spellings(name):
            if found := self._storage.get_gallery(PHOTOS + path_of(spelling, checked)):
                # Photos that older versions enrolled were stored without it.
                stored = found.content_type.startswith("image/")
                return EnrolledPhoto(
                    data=found.data, content_type=found.content_type if stored else media_type(found.data)
                )
        raise NotFound(f"{name!r} has no photo {photo_id}.")

    def forget(self, name: str) -> None:
        """Remove the vectors and photos of exactly this name from every object. Raises PersonNotFound."""
        if not self._forget(folder_of(name)):
            raise self._nobody(name)

    def forget_photo(self, name: str, photo_id: str) -> None:
        """Remove one photo and its vector from every object. Raises NotFound."""
        checked = check_photo_id(photo_id)
        if not any(self._forget(path_of(each, checked)) for each in self.spellings(name)):
            raise NotFound(f"{name!r} has no photo {photo_id}.")

    def _nobody(self, name: str) -> PersonNotFound:
        """The error, with the names like it among the first 1,000 people (a call)."""
        wanted = names.likeness(name)
        folders = self._storage.list_gallery_folders(VECTORS)
        like = [repr(each) for each in map(name_of, folders) if names.likeness(each) == wanted]
        hint = f" Did you mean {' or '.join(like)}?" if like else ""
        return PersonNotFound(f"Nobody with the name {name!r} is enrolled.{hint}")

    def _photo_ids(self, name: str) -> list[str]:
        keys = (split_key(key) for key, _ in self._storage.list_gallery(VECTORS + folder_of(name)))
        return [key[1] for key in keys if key]

    def _forget(self, prefix: str) -> bool:
        """Delete what begins with `prefix`; False if there was nothing.

        A call that was cut off can be made again and finishes the work.
        """
        storage, found = self._storage, False
        while True:
            vectors = [key for key, _ in storage.list_gallery(VECTORS + prefix)]
            if found and not vectors:
                return True
            photos = [key for key, _ in storage.list_gallery(PHOTOS + prefix)]
            if not vectors and not photos:
                return found
            found = True
            remove(storage, [*vectors, *photos])
            # Somebody may have enrolled the same person between two of these calls: look again.


def remove(storage: Storage, keys: Iterable[str]) -> None:
    """Delete these photos and vectors from the gallery, and the snapshot that may hold the vectors.

    Vectors go first, so that nobody is found from then on, and photos last: while one is left, there is something to
    be found by who does it again. The version changes before the snapshot goes, so that whoever is writing a snapshot
    meanwhile sees the change and removes theirs.
    """
    todo = set(keys)
    vectors = {key for key in todo if key.startswith(VECTORS)}
    storage.delete_gallery(sorted(vectors))
    note_change(storage)
    storage.delete_gallery([SNAPSHOT])
    storage.delete_gallery(sorted(todo - vectors))


def check_photo_id(photo_id: str) -> str:
    if not re.fullmatch(f"[0-9a-f]{{{PHOTO_ID_DIGITS}}}", photo_id):
        raise NotFound(f"{photo_id[:64]!r} is not a photo's id: those are {PHOTO_ID_DIGITS} hexadecimal digits.")
    return photo_id


def folder_of(name: str) -> str:
    """A person's place below `photos/` and `vectors/`."""
    return f"{quote(name, safe='')}/"


def path_of(name: str, photo_id: str) -> str:
    """A photo's place below `photos/` and `vectors/`."""
    return folder_of(name) + photo_id


def photo_id_of(photo: bytes) -> str:
    """The id of a photo with this content."""
    return photo_id_from(hashlib.sha256(photo).hexdigest())


def photo_id_from(sha256: str) -> str:
    """The id of a photo whose content has this hash, in hexadecimal digits."""
    return sha256[:PHOTO_ID_DIGITS]


def split_key(key: str) -> tuple[str, str] | None:
    """The name and the photo id in a key of `path_of`'s making; None for any other key."""
    match = KEY.fullmatch(key)
    return (unquote(match[1]), match[2]) if match else None


def name_of(folder: str) -> str:
    """The name in a key without its photo id, or in that of a person's folder."""
    return unquote(folder.rstrip("/").rpartition("/")[2])
