"""PNG (ISO/IEC 15948): a decoder needs the header, the palette and the pixels."""

from __future__ import annotations

from faceapp.errors import ImageError, ImageTruncated
from faceapp.images import tiff
from faceapp.images.scanning import PARTS, Head, Parts, damaged

MAGIC = b"\x89PNG\r\n"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = b"\0\0\0\0IEND\xaeB`\x82"

CHUNK_BYTES = 4096
"""Encoders write their pixels in chunks of 8 KiB and more."""

_NEEDED = {b"IHDR": 13, b"PLTE": 768, b"tRNS": 256}
"""Chunks, and how long each may be."""


def scan(data: bytes) -> Head:
    """Raises ImageTruncated when the end is missing, ImageError when the chunks make no sense."""
    try:
        return _scan(data)
    except ImageError as error:
        if data.rfind(b"IEND") < 0:
            raise ImageTruncated from error
        raise


def _scan(data: bytes) -> Head:
    parts, at = Parts(PARTS + len(data) // CHUNK_BYTES), len(SIGNATURE)
    needed: dict[bytes, bytes] = {}
    start = end = bits = 0
    orientation = 1
    while True:
        parts.visit()
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        behind = at + 12 + length
        if behind > len(data):
            raise ImageTruncated
        if not needed and kind != b"IHDR":
            raise damaged("header")
        if kind == b"IEND":
            break
        if kind == b"IDAT":
            start = start or at
            # Pixels lie in one row of chunks; a decoder stops where it ends.
            end = behind if end in (0, at) else end
        elif kind in _NEEDED and kind not in needed and not start:
            if length > _NEEDED[kind]:
                raise damaged("header")
            needed[kind] = data[at:behind]
        elif kind == b"eXIf":
            orientation = tiff.orientation(memoryview(data)[at + 8 : behind - 4])
        elif kind == b"sBIT" and length:
            bits = data[at + 8]
        at = behind
    if not start:
        raise damaged("header")
    return Head(
        format="PNG",
        orientation=orientation,
        head=b"".join((SIGNATURE, *needed.values())),
        start=start,
        end=end,
        tail=END,
        bits=bits,
        parts=parts.visited,
    )
