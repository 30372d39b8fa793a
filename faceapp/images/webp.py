"""WebP (RFC 9649): RIFF chunks."""

from __future__ import annotations

from faceapp.errors import ImageTruncated
from faceapp.images import tiff
from faceapp.images.scanning import Head, Parts, damaged


def scan(data: bytes) -> Head:
    """Raises ImageTruncated when the file is shorter than it says, ImageError when it has no picture."""
    end, at, parts = int.from_bytes(data[4:8], "little") + 8, 12, Parts()
    if end > len(data):
        raise ImageTruncated
    size, orientation = None, 1
    while at + 8 <= end:
        parts.visit()
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8
        if size is None:
            size = _size(kind, data[at : at + 10])
        elif kind == b"EXIF":
            orientation = tiff.orientation(memoryview(data)[at : at + length])
        at += length + length % 2
    if size is None:
        raise damaged("header")
    return Head(format="WEBP", orientation=orientation, size=size, parts=parts.visited)


def _size(kind: bytes, begin: bytes) -> tuple[int, int]:
    """Width and height out of the first chunk."""
    if kind == b"VP8X" and len(begin) == 10:
        return int.from_bytes(begin[4:7], "little") + 1, int.from_bytes(begin[7:10], "little") + 1
    if kind == b"VP8 " and begin[3:6] == b"\x9d\x01\x2a" and len(begin) == 10:
        return int.from_bytes(begin[6:8], "little") & 0x3FFF, int.from_bytes(begin[8:10], "little") & 0x3FFF
    if kind == b"VP8L" and begin[:1] == b"\x2f" and len(begin) >= 5:
        bits = int.from_bytes(begin[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise damaged("header")
