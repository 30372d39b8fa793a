"""TIFF's directories (TIFF 6.0, BigTIFF): of a file, which may be a camera's RAW, and of an EXIF block."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faceapp.errors import ImageError, ImageTruncated, ImageUnsupported
from faceapp.images.scanning import Head, Parts, damaged

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

ENTRIES = 256
"""Tags in one directory. Cameras write up to a hundred. Pillow takes 10 us for each."""
VALUES = 4096
"""Values of a tag that Pillow turns into Python's numbers, but for the lists of strips, tiles and colours."""
LIST_VALUES = 300_000
"""Of those lists: tiles of 16 x 16 pixels in a photo of 64 million."""
SUB_DIRECTORIES = 8

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_BYTES, _SHORT, _LONG, _IFD, _LONG8, _IFD8 = (1, 2, 7), 3, 4, 13, 16, 18
_NUMBERS = {_SHORT: "H", _LONG: "L", _IFD: "L", _LONG8: "Q", _IFD8: "Q"}

_SUBFILE, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SUB_IFDS = 254, 259, 262, 274, 330
_STRIP_SIZES, _TILE_SIZES, _DNG_VERSION = 279, 325, 50706
_LISTS = {273, _STRIP_SIZES, 320, 324, _TILE_SIZES}
_LAST_OF_PILLOWS, _XMP = 532, 700

_RAW_PHOTOMETRIC = {32803, 34892}
"""Colour filter array and linear raw (TIFF/EP, DNG)."""
_RAW_COMPRESSION = {262, 32767, 32769, 32770, 34713, 34892, 65000, 65535}
"""Of Kodak, Sony, Epson, Samsung, Nikon, lossy DNG, Kodak and Pentax."""

RAW = "This is a camera's RAW file, which this service does not read: send a JPEG or HEIC of it."


@dataclass(frozen=True)
class _Entry:
    tag: int
    type: int
    count: int
    at: int
    """Where its values are."""

    @property
    def size_bytes(self) -> int:
        return self.count * _SIZES.get(self.type, 0)


class _Tiff:
    """Directories in `data`, whose header stands at its beginning. Raises ImageError where there is none."""

    def __init__(self, data: bytes | memoryview, parts: Parts) -> None:
        self._data, self._parts = data, parts
        order = bytes(data[:2])
        if order not in (b"II", b"MM"):
            raise damaged("header")
        self._order = "<" if order == b"II" else ">"
        self.big = self._read("H", 2) == 43
        self.first = self._read("Q", 8) if self.big else self._read("L", 4)

    def _read(self, form: str, at: int) -> int:
        try:
            value: int = struct.unpack_from(self._order + form, self._data, at)[0]
        except (struct.error, OverflowError):
            raise ImageTruncated from None
        return value

    def directory(self, at: int) -> Iterator[_Entry]:
        """The entries of the directory at `at`."""
        count, inline = (self._read("Q", at), 8) if self.big else (self._read("H", at), 4)
        if count > ENTRIES:
            raise damaged("directory")
        at += 8 if self.big else 2
        for _ in range(count):
            self._parts.visit()
            values = self._read("Q" if self.big else "L", at + 4)
            entry = _Entry(self._read("H", at), self._read("H", at + 2), values, at + 4 + inline)
            if entry.size_bytes > inline:
                there = self._read("Q" if self.big else "L", entry.at)
                entry = _Entry(entry.tag, entry.type, entry.count, there)
            yield entry
            at += 4 + 2 * inline

    def total(self, entry: _Entry) -> float:
        """The sum of an entry's whole numbers."""
        return float(self._array(entry, LIST_VALUES).sum(dtype=float))

    def numbers(self, entry: _Entry, most: int) -> list[int]:
        """The first `most` whole numbers of an entry."""
        return [int(value) for value in self._array(entry, most)]

    def _array(self, entry: _Entry, most: int) -> NDArray[Any]:
        form, count = _NUMBERS.get(entry.type), min(entry.count, most)
        if not form or entry.at + count * _SIZES[entry.type] > len(self._data):
            return np.zeros(0)
        return np.frombuffer(self._data, f"{self._order}u{_SIZES[entry.type]}", count, entry.at)


def orientation(exif: bytes | memoryview) -> int:
    """The orientation in an EXIF block, 1 to 8; 1 where it says none, for broken metadata makes no photo unreadable."""
    exif = exif[6:] if bytes(exif[:6]) == b"Exif\0\0" else exif
    try:
        tiff = _Tiff(exif, Parts())
        for entry in tiff.directory(tiff.first):
            if entry.tag == _ORIENTATION:
                (found, *_) = tiff.numbers(entry, 1) or [1]
                return found if 1 <= found <= 8 else 1
    except ImageError:
        pass
    return 1


def scan(data: bytes) -> Head:
    """Raises ImageUnsupported for a RAW, ImageError for a directory that Pillow or libtiff should not follow."""
    parts = Parts()
    tiff = _Tiff(data, parts)
    if data[8:10] == b"CR":
        raise ImageUnsupported(RAW)
    entries = {entry.tag: entry for entry in tiff.directory(tiff.first)}
    if _is_raw(tiff, entries):
        raise ImageUnsupported(RAW)
    # Each byte of a real file is pointed at once. Else a small file could hold as much metadata as it likes.
    if sum(entry.size_bytes for entry in entries.values() if entry.size_bytes > 8) > len(data):
        raise damaged("directory")
    for tag, entry in entries.items():
        looked_at = tag <= _LAST_OF_PILLOWS or tag == _XMP
        if looked_at and entry.type not in _BYTES and entry.count > (LIST_VALUES if tag in _LISTS else VALUES):
            raise damaged("directory")
    # The same for pixels: else each of many strips could be decompressed out of the whole file.
    sizes_bytes = [tiff.total(entries[tag]) for tag in (_STRIP_SIZES, _TILE_SIZES) if tag in entries]
    if _first(tiff, entries, _COMPRESSION, 1) != 1 and max(sizes_bytes, default=0) > len(data):
        raise ImageTruncated
    return Head(format="TIFF", parts=parts.visited)


def _first(tiff: _Tiff, entries: dict[int, _Entry], tag: int, default: int = 0) -> int:
    found = tiff.numbers(entries[tag], 1) if tag in entries else []
    return found[0] if found else default


def _is_raw(tiff: _Tiff, entries: dict[int, _Entry]) -> bool:
    """Whether what can be decoded is a thumbnail, and the picture is what a sensor saw."""
    if _DNG_VERSION in entries:
        return True
    subs = tiff.numbers(entries[_SUB_IFDS], SUB_DIRECTORIES) if _SUB_IFDS in entries else []
    if subs and _first(tiff, entries, _SUBFILE) & 1:  # the first picture is a reduced one of another
        return True
    directories = [entries]
    for at in subs:
        try:
            directories.append({entry.tag: entry for entry in tiff.directory(at)})
        except ImageError:
            continue
    return any(
        _first(tiff, each, _PHOTOMETRIC) in _RAW_PHOTOMETRIC or _first(tiff, each, _COMPRESSION) in _RAW_COMPRESSION
        for each in directories
    )
