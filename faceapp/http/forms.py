"""Multipart forms (RFC 7578), read in memory and in pieces; each part of their cost has a bound.

The parser is the package `multipart`'s, whose work is linear in what comes. Heads of parts are bounded here, and their
options are read by `disposition`: that parser knows no `filename*` and refuses file names that are not UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import flask
from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser

from faceapp.errors import BadRequest, BodyEncoded, EmptyBody, MissingFile, TooManyFiles, UploadTooLarge
from faceapp.http.problems import Problem

PIECE_BYTES = 32 * 1024
"""What is parsed before others have their turn."""
HEAD_BYTES = 8 * 1024
"""The head of a part; a file name has at most 255 characters, which are 2,300 bytes when all are percent-encoded."""
HEAD_LINES = 8
OPTIONS = 16
"""Of a part's Content-Disposition, which has three of its own."""
BOUNDARY_BYTES = 200
"""RFC 2046 allows 70."""
TEXT_FIELDS = 32
"""Parts that are no files; nothing here reads their text, browsers and clients send a few."""
TEXT_BYTES = 512 * 1024

FORM = "multipart/form-data"
PLAIN = {"", "identity", "binary", "8bit", "7bit"}
"""Encodings of a part that leave its bytes as they are."""
CHARSETS = {"utf-8", "us-ascii", "ascii", "iso-8859-1"}
"""Of a `filename*`, besides which UTF-8 is assumed."""

# The second byte of a character in cp932, gbk or big5 may be a backslash's.
_TWO_BYTES = re.compile(rb"[\x81-\xfe]\\+")


class Sink(BytesIO):
    """Keeps what is written to it up to a limit; past that it drops everything and only notes it."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__()
        self.limit_bytes = limit_bytes
        self.overflown = False

    def add(self, data: bytes) -> int:
        """By how many bytes it grew; less than nothing when it drops what it had."""
        before = self.tell()
        if not self.overflown and self.tell() + len(data) > self.limit_bytes:
            self.overflown = True
            self.seek(0)
            self.truncate()
        if not self.overflown:
            self.write(data)
        return self.tell() - before


class Parser(PushMultipartParser):  # type: ignore[misc] # the package has no type hints
    """The package's parser, for which a folded line is a line of the head, too (multipart 2.0.1).

    By itself it takes any number up to HEAD_BYTES, and reads the whole field anew for each: 8 ms for such a head.
    """

    def _on_segment_start(self) -> None:
        super()._on_segment_start()
        self._lines = 0

    def _on_segment_headerline(self, line: bytes) -> None:
        self._lines += 1
        if self._lines > HEAD_LINES:
            raise ParserLimitReached
        super()._on_segment_headerline(line)


@dataclass(frozen=True, kw_only=True)
class File:
    """A part with a file name, which may be empty."""

    field: str
    file_name: str
    sink: Sink

    @property
    def chosen(self) -> bool:
        """False for the empty part that a browser sends when no file was chosen."""
        return bool(self.file_name or self.sink.tell() or self.sink.overflown)


@dataclass(kw_only=True)
class Form:
    """The parts of a form in their order; of those that are no files, only the field's name."""

    files: list[File] = field(default_factory=list)
    text_fields: list[str] = field(default_factory=list)


class Disposition(NamedTuple):
    """What a part's Content-Disposition says; `file_name` is None for a text field."""

    field: str
    file_name: str | None


def boundary_of(request: flask.Request, *, field: str) -> str:
    """The boundary of the request's form, by the request's head alone; `field` is the one to name in advice.

    Raises EmptyBody, BodyEncoded (as Problem), MissingFile for a body that is no form, BadRequest for a form without a
    boundary.
    """
    if not request.content_length and "Transfer-Encoding" not in request.headers:
        raise EmptyBody
    for name, plain in {"Content-Encoding": "identity", "Transfer-Encoding": "chunked"}.items():
        encoding = request.headers.get(name, plain).strip().lower()
        if encoding not in (plain, ""):
            detail = f"The body comes with {name} {encoding[:64]!r}: send it as it is, without that."
            # RFC 9110, 12.5.3: what would have been taken.
            raise Problem(BodyEncoded(detail), members={}, headers={"Accept-Encoding": "identity"})
    if request.mimetype != FORM:
        is_what = f"The body is {request.mimetype[:64]}" if request.mimetype else "The request has no Content-Type"
        advice = f"send the photo as a file of a form ({FORM}), as 'curl -F {field}=@photo.jpg' does."
        raise MissingFile(f"{is_what}: {advice}")
    boundary = request.mimetype_params.get("boundary", "")
    if not boundary or len(boundary) > BOUNDARY_BYTES or not boundary.isascii():
        raise BadRequest(
            f"The form cannot be read: its Content-Type has no boundary of 1 to {BOUNDARY_BYTES} characters."
        )
    return boundary


