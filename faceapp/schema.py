"""The wire contract: what a photo's result looks like in S3, in a reply message and in an HTTP answer.

Plain frozen dataclasses and their JSON. A document carries `version`; a reader refuses one it does not know. Lengths
are pixels of the upright photo (after its EXIF orientation), times are seconds, distances are Euclidean between the
model's descriptors (dlib's ResNet: 0.55 and less is the same person).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from faceapp.errors import FaceappError, SchemaError, by_code

VERSION = 1
UNKNOWN = "unknown"
NO_FACE = "no_face"


@dataclass(frozen=True, kw_only=True)
class Box:
    """A face's rectangle in the upright photo; it may reach over the border."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def area_px(self) -> float:
        return max(0.0, self.right - self.left) * max(0.0, self.bottom - self.top)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Somebody enrolled, and how far their nearest photo is."""

    name: str
    distance: float


@dataclass(frozen=True, kw_only=True)
class Face:
    """One face: where it is, who it is (`unknown` if nobody is near enough) and who else is near, nearest first."""

    box: Box
    landmarks: tuple[tuple[float, float], ...]
    """Left eye, right eye, nose, left and right corner of the mouth, as (x, y); left as seen in the photo."""
    score: float
    """The detector's confidence, 0 to 1."""
    name: str
    distance: float | None = None
    """To the nearest enrolled photo of anybody; None when nobody is enrolled."""
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Photo:
    """What was decoded: size in pixels after orientation, and the file format's name."""

    width: int
    height: int
    format: str


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds that each stage took, for one photo.

    `queued_s` is from dispatch to the task's start, `total_s` from there until the result is ready to be stored.
    """

    queued_s: float = 0.0
    fetch_s: float = 0.0
    decode_s: float = 0.0
    detect_s: float = 0.0
    align_s: float = 0.0
    embed_s: float = 0.0
    search_s: float = 0.0
    total_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why there is no answer: an error's stable code and its sentence."""

    code: str
    detail: str

    @classmethod
    def of(cls, error: FaceappError) -> Failure:
        return cls(code=error.code, detail=error.detail)

    def error(self) -> FaceappError:
        """The exception this was made from, ready to be raised."""
        return by_code(self.code)(self.detail)


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """A photo's result. `status` is `done` (then `photo` and `faces` hold) or `failed` (then `failure` does).

    Faces come largest first, so `answer` is the largest face's name.
    """

    id: str
    status: Literal["done", "failed"]
    file_name: str = ""
    photo: Photo | None = None
    faces: tuple[Face, ...] = ()
    model: str = ""
    gallery_version: str = ""
    timings: Timings = field(default_factory=Timings)
    failure: Failure | None = None
    version: int = VERSION

    @property
    def answer(self) -> str:
        """The largest face's name, `unknown`, or `no_face`."""
        return self.faces[0].name if self.faces else NO_FACE

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "answer": self.answer if self.status == "done" else None}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Recognition:
        try:
            document = json.loads(text)
        except ValueError as error:
            raise SchemaError(f"the result document is not JSON: {error}") from error
        return cls.from_dict(document)

    @classmethod
    def from_dict(cls, document: Any) -> Recognition:
        """Read what `to_dict` wrote. Raises SchemaError on another version or a shape that does not fit."""
        _check_version(document)
        try:
            if document["status"] not in ("done", "failed"):
                raise SchemaError(f"the result document has the status {document['status']!r}")
            photo, failure = document.get("photo"), document.get("failure")
            return cls(
                id=str(document["id"]),
                status=document["status"],
                file_name=str(document.get("file_name", "")),
                photo=Photo(**photo) if photo else None,
                faces=tuple(_face(face) for face in document.get("faces", ())),
                model=str(document.get("model", "")),
                gallery_version=str(document.get("gallery_version", "")),
                timings=Timings(**document.get("timings", {})),
                failure=Failure(**failure) if failure else None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise SchemaError(f"the result document does not fit: {error!r}") from error


@dataclass(frozen=True, kw_only=True)
class PhotoFailure:
    """Why one photo of an enrolment was refused."""

    file_name: str
    code: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Enrolment:
    """What became of the photos that were to be enrolled under a name: all of them, or none.

    `photos` are the ids of the enrolled photos, `failures` says per refused photo why.
    """

    id: str
    name: str
    photos: tuple[str, ...] = ()
    failures: tuple[PhotoFailure, ...] = ()
    version: int = VERSION

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, document: Any) -> Enrolment:
        """Read what `to_dict` wrote. Raises SchemaError on another version or a shape that does not fit."""
        _check_version(document)
        try:
            return cls(
                id=str(document["id"]),
                name=str(document["name"]),
                photos=tuple(str(photo) for photo in document["photos"]),
                failures=tuple(PhotoFailure(**failure) for failure in document["failures"]),
            )
        except (KeyError, TypeError) as error:
            raise SchemaError(f"the enrolment document does not fit: {error!r}") from error


def _check_version(document: Any) -> None:
    found = document.get("version") if isinstance(document, dict) else type(document).__name__
    if found != VERSION:
        raise SchemaError(f"the document has version {found}, this program reads {VERSION}")


def _face(document: dict[str, Any]) -> Face:
    return Face(
        box=Box(**document["box"]),
        landmarks=tuple((float(x), float(y)) for x, y in document["landmarks"]),
        score=float(document["score"]),
        name=str(document["name"]),
        distance=document["distance"],
        candidates=tuple(Candidate(**candidate) for candidate in document["candidates"]),
    )
