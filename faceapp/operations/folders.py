"""People as folders: `name/photo.jpg`, read for enrolment, and the sample people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from faceapp.errors import BadRequest, FaceappError, ServiceUnreachable
from faceapp.operations import samples
from faceapp.operations.client import Client

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif", ".avif", ".gif", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """What became of one photo; `refusal` says why it was not enrolled, `notices` who is like it or like its name."""

    name: str
    photo: Path
    refusal: str | None = None
    notices: tuple[str, ...] = ()


def find_people(folder: Path) -> dict[str, list[Path]]:
    """The photos in `folder/<name>/`, by name; other files are passed over. Raises BadRequest when there are none."""
    if not folder.is_dir():
        raise BadRequest(f"{folder} is not a folder: it should hold one folder per person, with their photos.")
    people = {each.name: _photos(each) for each in sorted(folder.iterdir()) if each.is_dir()}
    people = {name: photos for name, photos in people.items() if photos}
    if not people:
        flat = " Photos that lie in one folder take --csv of 'faceapp people import'." if _photos(folder) else ""
        raise BadRequest(
            f"{folder} holds no folders of photos: they belong into one folder per person, as in name/photo.jpg.{flat}"
        )
    return people


def _photos(folder: Path) -> list[Path]:
    return [each for each in sorted(folder.iterdir()) if each.suffix.lower() in SUFFIXES and each.is_file()]


def sample_people() -> dict[str, list[Path]]:
    """The first gallery's people and their photos. Raises LocalError when a photo is missing."""
    photos = samples.sample_photos()
    return {name: [photos[file] for file in files] for name, files in samples.PEOPLE.items()}


def enrol_people(client: Client, people: Mapping[str, list[Path]]) -> Iterator[Enrolled]:
    """Enrol photo by photo, so that a refused one costs no other. Raises ServiceUnreachable."""
    for name, photos in people.items():
        for photo in photos:
            try:
                notices = client.enrol(name, [photo])
            except ServiceUnreachable:
                raise
            except FaceappError as error:
                yield Enrolled(name=name, photo=photo, refusal=error.detail)
            else:
                yield Enrolled(name=name, photo=photo, notices=tuple(notices))
