"""Recognition in this process alone: no service, no AWS. `faceapp recognize --local`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from faceapp.config import Settings
from faceapp.errors import FaceappError, GalleryMismatch
from faceapp.operations.client import read_photo
from faceapp.operations.folders import find_people, sample_people
from faceapp.people.table import Table
from faceapp.recognition import Recogniser, load_course_gallery
from faceapp.schema import NO_FACE

logger = logging.getLogger(__name__)

Vectors = NDArray[np.float32]


def names(settings: Settings, photos: Sequence[Path], gallery: Path | None = None) -> Iterator[str]:
    """The name on each photo: the largest face's, `unknown`, or `no_face`.

    `gallery` is a folder of `name/photo.jpg` (the sample people when it is None), or a course's `data.pt`, which holds
    facenet descriptors. Raises ImageError, WeightsError, GalleryMismatch, and BadRequest for a path that is not there.
    """
    recogniser = Recogniser(**settings.model_options)
    table = _table(recogniser, gallery)
    for photo in photos:
        faces = recogniser.describe(read_photo(photo)).faces
        if not faces:
            yield NO_FACE
            continue
        [match] = table.search(
            faces[0].descriptor[np.newaxis],
            low_resolution=faces[0].low_resolution,
            threshold=settings.largest_distance(recogniser.threshold),
            candidates=1,
        )
        yield match.name


def course_people(recogniser: Recogniser, data: Path) -> list[tuple[str, Vectors]]:
    """The people of a course's `data.pt`, and their vectors.

    Raises WeightsError, and GalleryMismatch when the model makes other vectors.
    """
    people = load_course_gallery(data)
    if people and people[0][1].shape != (recogniser.dimension,):
        raise GalleryMismatch(
            f"{data} holds vectors of {people[0][1].size} numbers, and the model makes {recogniser.dimension}: "
            "set FACEAPP_EMBEDDER=facenet and FACEAPP_WEIGHTS, for this command and for the workers."
        )
    return people


def _table(recogniser: Recogniser, gallery: Path | None) -> Table:
    if gallery and gallery.is_file():
        people = [(name, vector, vector) for name, vector in course_people(recogniser, gallery)]
    else:
        people = list(_enrolled(recogniser, find_people(gallery) if gallery else sample_people()))
    return Table.of(people, dimension=recogniser.dimension)


def _enrolled(recogniser: Recogniser, people: dict[str, list[Path]]) -> Iterable[tuple[str, Vectors, Vectors]]:
    for name, photos in people.items():
        for photo in photos:
            try:
                face = recogniser.describe_for_enrolment(read_photo(photo))
            except FaceappError as error:
                logger.warning("%s is not used: %s", photo, error.detail)
            else:
                yield name, face.descriptor, face.low_descriptor
