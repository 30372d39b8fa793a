"""People who come as vectors: no photo was ever here, so nothing but a search can be done with them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from faceapp.errors import GalleryMismatch
from faceapp.gallery import names
from faceapp.gallery.formats import Vector, pack_vector
from faceapp.gallery.index import Gallery
from faceapp.gallery.journal import note_enrolment
from faceapp.gallery.people import KEY, PHOTO_ID_DIGITS, VECTORS, path_of
from faceapp.storage import Storage


def import_vectors(storage: Storage, people: Iterable[tuple[str, NDArray[np.float32]]], *, model: str) -> int:
    """Enrol names with descriptors ([D]) that `model` made; answers how many. Doing it twice is doing it once.

    Raises InvalidName before anything is stored, GalleryMismatch while the gallery holds vectors of another model or
    dimension, which would never be compared with these, and StorageUnavailable.
    """
    entries = [(names.clean(name), descriptor) for name, descriptor in people]
    if not entries:
        return 0
    _check_model(storage, model, dimension=len(entries[0][1]))
    for name, descriptor in entries:
        # A face of few pixels is compared with the same vector: there is no photo to shrink.
        vector = pack_vector(Vector(model=model, rows=np.stack([descriptor, descriptor])))
        vector_id = hashlib.sha256(vector).hexdigest()[:PHOTO_ID_DIGITS]
        storage.put_gallery(VECTORS + path_of(name, vector_id), vector)
    for name in {name for name, _ in entries}:
        note_enrolment(storage, name)
    return len(entries)


def _check_model(storage: Storage, model: str, *, dimension: int) -> None:
    gallery = Gallery(storage, model=model, dimension=dimension)
    gallery.refresh()
    others = sum(bool(KEY.fullmatch(key)) for key, _ in storage.list_gallery(VECTORS)) - len(gallery)
    if others > 0:
        raise GalleryMismatch(
            f"Another model than {model} described {others} of the gallery's photos: forget those people first, or "
            "enrol their photos again with a worker of this model."
        )
