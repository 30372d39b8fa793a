"""Names, keys, and what the web tier does with people: list, show and forget them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from urllib.parse import quote, unquote

from faceapp import images
from faceapp.errors import InvalidName, NotFound, PersonNotFound
from faceapp.gallery.journal import note_change
from faceapp.schema import NO_FACE, UNKNOWN
from faceapp.storage import Storage

VECTORS = "vectors/"
PHOTOS = "photos/"
SNAPSHOT = "snapshot"
MAX_NAME = 64
PHOTO_ID_DIGITS = 24
KEY = re.compile(f"(?:{VECTORS}|{PHOTOS})([^/]+)/([0-9a-f]{{{PHOTO_ID_DIGITS}}})")
RESERVED = {UNKNOWN, NO_FACE}


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

    Every method raises InvalidName for what cannot be a name, and StorageUnavailable.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def list_people(self) -> list[Person]:
        """Everybody enrolled, by name (an AWS call per 1,000 photos)."""
        keys = (split_key(key) for key, _ in self._storage.list_gallery(VECTORS))
        counts = Counter(key[0] for key in keys if key)
        return [Person(name=name, photos=photos) for name, photos in sorted(counts.items())]

    def get(self, name: str) -> list[str]:
        """The ids of the person's photos. Raises PersonNotFound."""
        name = check_name(name)
        keys = (split_key(key) for key, _ in self._storage.list_gallery(f"{VECTORS}{quote(name, safe='')}/"))
        photo_ids = [key[1] for key in keys if key]
        if not photo_ids:
            raise PersonNotFound(f"Nobody with the name {name!r} is enrolled.")
        return photo_ids

    def photo(self, name: str, photo_id: str) -> EnrolledPhoto:
        """The photo as it was enrolled. Raises NotFound."""
        name = check_name(name)
        found = self._storage.get_gallery(PHOTOS + path_of(name, check_photo_id(photo_id)))
        if found is None:
            raise NotFound(f"{name!r} has no photo {photo_id}.")
        content_type = found.content_type
        # Photos that older versions enrolled were stored without it.
        if not content_type.startswith("image/"):
            content_type = images.media_type(found.data)
        return EnrolledPhoto(data=found.data, content_type=content_type)

    def forget(self, name: str) -> None:
        """Remove the person's vectors and photos from every object. Raises PersonNotFound."""
        name = check_name(name)
        if not self._forget(f"{quote(name, safe='')}/"):
            raise PersonNotFound(f"Nobody with the name {name!r} is enrolled.")

    def forget_photo(self, name: str, photo_id: str) -> None:
        """Remove one photo and its vector from every object. Raises NotFound."""
        name = check_name(name)
        if not self._forget(path_of(name, check_photo_id(photo_id))):
            raise NotFound(f"{name!r} has no photo {photo_id}.")

    def _forget(self, prefix: str) -> bool:
        """Delete what begins with `prefix`; False if there was nothing.

        Vectors go first, so that nobody is found from then on, and photos last: while one is left, a call that was cut
        off can be made again and finishes the work. The version changes before the snapshot goes, so that whoever is
        writing a snapshot meanwhile sees the change and removes theirs.
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
            storage.delete_gallery(vectors)
            note_change(storage)
            storage.delete_gallery([SNAPSHOT])
            storage.delete_gallery(photos)
            # Somebody may have enrolled the same person between two of these calls: look again.


def check_name(name: str) -> str:
    """The name as it is stored: NFC, without spaces at the end. Raises InvalidName.

    A letter's combining marks count as letters: Hindi, Thai and others cannot be written without them.
    """
    checked = unicodedata.normalize("NFC", name).rstrip(" ")
    categories = [unicodedata.category(character) for character in checked]
    if (
        not 1 <= len(checked) <= MAX_NAME
        or ".." in checked
        or not (categories[0][0] == "L" or categories[0] == "Nd")
        or not all(
            kind[0] in "LM" or kind == "Nd" or character in " ._'-"
            for character, kind in zip(checked, categories, strict=True)
        )
    ):
        raise InvalidName()
    if checked.casefold() in RESERVED:
        raise InvalidName(f"{checked!r} cannot be a person's name: it is an answer of the service.")
    return checked


def check_photo_id(photo_id: str) -> str:
    if not re.fullmatch(f"[0-9a-f]{{{PHOTO_ID_DIGITS}}}", photo_id):
        raise NotFound(f"{photo_id[:64]!r} is not a photo's id: those are {PHOTO_ID_DIGITS} hexadecimal digits.")
    return photo_id


def path_of(name: str, photo_id: str) -> str:
    """A photo's place below `photos/` and `vectors/`."""
    return f"{quote(name, safe='')}/{photo_id}"


def split_key(key: str) -> tuple[str, str] | None:
    """The name and the photo id in a key of `path_of`'s making; None for any other key."""
    match = KEY.fullmatch(key)
    return (unquote(match[1]), match[2]) if match else None


def name_of(folder: str) -> str:
    """The name in a key without its photo id, or in that of a person's folder."""
    return unquote(folder.rpartition("/")[2])
