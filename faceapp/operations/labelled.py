"""People as a folder of photos and a CSV that says who is on each, as courses hand them out.

Not every photo has to be enrolled: `choose` takes one a person, and more of a person only while a photo in the folder
would be answered wrong.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from faceapp.errors import BadRequest, EnrolmentError, ImageError
from faceapp.operations.client import read_photo
from faceapp.operations.folders import SUFFIXES
from faceapp.people.table import Table
from faceapp.recognition import DescribedFace, EnrolledFace, Recogniser
from faceapp.schema import NO_FACE

ROUNDS = 10
"""Each adds a photo at most for every person who is answered wrong."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A photo, and who is on it."""

    photo: Path
    name: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to enrol."""

    people: Mapping[str, list[Path]]
    """The photos to enrol of each person who has one that can be enrolled."""
    wrong: Mapping[Path, str]
    """The photos that are answered wrong all the same, with their answers."""


def read_labels(folder: Path, labels: Path) -> tuple[list[Labelled], list[str]]:
    """The photos in `folder` that the CSV `labels` names, and the names of those that are not there.

    A line is a file's name, with or without its extension, and a person's name. A first line that names no file is a
    header. Raises BadRequest for a CSV that cannot be read, and when none of its photos is there.
    """
    if not folder.is_dir():
        raise BadRequest(f"{folder} is not a folder: it should hold the photos that {labels} names.")
    found, missing = [], []
    for number, (file, name) in enumerate(_rows(labels)):
        photo = _photo(folder, file)
        if photo:
            found.append(Labelled(photo=photo, name=name))
        elif number:
            missing.append(file)
    if not found:
        raise BadRequest(f"{labels} names no photo in {folder}: its lines should be a file's name and a person's name.")
    return found, missing


def _rows(labels: Path) -> Iterator[tuple[str, str]]:
    try:
        with labels.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.reader(file), start=1):
                cells = [cell.strip() for cell in row]
                if not any(cells):
                    continue
                if len(cells) < 2 or not all(cells[:2]):
                    comma = " A comma belongs between them, not a semicolon." if ";" in "".join(row) else ""
                    raise BadRequest(
                        f"Line {number} of {labels} is no file's name and person's name: {','.join(row)}.{comma}"
                    )
                yield cells[0], cells[1]
    except OSError as error:
        raise BadRequest(f"{labels} cannot be read: {error.strerror or error}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadRequest(f"{labels} is no CSV in UTF-8: {error}.") from error


def _photo(folder: Path, file: str) -> Path | None:
    names = [file, *(f"{file}{suffix}" for suffix in sorted(SUFFIXES))]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def choose(recogniser: Recogniser, labelled: Sequence[Labelled], *, threshold: float) -> Choice:
    """Choose the photos to enrol so that all of `labelled` are answered right, where that can be had.

    `threshold` is the largest distance that is the same person. Raises BadRequest for a photo that cannot be read.
    """
    return _Chooser(recogniser, labelled, threshold).choose()


@dataclass
class _Chooser:
    recogniser: Recogniser
    labelled: Sequence[Labelled]
    threshold: float
    enrolled: dict[Path, EnrolledFace | None] = field(default_factory=dict)
    """What was tried so far; None for a photo that cannot be enrolled."""
    chosen: list[Labelled] = field(default_factory=list)

    def choose(self) -> Choice:
        faces = {each.photo: self._face(each.photo) for each in self.labelled}
        for name in sorted({each.name for each in self.labelled}):
            own = {each.photo: faces[each.photo] for each in self.labelled if each.name == name}
            self._add([Labelled(photo=photo, name=name) for photo in _typical_first(own)])
        wrong = self._wrong(faces)
        for _ in range(ROUNDS):
            added = [self._add([each for each in wrong if each.name == name]) for name in {each.name for each in wrong}]
            if not any(added):
                break
            wrong = self._wrong(faces)
        people: dict[str, list[Path]] = {}
        for each in self.chosen:
            people.setdefault(each.name, []).append(each.photo)
        return Choice(people=people, wrong={each.photo: answer for each, answer in wrong.items()})

    def _face(self, photo: Path) -> DescribedFace | None:
        """The face that the classic line is about."""
        try:
            return next(iter(self.recogniser.describe(read_photo(photo)).faces), None)
        except ImageError:
            return None

    def _add(self, candidates: Sequence[Labelled]) -> bool:
        """Choose the first of these that can be enrolled and is not chosen yet; False when there is none."""
        for each in candidates:
            if each.photo not in self.enrolled:
                try:
                    self.enrolled[each.photo] = self.recogniser.describe_for_enrolment(read_photo(each.photo))
                except (ImageError, EnrolmentError):
                    self.enrolled[each.photo] = None
                else:
                    self.chosen.append(each)
                    return True
        return False

    def _wrong(self, faces: Mapping[Path, DescribedFace | None]) -> dict[Labelled, str]:
        """The photos that would be answered wrong, with those answers."""
        table, wrong = self._table(), {}
        for each in self.labelled:
            face = faces[each.photo]
            answer = self._name(table, face) if face else NO_FACE
            if answer != each.name:
                wrong[each] = answer
        return wrong

    def _name(self, table: Table, face: DescribedFace) -> str:
        [match] = table.search(
            face.descriptor[np.newaxis], low_resolution=face.low_resolution, threshold=self.threshold, candidates=1
        )
        return match.name

    def _table(self) -> Table:
        found = [(each.name, self.enrolled[each.photo]) for each in self.chosen]
        people = [(name, face.descriptor, face.low_descriptor) for name, face in found if face]
        return Table.of(people, dimension=self.recogniser.dimension)


def _typical_first(faces: Mapping[Path, DescribedFace | None]) -> list[Path]:
    """The photos with a face, the one that is nearest to all others first."""
    photos = [photo for photo, face in faces.items() if face]
    rows: NDArray[np.float32] = np.array([face.descriptor for face in faces.values() if face], dtype=np.float32)
    apart = [float(np.linalg.norm(rows - row, axis=1).sum()) for row in rows]
    return [photo for _, photo in sorted(zip(apart, photos, strict=True))]
