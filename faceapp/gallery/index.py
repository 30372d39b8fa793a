"""The gallery as a worker holds it: enrol, keep up with the bucket, search."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import numpy as np
from numpy.typing import ArrayLike, NDArray

from faceapp import images
from faceapp.errors import GalleryMismatch, StorageUnavailable
from faceapp.gallery.formats import Snapshot, Vector, pack_snapshot, pack_vector, unpack_snapshot, unpack_vector
from faceapp.gallery.journal import VERSION, note_enrolment, read_journal
from faceapp.gallery.people import (
    KEY,
    PHOTO_ID_DIGITS,
    PHOTOS,
    SNAPSHOT,
    VECTORS,
    check_name,
    path_of,
)
from faceapp.gallery.table import Match, Table
from faceapp.storage import Storage

logger = logging.getLogger(__name__)

FETCH_THREADS = 16
ENROL_ATTEMPTS = 3


class Gallery:
    """All vectors of one model. Safe to share between threads, and across a fork.

    `refresh_s` is how often at most the bucket is asked whether it changed, `relist_s` how often the whole listing is
    compared although it says no (a writer may have been killed before it said so). Fetching more than
    `snapshot_above` objects one by one is worth a new snapshot.
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
    ) -> None:
        self._storage, self._model, self._dimension = storage, model, dimension
        self._refresh_s, self._relist_s, self._snapshot_above = refresh_s, relist_s, snapshot_above
        self._table = Table.empty(dimension)
        self._loaded = False
        self._marker: str | None = None  # the journal's ETag, and its last entry, that the table is up to
        self._entry: str | None = None
        # Objects that hold no vector for this model: their key, to their ETag and whether another model made them.
        self._skipped: dict[str, tuple[str, bool]] = {}
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

    def enrol(self, name: str, photo: bytes, descriptor: ArrayLike, low_descriptor: ArrayLike) -> str:
        """Store a photo and its descriptors ([D] each, of the face as seen and at low resolution); answers its id.

        Raises InvalidName, GalleryMismatch and StorageUnavailable. A photo that another model described can be enrolled
        again, and then replaces that; while there are others of that kind, new photos are refused, because the two
        models' vectors would never be compared.
        """
        name = check_name(name)
        photo_id = hashlib.sha256(photo).hexdigest()[:PHOTO_ID_DIGITS]
        path = path_of(name, photo_id)
        vector = pack_vector(Vector(model=self._model, rows=self._rows([descriptor, low_descriptor])))
        self.refresh()
        foreign = [key for key, (_, other_model) in self._skipped.items() if other_model]
        if foreign and VECTORS + path not in foreign:
            raise GalleryMismatch(
                f"Another model than {self._model} described {len(foreign)} of the gallery's photos: enrol those again."
            )
        for _ in range(ENROL_ATTEMPTS):
            self._storage.put_gallery(PHOTOS + path, photo, content_type=images.media_type(photo))
            self._storage.put_gallery(VECTORS + path, vector)
            if self._storage.gallery_etag(PHOTOS + path) is not None:
                note_enrolment(self._storage, name)
                self._refresh_at = 0.0
                return photo_id
            # Somebody forgot the person between the two: take back the vector, which has no photo any more.
            self._storage.delete_gallery([VECTORS + path])
        raise StorageUnavailable("This person is being forgotten at this moment: try again.")

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
        names = None if relist or not self._loaded else journal.names_since(self._entry)
        listing = self._list(names)
        before, snapshot_wanted = self._table, False
        if not self._loaded:
            before, snapshot_wanted = self._from_snapshot(listing)
        fetched = self._fetch(before, listing)
        table = before.updated(listing, fetched)
        # In this order: a thread that sees `_loaded` may search without the lock.
        self._table, self._marker, self._entry, self._loaded = table, journal.etag, journal.last, True
        if names is None:
            # Not all at the same moment: the workers of an instance start together.
            self._relist_at = time.monotonic() + self._relist_s * random.uniform(0.8, 1.2)  # nosec B311 # jitter
        if table is not before:
            logger.info("the gallery is at version %s (%d fetched)", table.version, len(fetched))
        self._keep_snapshot(
            journal.etag,
            wanted=snapshot_wanted or len(fetched) > self._snapshot_above,
            look=relist or len(table) < len(before) + len(fetched) or len(before) <= self._snapshot_above,
        )

    def _list(self, names: set[str] | None) -> dict[str, str]:
        """All vectors' keys with their ETags, asking only for those of `names`; for all where that is None."""
        if names is None:
            return {key: etag for key, etag in self._storage.list_gallery(VECTORS) if KEY.fullmatch(key)}
        folders = tuple(f"{VECTORS}{quote(name, safe='')}/" for name in sorted(names))
        held = dict(zip(self._table.keys, self._table.etags, strict=True))
        held.update((key, etag) for key, (etag, _) in self._skipped.items())
        listing = {key: etag for key, etag in held.items() if not key.startswith(folders)}
        for folder in folders:
            listing.update((key, etag) for key, etag in self._storage.list_gallery(folder) if KEY.fullmatch(key))
        return listing

    def _from_snapshot(self, listing: dict[str, str]) -> tuple[Table, bool]:
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
        table = Table(snapshot.keys, snapshot.etags, snapshot.rows)
        # Somebody was forgotten while it was written, by a worker that was killed before it could take it back.
        stale = not listing.keys() >= set(snapshot.keys)
        if stale:
            self._storage.delete_gallery([SNAPSHOT])
        return table, stale

    def _fetch(self, table: Table, listing: dict[str, str]) -> dict[str, tuple[str, NDArray[np.float32]]]:
        """The vectors in `listing` that `table` does not have, with the ETags that they were read with."""
        known = dict(zip(table.keys, table.etags, strict=True))
        skipped = {key: value for key, value in self._skipped.items() if listing.get(key) == value[0]}
        todo = [key for key, etag in listing.items() if known.get(key) != etag and key not in skipped]
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
                    skipped[key] = (found.etag, False)
                    continue
                if vector.model == self._model and vector.rows.shape[1] == self._dimension:
                    fetched[key] = (found.etag, vector.rows)
                else:
                    skipped[key] = (found.etag, True)
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
