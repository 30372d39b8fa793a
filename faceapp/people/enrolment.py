"""Putting photos and their vectors into the gallery bucket: all of an enrolment, or nothing of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from faceapp.errors import StorageUnavailable
from faceapp.people import names
from faceapp.people.journal import note_enrolment
from faceapp.people.media_types import media_type
from faceapp.people.people import PHOTOS, VECTORS, path_of, photo_id_of, remove
from faceapp.people.table import Table
from faceapp.schema import Notice
from faceapp.storage import OCTETS, Storage

logger = logging.getLogger(__name__)

ATTEMPTS = 3
MOST_NOTICES = 5
UNLIKE = 1.25
"""Thresholds between a photo and the nearest of the person's others from which it is clearly not like them. With
dlib's descriptors that is 0.69: the sample photos of one person are 0.24 to 0.44 apart, those of two 0.80 to 0.89."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NewPhoto:
    """A photo to enrol, and its descriptors ([D] each, of the face as seen and at low resolution)."""

    data: bytes
    descriptor: ArrayLike
    low_descriptor: ArrayLike

    @property
    def id(self) -> str:
        return photo_id_of(self.data)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is stored of a photo: its place below `photos/` and `vectors/`, its bytes and its vector's."""

    path: str
    photo: bytes
    vector: bytes


class Writer:
    """One enrolment's writes. Every method raises StorageUnavailable.

    `is_same` says whether a vector's bytes, which are there, say the same as others. Then they stay as they are, so
    S3 knows since when the photo is enrolled.
    """

    def __init__(self, storage: Storage, request_id: str, *, is_same: Callable[[bytes, bytes], bool]) -> None:
        self._storage, self._request_id, self._is_same = storage, request_id, is_same
        self._made: set[str] = set()

    def write(self, name: str, entries: Sequence[Entry]) -> None:
        """Enrol all of them: photos first, then vectors, for a photo is enrolled when its vector is there.

        What was written is taken back when something fails, however it fails. A process that is killed leaves what
        the task's next delivery completes.
        """
        try:
            for _ in range(ATTEMPTS):
                self._put(entries)
                if all(self._storage.gallery_etag(PHOTOS + each.path) is not None for each in entries):
                    note_enrolment(self._storage, name)
                    return
                # Somebody forgot the person between the two: their vectors have no photo any more.
                self._storage.delete_gallery(VECTORS + each.path for each in entries)
            raise StorageUnavailable("The person is being forgotten at this moment: try again.")
        except BaseException:
            self._undo()
            raise

    def _put(self, entries: Sequence[Entry]) -> None:
        for each in entries:
            self._make(PHOTOS + each.path, each.photo, media_type(each.photo))
        for each in entries:
            key = VECTORS + each.path
            if not self._make(key, each.vector):
                found = self._storage.get_gallery(key)
                if found is None or not self._is_same(found.data, each.vector):
                    self._storage.put_gallery(key, each.vector)

    def _make(self, key: str, data: bytes, content_type: str = OCTETS) -> bool:
        made = self._storage.replace_gallery(key, data, etag=None, made_by=self._request_id, content_type=content_type)
        if made:
            self._made.add(key)
        return made

    def _undo(self) -> None:
        if not self._made:
            return
        try:
            remove(self._storage, self._made)
        except StorageUnavailable as error:
            logger.error("%d objects of an enrolment that failed are not taken back: %s", len(self._made), error)


def settle(storage: Storage, request_id: str, name: str, photo_ids: Sequence[str]) -> bool:
    """Whether all of the photos are enrolled as `name`; if not, what this request has put there is taken back.

    For an enrolment that was killed in the middle, when it is given up. Two calls for each photo.
    """
    paths = [path_of(name, each) for each in photo_ids]
    made_by = {key: storage.gallery_made_by(key) for path in paths for key in (VECTORS + path, PHOTOS + path)}
    if None not in made_by.values():
        return True
    begun = [key for key, request in made_by.items() if request == request_id]
    if begun:
        remove(storage, begun)
    return False


def notices(
    table: Table, name: str, photos: Sequence[tuple[str, NDArray[np.float32]]], *, threshold: float
) -> tuple[Notice, ...]:
    """What whoever enrols these photos (ids and descriptors [D]) as `name` should know, at most MOST_NOTICES of a kind.

    Other people with a name like it, and those whose photos are within `threshold` of a new one or as near to it as
    the person's own are; and which new photos are unlike all others of the person.
    """
    wanted = names.likeness(name)
    alike = [each for each in table.names if each != name and names.likeness(each) == wanted]
    found = [Notice(code=Notice.SIMILAR_NAME, name=each) for each in alike[:MOST_NOTICES]]
    nearest: dict[str, Notice] = {}
    for photo_id, descriptor in photos:
        for notice in _neighbours(table, name, photo_id, descriptor, threshold=threshold):
            before = nearest.get(notice.name)
            if before is None or _rank(notice) < _rank(before):
                nearest[notice.name] = notice
    others = sorted(nearest.values(), key=_rank)[:MOST_NOTICES]
    return (*found, *others, *_strangers(table, name, photos, farther_than=UNLIKE * threshold)[:MOST_NOTICES])


def _strangers(
    table: Table, name: str, photos: Sequence[tuple[str, NDArray[np.float32]]], *, farther_than: float
) -> list[Notice]:
    """The new photos that are that far from every other of the person's, old or new."""
    enrolled, found = list(table.seen_of(name)), []
    for photo_id, descriptor in photos:
        others = [*enrolled, *(each for id, each in photos if id != photo_id)]
        if not others:
            continue
        distance = float(np.linalg.norm(np.array(others, np.float64) - descriptor, axis=1).min())
        if distance > farther_than:
            found.append(Notice(code=Notice.UNLIKE, name=name, distance=distance, photo=photo_id))
    return found


def _rank(notice: Notice) -> tuple[bool, float]:
    return notice.code != Notice.SAME_PHOTO, notice.distance or 0.0


def _neighbours(
    table: Table, name: str, photo_id: str, descriptor: NDArray[np.float32], *, threshold: float
) -> list[Notice]:
    [match] = table.search(
        descriptor[np.newaxis], low_resolution=False, threshold=threshold, candidates=MOST_NOTICES + 1
    )
    own = next((each.distance for each in match.candidates if each.name == name), None)
    if own is None and name in table.names:
        own = np.inf  # farther than all of these
    limit = max(threshold, own or 0.0)
    return [
        Notice(
            code=Notice.SAME_PHOTO
            if each.distance == 0 or VECTORS + path_of(each.name, photo_id) in table
            else Notice.LOOKS_LIKE,
            name=each.name,
            distance=each.distance,
            photo=photo_id,
        )
        for each in match.candidates
        if each.name != name and each.distance <= limit
    ]
