"""Photos out of a multipart form: read into memory, never to disk, and held to the limits while they are read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import PurePosixPath
from typing import IO, Any

import flask
from werkzeug.datastructures import FileStorage
from werkzeug.formparser import FormDataParser

from faceapp import images
from faceapp.config import Settings
from faceapp.errors import BadRequest, EmptyBody, FaceappError, MissingFile, TooManyFiles, UploadTooLarge
from faceapp.http import metrics
from faceapp.schema import Photo

TEXT_FIELDS = 32
"""Form parts that are no files; nothing here reads them, browsers and clients send a few."""
TEXT_BYTES = 512 * 1024

# Anything that a reader of a one-line answer could take for the end of the line.
_LINE_BREAKING = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


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


class _Sink(BytesIO):
    """Keeps what is written to it up to a limit; past that it lets go of everything and only notes it."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__()
        self.limit_bytes = limit_bytes
        self.overflown = False

    def write(self, data: Any, /) -> int:
        if not self.overflown and self.tell() + len(data) > self.limit_bytes:
            self.overflown = True
            self.seek(0)
            self.truncate()
        return len(data) if self.overflown else super().write(data)


class Request(flask.Request):
    """Flask's request, with forms that are parsed in memory, strictly, and by the settings' limits."""

    @property
    def _settings(self) -> Settings:
        settings: Settings = flask.current_app.config["FACEAPP"]
        return settings

    def _get_file_stream(
        self,
        total_content_length: int | None,
        content_type: str | None,
        filename: str | None = None,
        content_length: int | None = None,
    ) -> IO[bytes]:
        count = self.environ["faceapp.files"] = self.environ.get("faceapp.files", 0) + 1
        if count > self._settings.web_max_files:
            raise TooManyFiles(f"There are too many files in one request: {self._settings.web_max_files} are taken.")
        return _Sink(self._settings.web_max_photo_bytes)

    def make_form_data_parser(self) -> FormDataParser:
        parser = super().make_form_data_parser()
        # Werkzeug's default is to take a form that it cannot read for an empty one.
        parser.silent = False
        return parser


def read(request: flask.Request, fields: tuple[str, ...] = ()) -> list[Upload | Refusal]:
    """The files of the request's form, in order; with `fields`, only those are looked at.

    Raises EmptyBody, MissingFile, BadRequest for a form that cannot be read, TooManyFiles and UploadTooLarge for a
    request over the limits. What is wrong with a single file is its Refusal.
    """
    settings: Settings = flask.current_app.config["FACEAPP"]
    files = [
        (field, file) for field, file in _form_files(request).items(multi=True) if file.filename or _size_bytes(file)
    ]
    found = [file for field, file in files if not fields or field in fields]
    if not found:
        raise _missing(request, fields, [field for field, _ in files])
    checked = [_check(file, settings) for file in found]
    for each in checked:
        if isinstance(each, Refusal):
            metrics.current().count(each.error.code)
    return checked


def _form_files(request: flask.Request) -> Any:
    if not request.content_length and "Transfer-Encoding" not in request.headers:
        raise EmptyBody
    if request.mimetype != "multipart/form-data":
        if not request.stream.read(1):
            raise EmptyBody
        raise MissingFile(
            f"The body is {request.mimetype or 'of no type'!r}, not a form: send the photo as multipart/form-data."
        )
    try:
        return request.files
    except ValueError as error:
        raise BadRequest(f"The form cannot be read, was it cut off on the way? ({error})") from error


def _missing(request: flask.Request, fields: tuple[str, ...], others: list[str]) -> MissingFile:
    wanted = " or ".join(repr(field) for field in fields)
    if others:
        return MissingFile(f"The form has a file in {others[0][:64]!r}: send it in the field {wanted}.")
    if any(field in request.form for field in fields):
        return MissingFile(f"The field {wanted} came as text, without a file name, so it is no file.")
    return MissingFile(f"The form has no photo: send one in the field {wanted}." if fields else None)


def _check(file: FileStorage, settings: Settings) -> Upload | Refusal:
    name = clean_name(file.filename or "")
    sink = file.stream
    assert isinstance(sink, _Sink)
    try:
        if sink.overflown:
            limit_mib = settings.web_max_photo_bytes / 2**20
            raise UploadTooLarge(f"The photo is larger than {limit_mib:.3g} MiB, which is the most this service takes.")
        data = sink.getvalue()
        # The bytes are one object until one of the two lets go of it; Flask keeps the form as long as the request.
        sink.close()
        photo = images.inspect(data, **settings.photo_limits)
        return Upload(file_name=name, data=data, photo=photo)
    except FaceappError as error:
        # The traceback's frames hold the photo.
        return Refusal(file_name=name, error=error.with_traceback(None))


def _size_bytes(file: FileStorage) -> int:
    sink = file.stream
    return sink.getbuffer().nbytes or int(sink.overflown) if isinstance(sink, _Sink) else 0


def content_type(data: bytes, **limits: int) -> str:
    """The media type of a photo, by its own header."""
    return _media_type(images.inspect(data, **limits))


def _media_type(photo: Photo) -> str:
    return f"image/{photo.format.lower()}"


def clean_name(file_name: str) -> str:
    """The last part of a path of either kind, on one line; `photo` if nothing is left."""
    name = _LINE_BREAKING.sub(" ", file_name.encode(errors="replace").decode()).replace("\\", "/")
    return name.rstrip("/ ").rpartition("/")[2].strip() or "photo"


def stem(file_name: str) -> str:
    """A clean file name without its extension: `holiday.2024.jpg` is `holiday.2024`."""
    return PurePosixPath(file_name).stem or file_name
