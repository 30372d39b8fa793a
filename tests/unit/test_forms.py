"""Forms, byte by byte: what browsers, curl and strangers send, and that a form costs no more than its bytes."""

from __future__ import annotations

import contextlib
import io

import pytest

from faceapp.errors import BadRequest, BodyEncoded, FaceappError, TooManyFiles, UploadTooLarge
from faceapp.http import forms
from faceapp.http.forms import Disposition, Form, disposition

MOST_FILES = 3
MOST_BYTES = 100_000


def part(head: bytes, data: bytes = b"data") -> bytes:
    return b"--b\r\n" + head + b"\r\n\r\n" + data + b"\r\n"


def text(name: str, data: bytes = b"text") -> bytes:
    return part(f'Content-Disposition: form-data; name="{name}"'.encode(), data)


def file(name: str, data: bytes = b"data") -> bytes:
    return part(f'Content-Disposition: form-data; name="{name}"; filename="a.jpg"'.encode(), data)


def read(*parts: bytes, end: bytes = b"--b--\r\n", piece_bytes: int = forms.PIECE_BYTES) -> Form:
    stream = io.BytesIO(b"".join(parts) + end)
    dropped: list[int] = []
    found = forms.read(
        lambda size: stream.read(min(size, piece_bytes)),
        "b",
        max_files=MOST_FILES,
        max_file_bytes=MOST_BYTES,
        dropped=dropped.append,
    )
    # Only fields that are no files keep something else.
    kept_bytes = sum(each.sink.tell() for each in found.files)
    assert found.text_fields or sum(dropped) == stream.tell() - kept_bytes
    return found


@pytest.mark.parametrize(
    ("header", "field", "file_name"),
    [
        (b'form-data; name="a"', "a", None),
        (b"form-data; name=a; filename=b.jpg", "a", "b.jpg"),
        (b'form-data; name="a"; filename=""', "a", ""),
        (b'form-data; filename="b;c=d.jpg"; name="a"', "a", "b;c=d.jpg"),
        (b'form-data ;NAME="a";FileName = "b.jpg" ', "a", "b.jpg"),
        (b'form-data; x; name="a"', "a", None),
        (b'form-data; name="a"; filename="b\\"c\\\\d.jpg"', "a", 'b"c\\d.jpg'),
        (b'form-data; name="a"; filename="%22b%0Ac%.jpg"', "a", '"b%0Ac%.jpg'),
        (b'form-data; name="a"; filename="C:\\Users\\x\\me.jpg"', "a", "C:\\Users\\x\\me.jpg"),
        (b'form-data; name="a"; filename="C:\\"', "a", "C:\\"),
        (b'form-data; name="a"; filename="open', "a", "open"),
        (b'form-data; name="a"; filename="M\xfcller.jpg"', "a", "M\ufffdller.jpg"),
        ('form-data; name="a"; filename="Müller.jpg"'.encode(), "a", "Müller.jpg"),
        (b"form-data; name=a; filename=x; filename*=UTF-8'de'M%C3%BCller.jpg", "a", "Müller.jpg"),
        (b"form-data; name=a; filename*=iso-8859-1''M%FCller.jpg", "a", "Müller.jpg"),
        (b"form-data; name=a; filename*=koi8-r''M%FCller.jpg", "a", "M\ufffdller.jpg"),
        (b"form-data; name=a; filename=x; filename*=broken", "a", "x"),
        (b"form-data", "", None),
        (b"form-data; =", "", None),
    ],
)
def test_dispositions_as_they_are_written(header: bytes, field: str, file_name: str | None) -> None:
    """R4, R10: file names of browsers, of curl, of Windows and of other encodings."""
    assert disposition(header) == Disposition(field, file_name)


@pytest.mark.parametrize("piece_bytes", [1, 7, 1000])
def test_a_form_is_the_same_in_any_pieces(piece_bytes: int) -> None:
    data = b"\r\n--" + bytes(range(256)) * 8 + b"\r\n--a\r"
    form = read(text("t"), file("f", data), file("g", b""), piece_bytes=piece_bytes)
    assert form.text_fields == ["t"]
    assert [(each.field, each.file_name, each.sink.getvalue()) for each in form.files] == [
        ("f", "a.jpg", data),
        ("g", "a.jpg", b""),
    ]


