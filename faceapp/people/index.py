"""The gallery as a worker holds it: enrol, keep up with the bucket, search."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import ArrayLike, NDArray

from faceapp.errors import GalleryFull, GalleryMismatch, StorageUnavailable
from faceapp.people import names
from faceapp.people.enrolment import Entry, NewPhoto, Writer, notices
from faceapp.people.formats import Snapshot, Vector, pack_snapshot, pack_vector, unpack_snapshot, unpack_vector
from faceapp.people.journal import VERSION, read_journal
from faceapp.people.people import KEY, SNAPSHOT, VECTORS, folder_of, path_of
from faceapp.people.table import Listed, Match, Table
from faceapp.schema import Notice
from faceapp.storage import Storage

logger = logging.getLogger(__name__)

FETCH_THREADS = 16
SAME = 0.1
"""Descriptors of one photo that are nearer are the same: bfloat16 and float32 differ by less (test_recognition)."""


class Gallery:
    """All vectors of one model. Safe to share between threads, and across a fork.

    `refresh_s` is how often at most the bucket is asked whether it changed, `relist_s` how often the whole listing is
    compared although it says no (a writer may have been killed before it said so). Fetching more than
    `snapshot_above` objects one by one is worth a new snapshot. Beyond `max_photos` nothing more is enrolled.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        model: str,
        dimension: int,
        refresh_s: float = 2.0,
        relist_s: float = 300.0,
        snapshot_above: int = 200,
        max_photos: int = 250_000,
    ) -> None:
        self._storage, self._model, self._dimension = storage, model, dimension
        self._refresh_s, self._relist_s, self._snapshot_above = refresh_s, relist_s, snapshot_above
        self._max_photos = max_photos
        self._table = Table.empty(dimension)
        self._loaded = False
        self._marker: str | None = None  # the journal's ETag, and its last entry, that the table is up to
        self._entry: str | None = None
        # Objects that hold no vector for this model: their key, to their listing and whether another model made them.
        self._skipped: dict[str, tuple[Listed, bool]] = {}
        self._refresh_at = self._relist_at = 0.0
        self._locks: dict[int, threading.Lock] = {}  # by process id: see Storage

    def __len__(self) -> int:
        return len(self._table)

    @property
    def version(self) -> str:
        """The number of photos and a hash of them: workers with the same vectors have the same version."""
        return self._table.version

    @property
    def size_bytes(self) -> int:
        return self._table.size_bytes

    def enrol(self, name: str, photos: Sequence[NewPhoto], *, request_id: str = "") -> list[str]:
        """Store photos with their descriptors, all or none, as this request's; answers their ids.

        Raises InvalidName, GalleryMismatch, GalleryFull and StorageUnavailable, and then nothing new is stored. Photos
        that another model described can be enrolled again, and then replace those; while there are others of that
        kind, new photos are refused, because the two models' vectors would never be compared.
        """
        name = names.clean(name)
        entries = [
            Entry(
                path=path_of(name, each.id),
                photo=each.data,
                vector=pack_vector(Vector(model=self._model, rows=self._rows([each.descriptor, each.low_descriptor]))),
            )
            for each in photos
        ]
        self._refresh_at = 0.0
        self.refresh()
        self.check_room([VECTORS + each.path for each in entries])
        Writer(self._storage, request_id, is_same=_say_the_same).write(name, entries)
        self._refresh_at = 0.0
        return [each.id for each in photos]

    def check_room(self, keys: Iterable[str]) -> None:
        """Raises GalleryMismatch or GalleryFull when these vectors' keys cannot be enrolled, as of the last refresh."""
        wanted = set(keys)
        foreign = [key for key, (_, other_model) in self._skipped.items() if other_model]
        if foreign and not wanted.issubset(foreign):
            raise GalleryMismatch(
                f"Another model than {self._model} described {len(foreign)} of the gallery's photos: enrol those "
                "again first, or set FACEAPP_EMBEDDER to the model that described them."
            )
        new = {key for key in wanted if key not in self._table and key not in self._skipped}
        if len(self) + len(self._skipped) + len(new) > self._max_photos and new:
            raise GalleryFull(
                f"The gallery holds {len(self) + len(self._skipped)} photos and may hold {self._max_photos}: forget "
                "some, or raise FACEAPP_GALLERY_MAX_PHOTOS."
            )

    def notices(self, name: str, photos: Sequence[NewPhoto], *, threshold: float) -> tuple[Notice, ...]:
        """What is like the photos that are to be enrolled as `name`, among who is enrolled."""
        self._refresh_at = 0.0
        self.refresh()
        described = [(each.id, self._rows([each.descriptor])[0]) for each in photos]
        return notices(self._table, names.clean(name), described, threshold=threshold)

    def search(
        self, descriptor: ArrayLike, *, low_resolution: bool = False, threshold: float, candidates: int = 5
    ) -> Match:
        """Who the face with this descriptor ([D]) is. Raises GalleryMismatch for another dimension."""
        found = self.search_many(
            [descriptor], low_resolution=[low_resolution], threshold=threshold, candidates=candidates
        )
        return found[0]

    def search_many(
        self,
        descriptors: ArrayLike | Sequence[ArrayLike],
        *,
        low_resolution: Sequence[bool],
        threshold: float,
        candidates: int = 5,
    ) -> list[Match]:
        """The same for several faces ([F, D]); those of low resolution are compared with the photos shrunk alike."""
        table = self._table
        probes = self._rows(descriptors) if len(low_resolution) else np.empty((0, self._dimension), np.float32)
        low = np.array(low_resolution, dtype=bool)
        matches: dict[int, Match] = {}
        for kind in (False, True):
            places = np.flatnonzero(low == kind)
            if len(places):
                found = table.search(probes[places], low_resolution=kind, threshold=threshold, candidates=candidates)
                matches.update(zip(places.tolist(), found, strict=True))
        return [matches[i] for i in range(len(probes))]

    def refresh(self) -> None:
        """Catch up with the bucket, if it is time to ask. Call it before a search.

        When S3 fails, the vectors stay as they are and the log says so; StorageUnavailable is raised only while
        nothing was ever loaded, since every face would be `unknown` then.
        """
        if time.monotonic() < self._refresh_at:
            return
        lock = self._locks.setdefault(os.getpid(), threading.Lock())
        if not lock.acquire(blocking=not self._loaded):
            return  # another thread is at it, and what we have is good enough until it is done
        try:
            if time.monotonic() >= self._refresh_at:
                self._refresh()
        except StorageUnavailable as error:
            if not self._loaded:
                raise
            logger.warning("the gallery stays at version %s: %s", self.version, error)
        finally:
            if self._loaded:
                self._refresh_at = time.monotonic() + self._refresh_s
            lock.release()

    def _refresh(self) -> None:
        marker = self._storage.gallery_etag(VERSION)
        relist = time.monotonic() >= self._relist_at
        if self._loaded and marker == self._marker and not relist:
            return
        journal = read_journal(self._storage)
        people = None if relist or not self._loaded else journal.names_since(self._entry)
        listing = self._list(people)
        before, snapshot_wanted = self._table, False
        if not self._loaded:
            before, snapshot_wanted = self._from_snapshot(listing)
        fetched = self._fetch(before, listing)
        table = before.updated(listing, fetched)
        # In this order: a thread that sees `_loaded` may search without the lock.
        self._table, self._marker, self._entry, self._loaded = table, journal.etag, journal.last, True
        if people is None:
            # Not all at the same moment: the workers of an instance start together.
            self._relist_at = time.monotonic() + self._relist_s * random.uniform(0.8, 1.2)  # nosec B311 # jitter
        if table is not before:
            logger.info("the gallery is at version %s (%d fetched)", table.version, len(fetched))
        self._keep_snapshot(
            journal.etag,
            wanted=snapshot_wanted or len(fetched) > self._snapshot_above,
            look=relist or len(table) < len(before) + len(fetched) or len(before) <= self._snapshot_above,
        )

    def _list(self, people: set[str] | None) -> dict[str, Listed]:
        """All vectors' keys with what the bucket says of them, asking only for those of `people`; for all where that is
        None."""
        if people is None:
            return self._listed(VECTORS)
        folders = tuple(VECTORS + folder_of(name) for name in sorted(people))
        table = self._table
        held = dict(zip(table.keys, map(Listed, table.etags, table.since_s.tolist()), strict=True))
        held.update((key, listed) for key, (listed, _) in self._skipped.items())
        listing = {key: listed for key, listed in held.items() if not key.startswith(folders)}
        for folder in folders:
            listing |= self._listed(folder)
        return listing

    def _listed(self, prefix: str) -> dict[str, Listed]:
        found = self._storage.list_gallery_since(prefix)
        return {key: Listed(etag, stored.timestamp()) for key, etag, stored in found if KEY.fullmatch(key)}

    def _from_snapshot(self, listing: dict[str, Listed]) -> tuple[Table, bool]:
        """The table to start from, and whether the snapshot should be written anew."""
        found = self._storage.get_gallery(SNAPSHOT)
        if found is None:
            return self._table, True
        try:
            snapshot = unpack_snapshot(found.data)
        except ValueError:
            # No more than that: what a damaged one holds may be names.
            logger.warning("the gallery's snapshot is damaged: it is written anew")
            return self._table, True
        if snapshot.model != self._model or snapshot.rows.shape[2] != self._dimension:
            logger.warning("the gallery's snapshot is another model's: it is written anew")
            return self._table, True
        since_s = np.array([listing[key].since_s if key in listing else 0.0 for key in snapshot.keys])
        table = Table(snapshot.keys, snapshot.etags, snapshot.rows, since_s)
        # Somebody was forgotten while it was written, by a worker that was killed before it could take it back.
        stale = not listing.keys() >= set(snapshot.keys)
        if stale:
            self._storage.delete_gallery([SNAPSHOT])
        return table, stale

    def _fetch(self, table: Table, listing: dict[str, Listed]) -> dict[str, tuple[str, NDArray[np.float32]]]:
        """The vectors in `listing` that `table` does not have, with the ETags that they were read with."""
        known = dict(zip(table.keys, table.etags, strict=True))
        skipped = {
            key: value for key, value in self._skipped.items() if key in listing and listing[key].etag == value[0].etag
        }
        todo = [key for key, listed in listing.items() if known.get(key) != listed.etag and key not in skipped]
        fetched: dict[str, tuple[str, NDArray[np.float32]]] = {}
        mismatched = 0
        with ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="gallery") as pool:
            for key, found in zip(todo, pool.map(self._storage.get_gallery, todo), strict=True):
                if found is None:
                    continue  # forgotten since it was listed
                try:
                    vector = unpack_vector(found.data)
                except ValueError:
                    # Its key has the person's name, and what it holds instead may have others'.
                    photo_id = key.rpartition("/")[2]
                    logger.warning("the photo %s is skipped: its vector is damaged", photo_id)
                    skipped[key] = (Listed(found.etag, listing[key].since_s), False)
                    continue
                if vector.model == self._model and vector.rows.shape[1] == self._dimension:
                    fetched[key] = (found.etag, vector.rows)
                else:
                    skipped[key] = (Listed(found.etag, listing[key].since_s), True)
                    mismatched += 1
        if mismatched:
            logger.warning("%d photos are skipped: another model than %s described them", mismatched, self._model)
        self._skipped = skipped
        return fetched

    def _keep_snapshot(self, marker: str | None, *, wanted: bool, look: bool) -> None:
        """Write the snapshot if it is worth it, and is `wanted` or, after a `look`, missing.

        A person who is forgotten while it is written must not live on in it: whoever forgets changes the version first
        and deletes the snapshot then, so if ours came after that delete, the version differs now.
        """
        storage, table = self._storage, self._table
        if len(table) <= self._snapshot_above:
            return
        if not wanted and not (look and storage.gallery_etag(SNAPSHOT) is None):
            return
        content = Snapshot(model=self._model, keys=table.keys, etags=table.etags, rows=table.rows)
        storage.put_gallery(SNAPSHOT, pack_snapshot(content))
        if storage.gallery_etag(VERSION) != marker:
            listed = {key for key, _ in storage.list_gallery(VECTORS)}
            if not listed.issuperset(table.keys):
                storage.delete_gallery([SNAPSHOT])

    def _rows(self, descriptors: ArrayLike | Sequence[ArrayLike]) -> NDArray[np.float32]:
        rows = np.asarray(descriptors, dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != self._dimension:
            raise GalleryMismatch(f"{self._model} makes {self._dimension} numbers of a face, these are {rows.shape}.")
        if not np.isfinite(rows).all():
            raise GalleryMismatch(f"A descriptor of {self._model} has numbers that are not finite.")
        return rows


def _say_the_same(one: bytes, other: bytes) -> bool:
    """Whether two packed vectors are of one model and about the same; False for one that cannot be read."""
    try:
        vectors = unpack_vector(one), unpack_vector(other)
    except ValueError:
        return False
    if vectors[0].model != vectors[1].model or vectors[0].rows.shape != vectors[1].rows.shape:
        return False
    return bool((np.linalg.norm(vectors[0].rows - vectors[1].rows, axis=1) <= SAME).all())