def read(
    read_piece: Callable[[int], bytes],
    boundary: str,
    *,
    max_files: int,
    max_file_bytes: int,
    dropped: Callable[[int], None] = lambda _: None,
) -> Form:
    """Read a form from `read_piece`, which is asked for up to PIECE_BYTES until it answers with none. After each piece
    `dropped` hears how many of the bytes that came are not kept.

    Raises TooManyFiles, UploadTooLarge for too much text, BodyEncoded for a part in base64, BadRequest for what is no
    form; and what `read_piece` raises.
    """
    # Any byte is a character of latin-1: what a name's bytes mean is decided later.
    parser = Parser(boundary, max_header_size=HEAD_BYTES, max_header_count=HEAD_LINES, header_charset="iso-8859-1")
    form, sink = Form(), Sink(0)
    text = Sink(TEXT_BYTES)
    try:
        while not parser.closed:
            piece = read_piece(PIECE_BYTES)
            kept = 0
            for event in parser.parse(piece):
                if isinstance(event, MultipartSegment):
                    sink = _begin(form, event, text, max_files=max_files, max_file_bytes=max_file_bytes)
                elif event:
                    kept += sink.add(event)
                    if text.overflown:
                        raise UploadTooLarge(f"The form has more than {TEXT_BYTES // 1024} KiB of text.")
            # What the parser holds back for the next piece is less than a boundary.
            dropped(len(piece) - kept)
    except ParserLimitReached as error:
        raise BadRequest(_LONG_HEAD) from error
    except MultipartError as error:
        raise BadRequest(f"The form cannot be read, was it cut off on the way? ({error})") from error
    return form


_LONG_HEAD = f"A part of the form has a head of more than {HEAD_BYTES // 1024} KiB or {HEAD_LINES} lines: shorten it."


def _begin(form: Form, segment: MultipartSegment, text: Sink, *, max_files: int, max_file_bytes: int) -> Sink:
    """Note a part whose head is there; answers where its data goes."""
    if sum(len(name) + len(value) for name, value in segment.headerlist) > HEAD_BYTES:
        raise BadRequest(_LONG_HEAD)
    for name in ("Content-Transfer-Encoding", "Content-Encoding"):
        encoding = segment.header(name, "").strip().lower()
        if encoding not in PLAIN:
            raise BodyEncoded(f"A part of the form has {name} {encoding[:64]!r}: send its bytes as they are.")
    found = disposition(segment.header("Content-Disposition").encode("iso-8859-1"))
    if found.file_name is None:
        form.text_fields.append(found.field)
        if len(form.text_fields) > TEXT_FIELDS:
            raise UploadTooLarge(f"The form has more than {TEXT_FIELDS} fields that are no files.")
        return text
    if len(form.files) == max_files:
        raise TooManyFiles(f"There are too many files in one request: {max_files} are taken.")
    file = File(field=found.field, file_name=found.file_name, sink=Sink(max_file_bytes))
    form.files.append(file)
    return file.sink


def disposition(header: bytes) -> Disposition:
    """Read a part's Content-Disposition as browsers and curl write it, in time linear in its length.

    A backslash stands before `"` and `\\`, as curl puts it there, and is itself anywhere else, as in a path of Windows.
    What is not UTF-8 becomes U+FFFD. `filename*` (RFC 5987) is preferred to `filename`. Raises BadRequest for too many
    options.
    """
    options: dict[bytes, bytes] = {}
    at = header.find(b";")
    while 0 <= at < len(header):
        equals = header.find(b"=", at)
        if equals < 0:
            break
        if len(options) == OPTIONS:
            raise BadRequest(f"A part of the form has more than {OPTIONS} options in its Content-Disposition.")
        key = header[at:equals].rpartition(b";")[2].strip(b" \t").lower()
        start = equals + 1
        while header[start : start + 1] in (b" ", b"\t"):
            start += 1
        if header[start : start + 1] == b'"':
            end = _closing_quote(header, start + 1)
            options[key] = re.sub(rb'\\([\\"])', rb"\1", header[start + 1 : end]).replace(b"%22", b'"')
            at = header.find(b";", end)
        else:
            end = header.find(b";", start)
            options[key] = header[start : end if end >= 0 else len(header)].strip(b" \t")
            at = end
    file_name = _text(options[b"filename"]) if b"filename" in options else None
    extended = options.get(b"filename*", b"").split(b"'", 2)
    if len(extended) == 3:
        charset = extended[0].decode("iso-8859-1").lower()
        file_name = unquote_to_bytes(extended[2]).decode(charset if charset in CHARSETS else "utf-8", "replace")
    return Disposition(_text(options.get(b"name", b"")), file_name)


def _closing_quote(header: bytes, start: int) -> int:
    """Where a quoted text ends: at the first quote after an even number of backslashes, else at the last quote."""
    at = header.find(b'"', start)
    while at >= 0:
        backslash = at
        while backslash > start and header[backslash - 1 : backslash] == b"\\":
            backslash -= 1
        if (at - backslash) % 2 == 0:
            return at
        at = header.find(b'"', at + 1)
    last = header.rfind(b'"', start)
    return last if last >= 0 else len(header)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return _TWO_BYTES.sub("\ufffd".encode(), data).decode(errors="replace")