def test_a_file_over_the_limit_is_not_kept() -> None:
    form = read(file("f", bytes(MOST_BYTES + 1)), file("g", bytes(MOST_BYTES)))
    assert [(each.sink.overflown, len(each.sink.getvalue())) for each in form.files] == [(True, 0), (False, MOST_BYTES)]


OPTIONS = b'Content-Disposition: form-data; name="a"; filename="a.jpg"'
DAMAGED = {
    "options": (part(OPTIONS + b'; a*0="x"' * 50_000), BadRequest),
    "a few options too many": (
        part(OPTIONS + b"; a=b; c=d" * 20 + b"".join(b"; %d=x" % n for n in range(20))),
        BadRequest,
    ),
    "quotes": (part(OPTIONS + b'; a="' * 50_000), BadRequest),
    "a long line": (part(OPTIONS + b"\r\nX-A: " + b"x" * 1_000_000), BadRequest),
    "many lines": (part(OPTIONS + b"\r\nX-A: x" * 100_000), BadRequest),
    "eight long lines": (part(OPTIONS + (b"\r\nX-A: " + b"x" * 4000) * 7), BadRequest),
    "folded lines": (part(OPTIONS + b"\r\n x" * 100_000), BadRequest),
    "a head without end": (b"--b\r\n" + b"x" * 1_000_000, BadRequest),
    "text fields": (b"".join(text(str(n)) for n in range(10_000)), UploadTooLarge),
    "text": (text("a", bytes(300_000)) + text("b", bytes(300_000)), UploadTooLarge),
    "files": (file("f", b"") * 10_000, TooManyFiles),
    "a part of another kind": (part(b"Content-Disposition: attachment; filename=a"), BadRequest),
    "a part without a head": (part(b""), BadRequest),
    "line feeds alone": (file("f").replace(b"\r\n", b"\n"), BadRequest),
}


@pytest.mark.parametrize(("data", "kind"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_form_that_would_cost_more_than_its_bytes_is_refused_early(data: bytes, kind: type[FaceappError]) -> None:
    """S2: refused within its first few pieces, whatever its length."""
    stream = io.BytesIO(data + b"--b--\r\n" + bytes(5_000_000))
    with pytest.raises(kind) as raised:
        forms.read(stream.read, "b", max_files=MOST_FILES, max_file_bytes=MOST_BYTES)
    assert type(raised.value) is kind
    assert stream.tell() <= 600_000


@pytest.mark.parametrize("more", [False, True])
def test_a_folded_line_is_a_line_of_the_head(more: bool) -> None:
    """S2: the package reads a field anew for each of its folds, and does not count them."""
    head = OPTIONS + b"\r\nX-A: x" + b"\r\n folded" * (forms.HEAD_LINES - 2 + more)
    if more:
        with pytest.raises(BadRequest, match="8 lines"):
            read(part(head))
    else:
        [found] = read(part(head), part(head)).files[:1]
        assert found.file_name == "a.jpg"


@pytest.mark.parametrize("preamble", [b"\r\n", b"\n", b"\r\n--", b"\r\n--c\r\n", b"\r"])
def test_a_form_that_never_begins_is_no_form(preamble: bytes) -> None:
    """S2: a preamble without end is passed over in time linear in its length."""
    with pytest.raises(BadRequest):
        read(preamble * 1_000_000, end=b"")


@pytest.mark.parametrize(
    ("field", "refused"),
    [
        (b"Content-Transfer-Encoding: binary", False),
        (b"Content-Type: image/jpeg\r\nContent-Length: 4", False),
        (b"Content-Transfer-Encoding: base64", True),
        (b"content-encoding: gzip", True),
    ],
)
def test_a_part_that_is_encoded_is_no_photo_that_was_forgotten(field: bytes, refused: bool) -> None:
    """R11: the same of a part."""
    encoded = part(b'Content-Disposition: form-data; name="a"; filename="a.jpg"\r\n' + field)
    with pytest.raises(BodyEncoded) if refused else contextlib.nullcontext():
        assert read(encoded).files[0].sink.getvalue() == b"data"


def test_what_follows_the_end_is_read_and_dropped() -> None:
    form = read(file("f"), end=b"--b--\r\n" + b"--b\r\n" * 100_000)
    assert [each.field for each in form.files] == ["f"]
