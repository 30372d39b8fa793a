"""Photos out of a multipart form: read into memory, never to disk, and held to the limits while they are read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

import flask

from faceapp.config import Settings
from faceapp.errors import FaceappError, MissingFile, TooManyFiles, UploadTooLarge
from faceapp.http import forms, inspection, metrics
from faceapp.schema import Photo

UPLOADS = {"classic.answer": "inputFile", "api.recognise": "photo", "api.enrol": "photo"}
"""Endpoints that take photos, and the form field that each one's clients are told to use."""

# Anything that a reader of a one-line answer could take for the end of the line.
_LINE_BREAKING = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")

# Unicode's Bidi_Control: they show what stands behind them in another order, and so the name in another's place.
_BIDI_CONTROLS = re.compile(r"[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(kw_only=True)
class Upload:
    """A file of the form that is a photo by its header; `data` is the file as it came, until it is let go of."""

    file_name: str
    data: bytes
    photo: Photo

    @property
    def content_type(self) -> str:
        return _media_type(self.photo)

    def let_go(self) -> None:
        """The photo is in S3: a request that waits for its answer needs no copy of it."""
        self.data = b""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A file of the form that is no photo, or not one we take."""

    file_name: str
    error: FaceappError


class Request(flask.Request):
    """Flask's request, whose form nobody reads by mistake with Werkzeug's parser: forms.py has bounds."""

    def _load_form_data(self) -> None:
        raise NotImplementedError("forms are read by faceapp.http.uploads.read")


def read(request: flask.Request, fields: tuple[str, ...] = (), *, most: int | None = None) -> list[Upload | Refusal]:
    """The files of the request's form, in order; with `fields`, only those are looked at.

    With more than `most` of them, none is looked at: then it is TooManyFiles, too.
    Raises EmptyBody, MissingFile, BadRequest for a form that cannot be read, TooManyFiles and UploadTooLarge for a
    request over the limits. What is wrong with a single file is its Refusal.
    """
    settings: Settings = flask.current_app.config["FACEAPP"]
    form = forms.read(
        request.stream.read,
        boundary_of(request),
        max_files=settings.web_max_files,
        max_file_bytes=settings.web_max_photo_bytes,
        dropped=_give_back,
    )
    files = [file for file in form.files if file.chosen]
    found = [file for file in files if not fields or file.field in fields]
    if not found:
        raise _missing(form, fields, files)
    if most and len(found) > most:
        raise TooManyFiles(
            f"Here are {len(found)} photos, and at most {most} can be sent: /v1/recognitions takes many."
        )
    checked = [_check(file, settings) for file in found]
    for each in checked:
        if isinstance(each, Refusal):
            metrics.current().count(each.error.code)
    return checked


def _give_back(size_bytes: int) -> None:
    """The request's place (see admission.py) needs no room for what is dropped."""
    if place := flask.g.get("place"):
        place.give_back(size_bytes)


def boundary_of(request: flask.Request) -> str:
    """What `forms.boundary_of` says of a request whose endpoint is one of UPLOADS."""
    return forms.boundary_of(request, field=UPLOADS[request.endpoint or ""])


def _missing(form: forms.Form, fields: tuple[str, ...], files: list[forms.File]) -> MissingFile:
    wanted = " or ".join(repr(field) for field in fields)
    if files:
        return MissingFile(f"The form has a file in {files[0].field[:64]!r}: send it in the field {wanted}.")
    texts = [field[:64] for field in form.text_fields if not fields or field in fields]
    # A browser's form in which no file was chosen has text fields as well, and an empty file.
    if texts and not form.files:
        return MissingFile(f"{texts[0]} holds text, not a file: with curl, write -F {texts[0]}=@PATH.")
    return MissingFile(f"The form has no photo: send one in the field {wanted}." if fields else None)


def _check(file: forms.File, settings: Settings) -> Upload | Refusal:
    name = clean_name(file.file_name)
    try:
        if file.sink.overflown:
            limit_mib = settings.web_max_photo_bytes / 2**20
            raise UploadTooLarge(f"The photo is larger than {limit_mib:.3g} MiB, which is the most this service takes.")
        data = file.sink.getvalue()
        # The bytes are one object until one of the two lets go of it.
        file.sink.close()
        photo = inspection.inspect(data, settings.photo_limits)
        return Upload(file_name=name, data=data, photo=photo)
    except FaceappError as error:
        # The traceback's frames hold the photo.
        return Refusal(file_name=name, error=error.with_traceback(None))


def _media_type(photo: Photo) -> str:
    return f"image/{photo.format.lower()}"


def clean_name(file_name: str) -> str:
    """The last part of a path of either kind, on one line and without bidi controls; `photo` if nothing is left."""
    shown = _BIDI_CONTROLS.sub("", file_name.encode(errors="replace").decode())
    name = _LINE_BREAKING.sub(" ", shown).replace("\\", "/")
    return name.rstrip("/ ").rpartition("/")[2].strip() or "photo"


def stem(file_name: str) -> str:
    """A clean file name without its extension: `holiday.2024.jpg` is `holiday.2024`."""
    return PurePosixPath(file_name).stem or file_name
