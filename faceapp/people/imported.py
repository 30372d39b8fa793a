"""People who come as vectors: no photo was ever here, so nothing but a search can be done with them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from faceapp.people import names
from faceapp.people.formats import Vector, pack_vector
from faceapp.people.index import Gallery
from faceapp.people.journal import note_enrolment
from faceapp.people.people import PHOTO_ID_DIGITS, VECTORS, path_of
from faceapp.storage import Storage


def import_vectors(
    storage: Storage, people: Iterable[tuple[str, NDArray[np.float32]]], *, model: str, max_photos: int
) -> int:
    """Enrol names with descriptors ([D]) that `model` made; answers how many. Doing it twice is doing it once.

    Raises InvalidName, GalleryMismatch while the gallery holds vectors of another model or dimension, which would never
    be compared with these, and GalleryFull beyond `max_photos`, all of them before anything is stored; and
    StorageUnavailable.
    """
    entries = [(names.clean(name), descriptor) for name, descriptor in people]
    if not entries:
        return 0
    vectors = {}
    for name, descriptor in entries:
        # A face of few pixels is compared with the same vector: there is no photo to shrink.
        vector = pack_vector(Vector(model=model, rows=np.stack([descriptor, descriptor])))
        vector_id = hashlib.sha256(vector).hexdigest()[:PHOTO_ID_DIGITS]
        vectors[VECTORS + path_of(name, vector_id)] = vector
    gallery = Gallery(storage, model=model, dimension=len(entries[0][1]), max_photos=max_photos)
    gallery.refresh()
    gallery.check_room(vectors)
    for key, vector in vectors.items():
        # One that is there stays, so S3 knows since when it is enrolled.
        storage.replace_gallery(key, vector, etag=None)
    for name in {name for name, _ in entries}:
        note_enrolment(storage, name)
    return len(entries)
