"""GIF (89a) and BMP."""

from __future__ import annotations

from faceapp.errors import ImageError, ImageTruncated
from faceapp.images.scanning import Head, Parts, damaged

_GRAPHIC_CONTROL = 0xF9

BMP_HEADERS = {12, 40, 52, 56, 64, 108, 124}
RLE_BYTES = 4 * 1024 * 1024
"""Pillow decodes a run-length coded BMP in Python, about a microsecond for each pair of bytes."""


def scan_gif(data: bytes) -> Head:
    """Find the first picture. Raises ImageTruncated when the file ends before it."""
    if len(data) < 13:
        raise ImageTruncated
    parts, at = Parts(), 13 + _palette_bytes(data[10])
    screen, control = data[:at], b""
    while True:
        parts.visit()
        kind = data[at : at + 1]
        if kind == b",":
            break
        if kind != b"!":
            raise damaged("header") if kind else ImageTruncated()
        behind = _behind_blocks(data, at + 2, parts)
        if data[at + 1 : at + 2] == bytes([_GRAPHIC_CONTROL]):
            control = data[at:behind]
        at = behind
    if len(data) < at + 11:
        raise ImageTruncated
    # With the picture's own head in front: it is all that is needed to know the size.
    pixels = at + 11 + _palette_bytes(data[at + 9])
    return Head(format="GIF", head=screen + control + data[at:pixels], start=pixels, parts=parts.visited)


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _behind_blocks(data: bytes, at: int, parts: Parts) -> int:
    while True:
        parts.visit()
        if at >= len(data):
            raise ImageTruncated
        if not data[at]:
            return at + 1
        at += 1 + data[at]


def scan_bmp(data: bytes) -> Head:
    """Raises ImageError for a header of no known kind, and for run lengths without end."""
    size, bits = int.from_bytes(data[14:18], "little"), int.from_bytes(data[28:30], "little")
    if len(data) < 26:
        raise ImageTruncated
    if size not in BMP_HEADERS:
        raise damaged("header")
    if size > 12:
        if bits <= 8 and int.from_bytes(data[46:50], "little") > 256:
            raise damaged("palette")
        if int.from_bytes(data[30:34], "little") in (1, 2) and len(data) > RLE_BYTES:
            raise ImageError("The photo is a BMP with long run-length coding: save it as a JPEG or PNG.")
    return Head(format="BMP", parts=1)
