"""Requests made to cost more than their bytes: what strangers sent, and more of each kind from a seed.

A shape is the bytes of one request to `POST /v1/recognitions`, from its head to its end, which may never come.
"""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from PIL import Image

MIB = 1024 * 1024
REQUEST_BYTES = 64 * MIB
BOUNDARY = b"b"
OPTION = b'; a*0="x"'

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
PNG = b"\x89PNG\r\n\x1a\n"
JPEG_MARKERS = [bytes([0xFF, code]) for code in (0x01, *range(0xC0, 0xD0), *range(0xDA, 0xFF))]
PNG_CHUNKS = [
    b"tEXt",
    b"zTXt",
    b"iTXt",
    b"IDAT",
    b"PLTE",
    b"tRNS",
    b"eXIf",
    b"iCCP",
    b"gAMA",
    b"acTL",
    b"fcTL",
    b"aBcD",
]
HEIF_BOXES = [
    b"free",
    b"meta",
    b"moov",
    b"iinf",
    b"iloc",
    b"iprp",
    b"ipco",
    b"ipma",
    b"iref",
    b"mdat",
    b"uuid",
    b"infe",
]
WEBP_CHUNKS = [b"VP8 ", b"VP8L", b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"EXIF", b"XMP ", b"ICCP", b"abcd"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One request; `silent` if nothing follows its bytes although it is not complete."""

    name: str
    make: Callable[[], bytes]
    silent: bool = False


def authorization() -> dict[str, str]:
    """The header with the start's credential (FACEAPP_LOCAL_KEY): what needs none is refused before it costs."""
    return {"Authorization": f"Bearer {os.environ['FACEAPP_LOCAL_KEY']}"}


def head(size: int | None, *fields: bytes) -> bytes:
    """A request's head; `size` None is a chunked one."""
    fields = (*fields, *(f"{name}: {value}".encode() for name, value in authorization().items()))
    length = b"Transfer-Encoding: chunked" if size is None else b"Content-Length: %d" % size
    lines = [b"POST /v1/recognitions HTTP/1.1", b"Host: 127.0.0.1", b"Connection: close", length, *fields]
    return b"\r\n".join([*lines, b"Content-Type: multipart/form-data; boundary=" + BOUNDARY, b"", b""])


def request(body: bytes) -> bytes:
    return head(len(body)) + body


def part(data: bytes = b"", *, options: bytes = b'; filename="a.jpg"', fields: bytes = b"") -> bytes:
    start = b"--" + BOUNDARY + b'\r\nContent-Disposition: form-data; name="photo"' + options + fields
    return start + b"\r\n\r\n" + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--" + BOUNDARY + b"--\r\n"


def photo(data: bytes) -> bytes:
    """The request for one file."""
    return request(form(part(data)))


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """A PNG's."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def many(unit: bytes, size_bytes: int) -> bytes:
    return unit * (size_bytes // len(unit))


def picture(format: str, **options: object) -> bytes:
    """A small picture in the format."""
    file = io.BytesIO()
    Image.effect_noise((64, 64), 60).convert("RGB").save(file, format, **options)
    return file.getvalue()


def scans(size_bytes: int) -> bytes:
    """A progressive JPEG of 4,096 x 4,096 pixels whose last scan comes again and again."""
    file = io.BytesIO()
    Image.new("L", (4096, 4096)).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + many(last, size_bytes) + EOI


def known(photo_bytes: int, request_bytes: int = REQUEST_BYTES) -> Iterator[Shape]:
    """What was seen, with files of `photo_bytes` and requests of up to `request_bytes`."""
    padding = b"\xff" * photo_bytes
    ihdr = PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0))
    yield Shape(name="0xFF after SOI", make=lambda: photo(SOI + padding))
    yield Shape(name="empty APP14 segments", make=lambda: photo(SOI + many(b"\xff\xee\0\2", photo_bytes)))
    yield Shape(name="empty PNG chunks", make=lambda: photo(ihdr + many(chunk(b"tEXt"), photo_bytes)))
    yield Shape(name="progressive scans", make=lambda: photo(scans(min(photo_bytes, 300_000))))
    yield Shape(name="three in a form", make=lambda: request(form(*[part(SOI + padding)] * 3)))
    options = min(50_000, request_bytes // (60 * len(OPTION)))
    yield Shape(
        name="60 parts with many options",
        make=lambda: request(form(*[part(options=b'; filename="a"' + OPTION * options)] * 60)),
    )
    heads = [part(options=b'; filename="a"' + OPTION * 14, fields=b"\r\nX-A: " + b";a=b" * 1900)] * 60
    yield Shape(name="60 parts with heads just allowed", make=lambda: request(form(*heads)))
    yield Shape(name="a line without end", make=lambda: request(part(fields=b"x" * request_bytes)[:request_bytes]))
    yield Shape(
        name="lines without end", make=lambda: request(part(fields=many(b"\r\na: b", request_bytes))[:request_bytes])
    )
    yield Shape(name="folded lines", make=lambda: request(part(fields=many(b"\r\n b", request_bytes))[:request_bytes]))
    yield Shape(name="tiny text parts", make=lambda: request(form(many(part(options=b""), request_bytes - 100))))
    for name, unit in {"newlines": b"\r\n", "near boundaries": b"\r\n--", "carriage returns": b"\r"}.items():
        yield Shape(name=f"{name} before", make=partial(_around, unit, request_bytes - 200, before=True))
        yield Shape(name=f"{name} inside", make=partial(_inside, unit, photo_bytes))
        yield Shape(name=f"{name} after", make=partial(_around, unit, request_bytes - 200, before=False))
    yield Shape(
        name="chunks of a byte",
        make=lambda: head(None) + many(b"1\r\n-\r\n", min(request_bytes, 20 * MIB)) + b"0\r\n\r\n",
    )
    yield Shape(name="a chunk's extension", make=lambda: head(None) + b"1;a=" + b"b" * 1_000_000)
    yield Shape(
        name="a head of many fields", make=lambda: head(9, *[b"X-A%d: %s" % (n, b"x" * 8000) for n in range(90)])
    )
    prefer = [b"Prefer: " + b"," * 8000] * 7
    yield Shape(name="many preferences", make=lambda: head(len(form(part())), *prefer) + form(part()))
    yield Shape(name="announced and silent", make=lambda: head(request_bytes), silent=True)
    yield Shape(name="chunked and silent", make=lambda: head(None), silent=True)
    yield Shape(name="begun and silent", make=lambda: head(request_bytes) + part(SOI + padding)[:100_000], silent=True)


def made_up(seed: int, count: int, photo_bytes: int) -> Iterator[Shape]:
    """Each format's own units with bytes in them, repeated until the file is full."""
    kinds = {"JPEG": _jpeg, "PNG": _png, "WEBP": _webp, "HEIF": _heif, "TIFF": _tiff, "GIF": _gif, "form": _form}
    for n in range(count):
        kind = list(kinds)[n % len(kinds)]
        chance = random.Random(f"{seed}.{n}")
        yield Shape(name=f"{kind} {seed}.{n}", make=partial(kinds[kind], chance, photo_bytes))


def _around(unit: bytes, size_bytes: int, *, before: bool) -> bytes:
    whole, more = form(part(b"x")), many(unit, size_bytes)
    return request(more + b"\r\n" + whole if before else whole + more)


def _inside(unit: bytes, size_bytes: int) -> bytes:
    return photo(SOI + many(unit, size_bytes))


def _some(chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice([0, 0, 1, 2, 4, 12, 100]))


def _jpeg(chance: random.Random, size_bytes: int) -> bytes:
    units = []
    for marker in chance.sample(JPEG_MARKERS, chance.randint(1, 3)):
        data = _some(chance)
        units.append(marker + struct.pack(">H", chance.choice([len(data) + 2, len(data) + 2, 0, 2])) + data)
    whole = picture("JPEG")
    at = chance.choice([2, whole.index(b"\xff\xda"), len(whole) - 2])
    return photo(whole[:at] + many(b"".join(units), size_bytes) + whole[at:])


def _png(chance: random.Random, size_bytes: int) -> bytes:
    unit = b"".join(chunk(kind, _some(chance)) for kind in chance.sample(PNG_CHUNKS, chance.randint(1, 3)))
    whole = picture("PNG")
    at = chance.choice([8, 33, len(whole) - 12])
    return photo(whole[:at] + many(unit, size_bytes) + whole[at:])


def _webp(chance: random.Random, size_bytes: int) -> bytes:
    units = b""
    for kind in chance.sample(WEBP_CHUNKS, chance.randint(1, 3)):
        data = _some(chance)
        units += kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
    whole = picture("WEBP")
    at = chance.choice([12, len(whole)])
    data = b"WEBP" + whole[12:at] + many(units, size_bytes) + whole[at:]
    return photo(b"RIFF" + struct.pack("<I", len(data)) + data)


def _heif(chance: random.Random, size_bytes: int) -> bytes:
    units = b""
    for kind in chance.sample(HEIF_BOXES, chance.randint(1, 3)):
        data = _some(chance)
        units += struct.pack(">I", len(data) + 8) + kind + data
    start = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic"
    boxes = many(units, size_bytes)
    if chance.random() < 0.5:
        boxes = struct.pack(">I", len(boxes) + 12) + b"meta" + bytes(4) + boxes
    return photo(start + boxes)


def _tiff(chance: random.Random, size_bytes: int) -> bytes:
    entries = chance.choice([1, 100, 65_535])
    tag, kind = chance.choice([256, 273, 279, 700, 34_665, 34_377]), chance.randint(1, 12)
    count, offset = chance.choice([1, 65_535, 2**31]), chance.choice([8, 1000, 2**31])
    entry = struct.pack("<HHII", tag, kind, count, offset)
    directories = many(struct.pack("<H", entries) + entry * entries + struct.pack("<I", 8), size_bytes)
    return photo(b"II*\0" + struct.pack("<I", 8) + directories)


def _gif(chance: random.Random, size_bytes: int) -> bytes:
    data = chance.randbytes(chance.choice([0, 1, 4, 255]))
    unit = chance.choice([b"\x21" + chance.randbytes(1), b"\x21\xff", b"\x21\xfe", b"\x2c" + bytes(9) + b"\2"])
    unit += bytes([len(data)]) + data + b"\0"
    return photo(b"GIF89a" + struct.pack("<HHBBB", 64, 64, 0, 0, 0) + many(unit, size_bytes) + b"\x3b")


def _form(chance: random.Random, size_bytes: int) -> bytes:
    options = b"".join(
        chance.choice([b"; a=b", b'; a="', b"\\", b'"', b";", b"=", b" ", b"; filename*="]) for _ in range(9)
    )
    fields = b"\r\n" + chance.choice(
        [b"X-A: b", b" folded", b"Content-Type: a" + b"; b=c" * 9, b"\xff", b"Content-Length: 1"]
    )
    times = chance.choice([1, 100, 100_000])
    unit = part(_some(chance), options=options * chance.choice([1, 100, 10_000]), fields=fields * times)
    return request(form(many(unit, size_bytes) or unit))
