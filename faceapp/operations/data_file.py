"""A course's `data.pt` = [embeddings, names], put into a gallery. `faceapp people import --data`."""

from __future__ import annotations

from pathlib import Path

from faceapp.config import Settings
from faceapp.operations.oneshot import course_people
from faceapp.people.imported import import_vectors
from faceapp.recognition import Recogniser
from faceapp.storage import Storage


def import_data(settings: Settings, data: Path) -> tuple[int, int]:
    """Enrol everybody in the file, by vectors alone; answers how many vectors and how many people.

    Raises GalleryMismatch when the settings' model is not the one that such a file is made with, or the gallery is
    another model's, and GalleryFull when they are too many; WeightsError, InvalidName and StorageUnavailable.
    """
    recogniser = Recogniser(**settings.model_options)
    people = course_people(recogniser, data)
    count = import_vectors(Storage(settings), people, model=recogniser.model, max_photos=settings.gallery_max_photos)
    return count, len({name for name, _ in people})
