"""Files that were made to cost much: what looking at them costs is counted, and has a bound whatever their length."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from faceapp import images
from faceapp.config import MIB
from faceapp.errors import ImageError, ImageTooLarge, ImageTruncated
from faceapp.images import decoding, heif, jpeg, png, scanning
from faceapp.images.formats import scan

LIMITS = {"max_pixels": 64_000_000, "max_jpeg_pixels": 200_000_000, "max_side_px": 20_000}
SIZE_BYTES = 4 * MIB
SMALL_BYTES = 60_000
SMALL_UNITS = 3 * scanning.PARTS
"""Parts and numbers."""
READS = 2000
"""By Pillow, of the header that it is given."""


def encoded(format: str, *, size: tuple[int, int] = (96, 64), **options: Any) -> bytes:
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    picture = np.dstack([x * 3 % 256, y * 5 % 256, (x * y) % 256]).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(picture).save(out, format, **options)
    return out.getvalue()


def filled(whole: bytes, at: int, unit: bytes, size_bytes: int) -> bytes:
    """The file with `unit` again and again at `at`."""
    return whole[:at] + unit * (size_bytes // len(unit) + 1) + whole[at:]


def riff(size_bytes: int, unit: bytes, *, in_front: bool) -> bytes:
    whole = encoded("WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0")
    data = filled(whole, 30 if in_front else len(whole), unit, size_bytes)
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def segment(marker: int, data: bytes = b"") -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def box(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data) + 8) + kind + data


def ftyp_bytes(data: bytes) -> int:
    return int.from_bytes(data[:4], "big")


def full_box(kind: bytes, data: bytes, version: int = 0) -> bytes:
    return box(kind, bytes([version, 0, 0, 0]) + data)


def avif_of(described: bytes) -> bytes:
    """An AVIF of nothing but what describes its pictures."""
    primary = full_box(b"pitm", struct.pack(">H", 1))
    return box(b"ftyp", b"avif\0\0\0\0avifmif1") + full_box(b"meta", primary + described)


def associations(size_bytes: int) -> bytes:
    """200 properties for each of many items."""
    count = size_bytes // 203 + 1
    return full_box(
        b"ipma", struct.pack(">I", count) + b"".join(struct.pack(">HB", n, 200) + b"\1" * 200 for n in range(count))
    )


def items(size_bytes: int) -> bytes:
    entry = full_box(b"infe", struct.pack(">HH4s", 1, 0, b"av01") + b"\0", version=2)
    count = size_bytes // len(entry) + 1
    return full_box(b"iinf", struct.pack(">I", count) + entry * count, version=1)


def targets(count: int) -> bytes:
    return box(b"dimg", struct.pack(">HH", 1, count) + bytes(2 * count))


def directory(entries: list[tuple[int, int, int, int]], *, of_bytes: int) -> bytes:
    """A TIFF of nothing but a directory (tag, type, count, value) and zeros."""
    body = b"".join(struct.pack("<HHII", *each) for each in entries)
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4)).ljust(of_bytes, b"\0")


JPEG, PNG, GIF = encoded("JPEG"), encoded("PNG"), encoded("GIF")
HEIC, AVIF = encoded("HEIF"), encoded("AVIF")
IHDR_END = 8 + 25
PROGRESSIVE = encoded("JPEG", progressive=True)
PASS = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
PALETTE_END = 13 + 768
RESOURCES = segment(0xED, b"Photoshop 3.0\0" + b"8BIM\0\0\0\0\0\0\0\0" * 5400)
TEXT_BOMB = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(MIB), 9))

STRANGERS: dict[str, Callable[[int], bytes]] = {
    "jpeg, fill bytes": lambda n: filled(JPEG, 2, b"\xff", n),
    "jpeg, zeros": lambda n: filled(JPEG, 20, b"\0", n),
    "jpeg, empty APP14": lambda n: filled(JPEG, 2, segment(0xEE), n),
    "jpeg, Adobe's APP14": lambda n: filled(JPEG, 2, segment(0xEE, b"Adobe\0d\0\0\0\0\1"), n),
    "jpeg, EXIF": lambda n: filled(JPEG, 2, segment(0xE1, b"Exif\0\0" + bytes(60_000)), n),
    "jpeg, Photoshop's resources": lambda n: filled(JPEG, 2, RESOURCES, n),
    "jpeg, quantisation tables": lambda n: filled(JPEG, 2, segment(0xDB, bytes(65 * 1000)), n),
    "jpeg, restart markers": lambda n: filled(JPEG, 2, b"\xff\xd0", n),
    "jpeg, fill bytes in the scan": lambda n: filled(JPEG, len(JPEG) - 2, b"\xff", n),
    "jpeg, stuffed bytes in the scan": lambda n: filled(JPEG, len(JPEG) - 2, b"\xff\0", n),
    "jpeg, no markers in the scan": lambda n: filled(JPEG, len(JPEG) - 2, b"\xff\1", n),
    "jpeg, comments behind the scan": lambda n: filled(JPEG, len(JPEG) - 2, segment(0xFE), n),
    "jpeg, runs of zeros in the scan": lambda n: filled(JPEG, len(JPEG) - 2, bytes(1024) + b"\1", n),
    "jpeg, passes": lambda n: filled(PROGRESSIVE, len(PROGRESSIVE) - 2, PASS, n),
    "png, empty chunks": lambda n: filled(PNG, IHDR_END, chunk(b"tEXt"), n),
    "png, empty IDAT": lambda n: filled(PNG, IHDR_END, chunk(b"IDAT"), n),
    "png, text bombs": lambda n: filled(PNG, IHDR_END, TEXT_BOMB, n),
    "png, text bombs behind": lambda n: filled(PNG, len(PNG) - 12, TEXT_BOMB, n),
    "png, profiles": lambda n: filled(PNG, IHDR_END, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(MIB), 9)), n),
    "gif, extensions": lambda n: filled(GIF, PALETTE_END, b"!\xfe\0", n),
    "gif, one comment": lambda n: (
        GIF[:PALETTE_END] + b"!\xfe" + (b"\xff" * 256) * (n // 256) + b"\0" + GIF[PALETTE_END:]
    ),
    "webp, chunks in front": lambda n: riff(n, b"ABCD\0\0\0\0", in_front=True),
    "webp, chunks behind": lambda n: riff(n, b"ABCD\0\0\0\0", in_front=False),
    "heic, boxes": lambda n: filled(HEIC, ftyp_bytes(HEIC), box(b"free"), n),
    "avif, boxes": lambda n: filled(AVIF, ftyp_bytes(AVIF), box(b"free"), n),
    "avif, associations": lambda n: avif_of(box(b"iprp", box(b"ipco", box(b"irot", b"\0") * 1000) + associations(n))),
    "avif, items": lambda n: avif_of(items(n)),
    "avif, references": lambda n: avif_of(full_box(b"iref", box(b"dimg", bytes(4)) * (n // 12))),
    "avif, targets of references": lambda n: avif_of(full_box(b"iref", targets(30_000) * (n // 60_000 + 1))),
    "heic, a sequence": lambda n: filled(HEIC, ftyp_bytes(HEIC), box(b"moov", bytes(n - 8)), n),
    "tiff, tags": lambda n: directory([(tag, 7, 2000, 8) for tag in range(1025)], of_bytes=n),
    "tiff, tags of everything": lambda n: directory([(tag, 7, n - 8, 8) for tag in range(700, 900)], of_bytes=n),
    "tiff, a list of numbers": lambda n: directory([(258, 3, n // 2 - 8, 8)], of_bytes=n),
    "bmp, run lengths": lambda n: filled(
        encoded("BMP")[:14] + struct.pack("<IIIHHI", 40, 96, 64, 1, 8, 1) + bytes(20), 54, b"\1\0", n + 54
    ),
}


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Counts the parts that scanners visit, the numbers that are read of an HEIC, and what Pillow reads."""
    counted = SimpleNamespace(parts=0, numbers=0, reads=0, bytes=0)
    visit, number = scanning.Parts.visit, heif._Reader.number

    def counting(self: scanning.Parts, parts: int = 1) -> None:
        counted.parts += 1
        visit(self, parts)

    def counting_numbers(self: heif._Reader, at: int, size: int) -> int:
        counted.numbers += 1
        return number(self, at, size)

    class Counting(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            counted.reads, counted.bytes = counted.reads + 1, counted.bytes + len(data)
            return data

    monkeypatch.setattr(scanning.Parts, "visit", counting)
    monkeypatch.setattr(heif._Reader, "number", counting_numbers)
    monkeypatch.setattr(decoding, "io", SimpleNamespace(BytesIO=Counting))
    return counted


@pytest.mark.parametrize("name", STRANGERS)
def test_looking_at_a_file_takes_work_within_bounds(name: str, work: SimpleNamespace) -> None:
    """S2: one upload of 19 MiB held a web process for 20 s, by fill bytes, empty segments, empty chunks."""
    data = STRANGERS[name](SIZE_BYTES)
    assert len(data) >= SIZE_BYTES

    with suppress(ImageError):
        images.inspect(data, **LIMITS)

    assert work.parts <= scanning.PARTS + len(data) // png.CHUNK_BYTES + 1
    assert work.reads <= READS
    assert work.bytes <= 3 * len(data)


@pytest.mark.parametrize("name", STRANGERS)
def test_a_small_file_takes_little_work(name: str, work: SimpleNamespace) -> None:
    """S2: 32 AVIFs of 54 KiB, with 45,000 properties each that nobody counted, held a web process for 2 s."""
    with suppress(ImageError):
        images.inspect(STRANGERS[name](SMALL_BYTES), **LIMITS)

    assert work.parts + work.numbers <= SMALL_UNITS


def test_a_phones_picture_of_200_tiles_is_within_the_bounds() -> None:
    """S2: with three properties for each tile, in a file of a megabyte."""
    tiles = [struct.pack(">HB", n, 3) + b"\1\2\1" for n in range(1, 202)]
    properties = box(b"ipco", full_box(b"ispe", struct.pack(">II", 512, 512)) * 2)
    described = (
        full_box(b"iinf", struct.pack(">H", 201) + b"".join(_tile(n) for n in range(1, 202)))
        + full_box(b"iref", targets(200))
        + box(b"iprp", properties + full_box(b"ipma", struct.pack(">I", 201) + b"".join(tiles)))
        + full_box(b"iloc", b"\x44\0" + struct.pack(">H", 201) + b"".join(_place(n) for n in range(1, 202)))
    )
    head = scan(avif_of(described) + box(b"mdat", bytes(MIB)))
    assert 1500 < head.parts < scanning.PARTS


def _tile(item: int) -> bytes:
    return full_box(b"infe", struct.pack(">HH4s", item, 0, b"av01") + b"\0", version=2)


def _place(item: int) -> bytes:
    return struct.pack(">HHHII", item, 0, 1, 0, 100)


@pytest.mark.parametrize("name", STRANGERS)
def test_what_is_looked_at_within_bounds_is_decoded_within_bounds(name: str, work: SimpleNamespace) -> None:
    """S7: whatever passes the door costs a worker no more than a photo does."""
    data = STRANGERS[name](SIZE_BYTES)

    with suppress(ImageError):
        images.decode(data, **LIMITS)

    assert work.reads <= READS + len(data) // 4096
    assert work.bytes <= 4 * len(data)


def passes(number: int) -> bytes:
    """A progressive JPEG in so many passes."""
    own = PROGRESSIVE.count(b"\xff\xda")
    return PROGRESSIVE[:-2] + PASS * (number - own) + PROGRESSIVE[-2:]


def test_the_passes_of_a_progressive_jpeg_are_counted() -> None:
    """S7."""
    assert scan(passes(40)).scans == 40
    assert images.decode(passes(jpeg.SCANS), **LIMITS).photo.width == 96
    for data in (passes(jpeg.SCANS + 1), passes(5000)):
        with pytest.raises(ImageTooLarge, match="100 passes"):
            images.inspect(data, **LIMITS)


def test_passes_hidden_behind_a_false_end_are_counted() -> None:
    """S7: the bytes of an end marker in a comment are no end to libjpeg."""
    data = PROGRESSIVE[:-2] + segment(0xFE, b"\xff\xd9") + PASS * 200 + PROGRESSIVE[-2:]

    with pytest.raises(ImageTooLarge):
        images.inspect(data, **LIMITS)


def test_large_progressive_jpegs_may_have_fewer_passes() -> None:
    """S7: each pass goes over the whole picture."""
    at = PROGRESSIVE.index(b"\xff\xc2") + 5
    for number, fits in ((20, True), (40, False)):
        data = passes(number)
        data = data[:at] + struct.pack(">HH", 8000, 8000) + data[at + 4 :]
        if fits:
            assert images.inspect(data, **LIMITS).width == 8000
        else:
            with pytest.raises(ImageTooLarge, match="passes"):
                images.inspect(data, **LIMITS)


def test_passes_are_those_of_the_first_picture() -> None:
    """S7: a motion photo's film behind the picture has bytes of all kinds."""
    assert scan(PROGRESSIVE + PASS * 500).scans == PROGRESSIVE.count(b"\xff\xda")


def tiled(columns: int, tile_px: int) -> bytes:
    """An HEIC whose picture is a square grid that shows one tile again and again; there are no pixels."""
    count = columns * columns
    item = struct.pack(">HH", 1, 0) + b"grid" + b"\0", struct.pack(">HH", 2, 0) + b"hvc1" + b"\0"
    infos = b"".join(full_box(b"infe", each, version=2) for each in item)
    sizes = [full_box(b"ispe", struct.pack(">II", side, side)) for side in (4000, tile_px)]
    meta = full_box(
        b"meta",
        full_box(b"pitm", struct.pack(">H", 1))
        + full_box(b"iinf", struct.pack(">H", 2) + infos)
        + full_box(b"iref", box(b"dimg", struct.pack(">HH", 1, count) + struct.pack(">H", 2) * count))
        + box(
            b"iprp",
            box(b"ipco", b"".join(sizes)) + full_box(b"ipma", struct.pack(">IHBBHBB", 2, 1, 1, 1, 2, 1, 2)),
        ),
    )
    return box(b"ftyp", b"heic\0\0\0\0mif1heic") + meta


def test_a_grid_counts_each_of_its_tiles() -> None:
    """S7: 64 million pixels each, of which one corner is seen."""
    assert heif.scan(tiled(8, 512), "HEIF").decoded_px == 64 * 512 * 512
    limits = (64_000_000, 200_000_000, 20_000)
    decoding._check_size(scan(tiled(8, 512)), 4000, 4000, *limits)
    with pytest.raises(ImageTooLarge, match="many more pixels"):
        decoding._check_size(scan(tiled(30, 8000)), 4000, 4000, *limits)


def test_strips_point_at_no_more_than_the_file_has() -> None:
    """S7: each of them could be decompressed out of the whole file."""
    whole = encoded("TIFF", compression="tiff_deflate", strip_size=96 * 3)
    assert scan(whole).format == "TIFF"
    (at,) = struct.unpack("<I", whole[4:8])
    for n in range(*struct.unpack("<H", whole[at : at + 2])):
        tag, type, count, where = struct.unpack("<HHII", whole[at + 2 + 12 * n : at + 14 + 12 * n])
        if tag == 279:
            size = 2 if type == 3 else 4
            large = struct.pack("<H" if size == 2 else "<I", len(whole)) * count
            lies = whole[:where] + large + whole[where + size * count :]
    with pytest.raises(ImageTruncated):
        scan(lies)


def test_phones_files_are_within_the_bounds() -> None:
    """S2: what phones and programs write beside the picture: previews, profiles, extended XMP, a second picture."""
    beside = [
        segment(0xE1, b"Exif\0\0" + encoded("TIFF")[:60_000]),
        *(segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(65_000)) for _ in range(80)),
        *(segment(0xE2, b"ICC_PROFILE\0" + bytes([n + 1, 20]) + bytes(60_000)) for n in range(20)),
        segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\0\0\0\0" * 20),
        *(segment(0xE3, bytes(60_000)) for _ in range(30)),
        segment(0xE2, b"MPF\0" + bytes(80)),
        b"\xff" * 1000,
    ]
    data = JPEG[:2] + b"".join(beside) + JPEG[2:] + encoded("JPEG") + bytes(100_000)
    assert images.decode(data, **LIMITS).image == images.decode(JPEG, **LIMITS).image

    texts = chunk(b"tEXt", b"Comment\0" + bytes(50_000)) * 50
    data = PNG[:IHDR_END] + texts + PNG[IHDR_END:-12] + texts + PNG[-12:]
    assert images.decode(data, **LIMITS).image == images.decode(PNG, **LIMITS).image

    xmp = b"!\xff\x0bXMP DataXMP" + (b"\xff" + bytes(255)) * 200 + b"\0"
    data = GIF[:PALETTE_END] + xmp + GIF[PALETTE_END:]
    assert images.decode(data, **LIMITS).image == images.decode(GIF, **LIMITS).image
