"""The wire contract: what a photo's result looks like in S3, in a reply message and in an HTTP answer.

Plain frozen dataclasses and their JSON. A document carries `version`; a reader refuses one it does not know. Lengths
are pixels of the upright photo (after its EXIF orientation), times are seconds, distances are Euclidean between the
model's descriptors (dlib's ResNet: 0.55 and less is the same person).
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import types
import typing
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal, TypeVar

from faceapp.errors import FaceappError, SchemaError, by_code

VERSION = 1
ID_DIGITS = 32
REQUEST_ID = re.compile(f"[0-9a-f]{{{ID_DIGITS}}}")
UNKNOWN = "unknown"
NO_FACE = "no_face"


@dataclass(frozen=True, kw_only=True)
class Box:
    """A face's rectangle in the upright photo; it may reach over the border."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Somebody enrolled, and how far their nearest photo is."""

    name: str
    distance: float


@dataclass(frozen=True, kw_only=True)
class Face:
    """One face: where it is, who it is (`unknown` if nobody is near enough) and who else is near, nearest first.

    Over HTTP only keys of the roles enrol and admin get more than whom a face was recognised as.
    """

    box: Box
    landmarks: tuple[tuple[float, float], ...]
    """Left eye, right eye, nose, left and right corner of the mouth, as (x, y); left as seen in the photo."""
    score: float
    """The detector's confidence, 0 to 1."""
    name: str
    distance: float | None = None
    """To the nearest enrolled photo of anybody; None when nobody is enrolled, or that is not for who asks."""
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
        except (ValueError, RecursionError) as error:
            raise SchemaError(f"the result document is not JSON: {error}") from error
        return cls.from_dict(document)

    @classmethod
    def from_dict(cls, document: Any) -> Recognition:
        """Read what `to_dict` wrote. Raises SchemaError, and nothing else, for any other value."""
        found = _read_document(cls, document)
        if (found.status == "failed") != (found.failure is not None):
            raise SchemaError("the result document says both that it failed and that it did not")
        return found


@dataclass(frozen=True, kw_only=True)
class PhotoFailure:
    """Why one photo of an enrolment was refused."""

    file_name: str
    code: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something that whoever enrols should know about who is enrolled. The photos are enrolled anyway.

    `code` is `similar_name`, `same_photo`, `looks_like`, or `unlike` (`name` is then the one that was enrolled); others
    may come. `distance` is between `photo`, which is a new one's id, and the nearest of `name`'s; None and empty for a
    name.
    """

    SIMILAR_NAME: ClassVar[str] = "similar_name"
    SAME_PHOTO: ClassVar[str] = "same_photo"
    LOOKS_LIKE: ClassVar[str] = "looks_like"
    UNLIKE: ClassVar[str] = "unlike"

    code: str
    name: str
    distance: float | None = None
    photo: str = ""

    @property
    def detail(self) -> str:
        """The sentence for the user."""
        if self.code == self.SIMILAR_NAME:
            return f"{self.name!r} is another person's name, and like this one. Is it the same person?"
        if self.code == self.SAME_PHOTO:
            return f"{self.name!r} has this photo, too. A face like it gets the name that was enrolled first."
        near = "" if self.distance is None else f" (distance {self.distance:.2f})"
        if self.code == self.UNLIKE:
            return f"This photo does not look like the other photos of {self.name!r}{near}. Is it the same person?"
        return f"{self.name!r} looks like this photo{near}. Is it the same person?"


@dataclass(frozen=True, kw_only=True)
class Enrolment:
    """What became of the photos that were to be enrolled under a name: all of them, or none.

    `photos` are the ids of the enrolled photos, `failures` says per refused photo why, `notices` what is like them.
    """

    id: str
    name: str
    photos: tuple[str, ...] = ()
    failures: tuple[PhotoFailure, ...] = ()
    notices: tuple[Notice, ...] = ()
    version: int = VERSION

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, document: Any) -> Enrolment:
        """Read what `to_dict` wrote. Raises SchemaError, and nothing else, for any other value."""
        return _read_document(cls, document)


Document = TypeVar("Document")


def _read_document(cls: type[Document], document: Any) -> Document:
    version = document.get("version") if isinstance(document, dict) else None
    if type(version) is not int or version != VERSION:
        raise SchemaError(f"the document has version {str(version)[:20]}, this program reads {VERSION}")
    found: Document = _read(cls, document, "the document")
    return found


def _read(hint: Any, value: Any, where: str) -> Any:
    """The value of type `hint` that JSON carries as `value`; `where` it stands, for the SchemaError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _read_fields(typing.cast(type, hint), value, where)
    if origin is types.UnionType:  # of something and None
        return None if value is None else _read(arguments[0], value, where)
    if origin is Literal and isinstance(value, str) and value in arguments:
        return value
    if origin is tuple and isinstance(value, list):
        hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(hints) == len(value):
            return tuple(_read(each, part, where) for each, part in zip(hints, value, strict=True))
    if hint is str and isinstance(value, str) and _is_text(value):
        return value
    if hint is int and type(value) is int:
        return value
    if hint is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    raise SchemaError(f"{where} has {type(value).__name__} where it should have {getattr(hint, '__name__', hint)}")


def _read_fields(cls: type, document: dict[str, Any], where: str) -> Any:
    """A dataclass; what is not one of its fields is passed over, as `answer` is, which `to_dict` adds."""
    values = {}
    for each in dataclasses.fields(cls):
        if each.name in document:
            values[each.name] = _read(_hints(cls)[each.name], document[each.name], f"{where}'s {each.name}")
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise SchemaError(f"{where} has no {each.name}")
    return cls(**values)


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _is_text(value: str) -> bool:
    """Whether it can be written in UTF-8: JSON can carry half a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
