"""HEIC and AVIF (ISO/IEC 14496-12, 23008-12): boxes. What turns the picture, and what decoding it takes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from faceapp.errors import ImageError, ImageTruncated
from faceapp.images import tiff
from faceapp.images.scanning import PARTS, Head, Parts, damaged

AVIF_BRANDS = {b"avif", b"avis"}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}

FEW_PARTS = 1024
BYTES_PER_PART = 128
"""A file may have FEW_PARTS boxes, entries, references and properties of items, and one more for so many of its bytes.
Phones' photos of 200 tiles have 2,500 in at least a megabyte."""
META_BYTES = 1024 * 1024
"""Of the boxes that describe the pictures. A phone's photo of 200 tiles takes 20 KiB."""
SEQUENCE_BYTES = 256 * 1024
"""Of those that describe a sequence, of which only the first picture is taken."""
EXIF_BYTES = 1024 * 1024
ITEMS = 1000
"""As many as libheif takes."""
DEPTH = 4
"""Pictures made of pictures: phones make theirs of tiles."""

_TRANSFORMS = {b"irot", b"imir"}
_DERIVED = {b"grid", b"iovl", b"iden", b"tmap"}


_HEADER = struct.Struct(">I4s")


class _Box(NamedTuple):
    kind: bytes
    begin: int
    """Behind its own header."""
    end: int


@dataclass
class _Meta:
    """What the meta box says of its items."""

    primary: int = 0
    kinds: dict[int, bytes] = field(default_factory=dict)
    places: dict[int, tuple[int, list[tuple[int, int]]]] = field(default_factory=dict)
    """Item -> whether in the file (0) or in the meta box (1), and offsets and lengths."""
    references: dict[tuple[bytes, int], list[int]] = field(default_factory=dict)
    properties: list[_Box] = field(default_factory=list)
    associations: dict[int, list[int]] = field(default_factory=dict)
    inner: int = 0
    """Where the data in the meta box begins."""


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.parts = data, Parts(min(PARTS, FEW_PARTS + len(data) // BYTES_PER_PART))

    def number(self, at: int, size: int) -> int:
        if at + size > len(self.data):
            raise ImageTruncated
        return int.from_bytes(self.data[at : at + size], "big")

    def boxes(self, at: int, end: int) -> Iterator[_Box]:
        while at + 8 <= end:
            self.parts.visit()
            (size, kind), begin = _HEADER.unpack_from(self.data, at), at + 8
            if size == 1:
                size, begin = self.number(at + 8, 8), at + 16
            elif size == 0:
                size = end - at
            if size < begin - at:
                raise damaged("header")
            # A media box may be cut off: its decoder says so.
            yield _Box(kind, begin, min(at + size, end))
            at += size

    def full(self, box: _Box) -> tuple[int, int, int]:
        """Version and flags of a box, and where its own fields begin."""
        return self.number(box.begin, 1), self.number(box.begin + 1, 3), box.begin + 4


def scan(data: bytes, format: str) -> Head:
    """Raises ImageError for boxes without end, and for pictures made of more pixels than they have."""
    reader = _Reader(data)
    meta = None
    for box in reader.boxes(0, len(data)):
        if box.kind == b"moov" and box.end - box.begin > SEQUENCE_BYTES:
            raise damaged("sequence")
        if box.kind == b"meta" and meta is None:
            meta = _read_meta(reader, box)
    if meta is None:  # a sequence
        return Head(format=format, orientation=0 if format == "AVIF" else 1, parts=reader.parts.visited)
    turned = any(box.kind in _TRANSFORMS for box in _properties(meta, meta.primary))
    # With a box that turns the picture, its EXIF says so only for the record (HEIF, 6.5.10).
    orientation = (0 if format == "AVIF" else 1) if turned else _orientation(reader, meta)
    return Head(
        format=format, orientation=orientation, decoded_px=_decoded_px(reader, meta), parts=reader.parts.visited
    )


def _read_meta(reader: _Reader, meta_box: _Box) -> _Meta:
    meta, size_bytes = _Meta(), 0
    readers = {b"pitm": _read_primary, b"iinf": _read_kinds, b"iloc": _read_places, b"iref": _read_references}
    for box in reader.boxes(meta_box.begin + 4, meta_box.end):
        if box.kind == b"idat":
            meta.inner = box.begin
            continue
        size_bytes += box.end - box.begin
        if size_bytes > META_BYTES:
            raise damaged("header")
        if box.kind in readers:
            readers[box.kind](reader, box, meta)
        elif box.kind == b"iprp":
            for inner in reader.boxes(box.begin, box.end):
                if inner.kind == b"ipco":
                    meta.properties = list(reader.boxes(inner.begin, inner.end))
                elif inner.kind == b"ipma":
                    _read_associations(reader, inner, meta)
    # Each byte of a real file is pointed at once.
    if sum(length for _, extents in meta.places.values() for _, length in extents) > len(reader.data):
        raise ImageTruncated
    return meta


def _read_primary(reader: _Reader, box: _Box, meta: _Meta) -> None:
    version, _, at = reader.full(box)
    meta.primary = reader.number(at, 4 if version else 2)


def _read_kinds(reader: _Reader, box: _Box, meta: _Meta) -> None:
    version, _, at = reader.full(box)
    for entry in reader.boxes(at + (4 if version else 2), box.end):
        version, _, at = reader.full(entry)
        wide = 4 if version == 3 else 2
        if version >= 2:
            meta.kinds[reader.number(at, wide)] = reader.data[at + wide + 2 : at + wide + 6]
    if len(meta.kinds) > ITEMS:
        raise damaged("header")


def _read_places(reader: _Reader, box: _Box, meta: _Meta) -> None:
    version, _, at = reader.full(box)
    sizes = reader.number(at, 2)
    offset_bytes, length_bytes, base_bytes, index_bytes = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    index_bytes = index_bytes if version else 0
    wide = 4 if version == 2 else 2
    count, at = reader.number(at + 2, wide), at + 2 + wide
    for _ in range(count):
        reader.parts.visit()
        item, at = reader.number(at, wide), at + wide
        method, at = (reader.number(at, 2) & 15, at + 2) if version else (0, at)
        base, at = reader.number(at + 2, base_bytes), at + 2 + base_bytes
        extents = []
        number, at = reader.number(at, 2), at + 2
        for _ in range(number):
            reader.parts.visit()
            at += index_bytes
            offset = base + reader.number(at, offset_bytes)
            extents.append((offset, reader.number(at + offset_bytes, length_bytes)))
            at += offset_bytes + length_bytes
        meta.places[item] = method, extents


def _read_references(reader: _Reader, box: _Box, meta: _Meta) -> None:
    version, _, at = reader.full(box)
    wide = 4 if version else 2
    for entry in reader.boxes(at, box.end):
        item, count = reader.number(entry.begin, wide), reader.number(entry.begin + wide, 2)
        reader.parts.visit(count)
        begin = entry.begin + wide + 2
        if begin + count * wide > entry.end:
            raise damaged("header")
        targets = [reader.number(begin + n * wide, wide) for n in range(count)]
        meta.references.setdefault((entry.kind, item), []).extend(targets)


def _read_associations(reader: _Reader, box: _Box, meta: _Meta) -> None:
    version, flags, at = reader.full(box)
    wide, size = (4 if version else 2), (2 if flags & 1 else 1)
    count, at = reader.number(at, 4), at + 4
    for _ in range(count):
        item, number = reader.number(at, wide), reader.number(at + wide, 1)
        reader.parts.visit(1 + number)
        at += wide + 1
        # The highest bit says whether a reader has to know the property.
        indices = [reader.number(at + n * size, size) & (0x7FFF if size == 2 else 0x7F) for n in range(number)]
        meta.associations.setdefault(item, []).extend(indices)
        at += number * size


def _properties(meta: _Meta, item: int) -> list[_Box]:
    return [meta.properties[n - 1] for n in meta.associations.get(item, []) if 1 <= n <= len(meta.properties)]


def _decoded_px(reader: _Reader, meta: _Meta) -> int:
    """Pixels that are decoded for the primary picture: its tiles', each as often as it is used, and its alpha's."""
    known: dict[int, int] = {}

    def pixels(item: int, depth: int) -> int:
        if depth > DEPTH:
            raise damaged("header")
        if item not in known:
            if meta.kinds.get(item) in _DERIVED:
                known[item] = sum(pixels(each, depth + 1) for each in meta.references.get((b"dimg", item), []))
            else:
                known[item] = max((_area(reader, box) for box in _properties(meta, item)), default=0)
        return known[item]

    beside = [item for (kind, item), targets in meta.references.items() if kind == b"auxl" and meta.primary in targets]
    return pixels(meta.primary, 0) + sum(pixels(item, 0) for item in beside)


def _area(reader: _Reader, box: _Box) -> int:
    return reader.number(box.begin + 4, 4) * reader.number(box.begin + 8, 4) if box.kind == b"ispe" else 0


def _orientation(reader: _Reader, meta: _Meta) -> int:
    """What the primary picture's EXIF says."""
    for item, kind in meta.kinds.items():
        if kind == b"Exif" and meta.primary in meta.references.get((b"cdsc", item), [meta.primary]):
            try:
                block = _item(reader, meta, item)
                # Behind a count of bytes before the TIFF header (HEIF, A.2.1).
                return tiff.orientation(block[4 + int.from_bytes(block[:4], "big") :])
            except ImageError:
                return 1
    return 1


def _item(reader: _Reader, meta: _Meta, item: int) -> bytes:
    method, extents = meta.places.get(item, (0, []))
    begin = meta.inner if method == 1 else 0
    pieces = [reader.data[begin + offset : begin + offset + min(length, EXIF_BYTES)] for offset, length in extents]
    return b"".join(pieces)[:EXIF_BYTES]
