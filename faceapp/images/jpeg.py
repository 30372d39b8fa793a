"""JPEG (ITU-T T.81): a decoder needs the tables, the frame and the scans, and of the metadata nothing.

Everything else before the picture (EXIF, XMP, colour profiles, previews) is jumped over and left out of what Pillow is
given, which would read each byte of it. Behind the first scan, only markers are looked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from faceapp.errors import ImageTooLarge, ImageTruncated, ImageUnsupported
from faceapp.images import tiff
from faceapp.images.scanning import Head, Parts, damaged

MAGIC = b"\xff\xd8\xff"
START, END = b"\xff\xd8", b"\xff\xd9"

SEGMENTS = 1024
"""Before the picture. A preview of 20 MiB in extended XMP takes 320."""
GAP_BYTES = 65_536
"""Fill bytes and junk between the segments before the picture, all together, and fill bytes in a row in a scan."""
TABLE_BYTES = 65_536
"""Segments that a decoder needs, all together. They take less than a thousandth of that in a real photo."""
SCANS = 100
"""Passes of a progressive photo: encoders make 10, the best of them up to 20."""
BETWEEN_SCANS = 1024
"""Segments behind the first scan, and pairs of bytes in it that look like some."""
ZEROS = 1024
"""A longer run of zero bytes in a scan is a hole in the file, unless it is a large area of one colour."""

_SOI, _EOI, _SOS, _DHT = 0xD8, 0xD9, 0xDA, 0xC4
_READ_FRAMES = {0xC0, 0xC1, 0xC2}
_FRAMES = {*range(0xC0, 0xD0)} - {_DHT, 0xC8, 0xCC}
_ALONE = {0x01, *range(0xD0, 0xD8)}
_APP0, _APP1, _APP14 = 0xE0, 0xE1, 0xEE
_TABLES = {_DHT, 0xDB, 0xDD}
_MARKER = re.compile(rb"\xff([\x01-\xfe])")
_SCAN_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""Neither a stuffed byte nor a restart."""
_NEAR_BYTES = 512
"""So far, looking for a marker takes less than calling numpy does."""
_WINDOWS_BYTES = 4096, 262_144
"""How much is searched for a marker at once, at first and at most."""
AGAIN = "save it as an ordinary JPEG."


@dataclass(frozen=True)
class _Frame:
    marker: int
    width: int
    height: int
    components: dict[int, tuple[int, int]]
    """Identifier -> horizontal and vertical sampling."""

    def blocks(self, component: int) -> int:
        """Blocks of 8 x 8 samples of a component, or a few more."""
        h, v = self.components[component]
        widest = max(across for across, _ in self.components.values())
        highest = max(down for _, down in self.components.values())
        return (self.width * h // (widest * 8) + h + 1) * (self.height * v // (highest * 8) + v + 1)


class _Tables:
    """Of each Huffman table the code that is all zeros: its length in bits, and its symbol."""

    def __init__(self) -> None:
        self._zero: dict[tuple[int, int], tuple[int, int]] = {}

    def define(self, segment: bytes) -> None:
        at = 0
        while at + 17 <= len(segment):
            counts = segment[at + 1 : at + 17]
            bits = next((n for n, count in enumerate(counts, 1) if count), 0)
            if bits and at + 17 < len(segment):
                self._zero[segment[at] >> 4, segment[at] & 15] = bits, segment[at + 17]
            at += 17 + sum(counts)

    def flat_bits(self, *, ac: bool, table: int) -> int | None:
        """Bits that say "as before" or "nothing more" if all of them are zeros; None where zeros say another thing."""
        bits, symbol = self._zero.get((int(ac), table), (0, 0))
        nothing = symbol & 15 == 0 and symbol < 0xF0 if ac else symbol == 0
        return bits if nothing else None


def scan(data: bytes) -> Head:
    """Raises ImageUnsupported for the kinds of JPEG that no phone writes, ImageTooLarge for too many scans,
    ImageTruncated for a file that ends before its picture or has a hole in it, ImageError for a damaged one.

    A file without its end marker may have all of its picture: only its decoder can tell.
    """
    head = _Header(data)
    head.read()
    frame = head.frame
    if frame is None:
        raise damaged("header")
    scans, whole, end = _scans(data, head.scan_at, frame, head.tables)
    # As libjpeg decides (jdinput.c): then it holds all of the picture's coefficients, and reads every scan.
    several = frame.marker == 0xC2 or data[head.scan_at + 2] < len(frame.components)
    return Head(
        format="JPEG",
        orientation=head.orientation,
        size=(frame.width, frame.height),
        head=b"".join(head.kept),
        start=head.scan_at - 2,
        end=end,
        tail=END,
        scans=max(scans, 2) if several else 1,
        whole=whole,
        parts=head.parts.visited,
    )


class _Header:
    """What stands before the first scan."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.parts, self.tables = Parts(SEGMENTS), _Tables()
        self.kept, self._kept_bytes = [START], 0
        self.frame: _Frame | None = None
        self.orientation, self._exif = 1, False
        self.scan_at = 0
        """Where the first scan's header begins, behind its marker."""

    def read(self) -> None:
        at, gap_bytes = 2, GAP_BYTES
        while True:
            self.parts.visit()
            found = _MARKER.search(self._data, at, at + gap_bytes + 2)
            if not found:
                raise damaged("header") if at + gap_bytes + 2 < len(self._data) else ImageTruncated()
            gap_bytes -= found.start() - at
            marker, at = found[1][0], found.end()
            if marker in _ALONE:
                continue
            if marker in (_SOI, _EOI) or marker < 0xC0:
                raise damaged("header")
            length = int.from_bytes(self._data[at : at + 2], "big")
            if length < 2:
                raise damaged("header") if at + 2 <= len(self._data) else ImageTruncated()
            if at + length > len(self._data):
                raise ImageTruncated
            if marker == _SOS:
                self.scan_at = at
                return
            self._segment(marker, at, at + length)
            at += length

    def _segment(self, marker: int, at: int, end: int) -> None:
        begin = self._data[at + 2 : min(end, at + 8)]
        if marker in _FRAMES:
            self.frame = self._frame(marker, self._data[at + 2 : end])
        elif marker == _APP1 and begin == b"Exif\0\0" and not self._exif:
            self._exif = True
            self.orientation = tiff.orientation(self._data[at + 2 : end])
        elif marker == _DHT:
            self.tables.define(self._data[at + 2 : end])
        names_colours = (marker == _APP0 and begin[:5] == b"JFIF\0") or (marker == _APP14 and begin[:5] == b"Adobe")
        if marker in _FRAMES or marker in _TABLES or names_colours:
            self._kept_bytes += end - at
            if self._kept_bytes > TABLE_BYTES:
                raise damaged("tables")
            self.kept.append(self._data[at - 2 : end])

    def _frame(self, marker: int, segment: bytes) -> _Frame:
        if marker not in _READ_FRAMES:
            kind = (
                "arithmetic coding" if marker > 0xC8 else "lossless coding" if marker == 0xC3 else "hierarchical coding"
            )
            raise ImageUnsupported(f"The photo is a JPEG with {kind}, which this service does not read: {AGAIN}")
        if len(segment) < 6 or len(segment) < 6 + 3 * segment[5] or self.frame:
            raise damaged("header")
        if segment[0] != 8:
            raise ImageUnsupported(
                f"The photo is a JPEG with {segment[0]} bits a sample, and this service reads those with 8: {AGAIN}"
            )
        parts = [segment[6 + 3 * n : 9 + 3 * n] for n in range(segment[5])]
        components = {part[0]: (part[1] >> 4 or 1, part[1] & 15 or 1) for part in parts}
        if len(components) not in (1, 3, 4) or len(components) != len(parts):
            raise damaged("header")
        return _Frame(marker, int.from_bytes(segment[3:5], "big"), int.from_bytes(segment[1:3], "big"), components)


def _scans(data: bytes, at: int, frame: _Frame, tables: _Tables) -> tuple[int, bool, int]:
    """How many scans there are from the one whose header is at `at`, whether an end marker follows, and where they end.

    Goes from marker to marker as libjpeg does (jdmarker.c), which ignores those that are none.
    """
    scans, begin, allowed = 1, *_scan_header(data, at, frame, tables)
    for _ in range(BETWEEN_SCANS):
        behind = _behind_marker(data, begin)
        _check_holes(data, begin, behind or len(data), allowed)
        if not behind:
            return scans, False, _behind_data(data, len(data))
        marker = data[behind - 1]
        if marker == _EOI:
            return scans, True, _behind_data(data, behind - 2)
        if marker == _SOI or marker in _FRAMES:  # another picture
            return scans, False, _behind_data(data, behind - 2)
        if marker == _SOS:
            scans += 1
            if scans > SCANS:
                raise ImageTooLarge(f"The photo is a JPEG in more than {SCANS} passes: {AGAIN}")
            begin, allowed = _scan_header(data, behind, frame, tables)
        elif marker < 0xC0:  # none that means anything
            begin = behind
        else:
            begin = _behind_segment(data, behind)
            if marker == _DHT:
                tables.define(data[behind + 2 : begin])
    raise damaged("scans")


def _behind_data(data: bytes, end: int) -> int:
    """`end` without the first half of a pair of bytes whose second half is missing."""
    while data[end - 1] == 0xFF:
        end -= 1
    return end


def _behind_segment(data: bytes, at: int) -> int:
    behind = at + int.from_bytes(data[at : at + 2], "big")
    if behind > len(data):
        raise ImageTruncated
    if behind < at + 2:
        raise damaged("scans")
    return behind


def _scan_header(data: bytes, at: int, frame: _Frame, tables: _Tables) -> tuple[int, int]:
    """Where the scan's data begins, and how many bytes of it may be zeros in a row."""
    begin = _behind_segment(data, at)
    header = data[at + 2 : begin]
    count = header[0] if header else 0
    if len(header) < 4 + 2 * count or not 1 <= count <= 4:
        raise damaged("scans")
    first, last, bit = header[1 + 2 * count : 4 + 2 * count]
    bits = 0
    for n in range(count):
        component, used = header[1 + 2 * n : 3 + 2 * n]
        if component not in frame.components:
            raise damaged("scans")
        # The bits of a block that looks like the one before: of its mean, and of the rest.
        mean: int | None = 0 if first else 1 if bit >> 4 else tables.flat_bits(ac=False, table=used >> 4)
        rest = tables.flat_bits(ac=True, table=used & 15) if last else 0
        if mean is None or rest is None:
            return begin, ZEROS
        bits += frame.blocks(component) * (mean + rest)
    return begin, max(ZEROS, bits // 8)


def _check_holes(data: bytes, begin: int, end: int, allowed: int) -> None:
    """Raise ImageTruncated when a part of a scan is zeros, as of a file that was not copied whole.

    Zeros mean something to the decoder: it would make a picture of them, with nothing but a warning.
    """
    hole, zeros = bytes(ZEROS), 0
    at = data.find(hole, begin, end)
    while at >= 0:
        behind = _behind_zeros(data, at, end)
        zeros += behind - at
        if zeros > allowed:
            raise ImageTruncated("A part of the photo is missing: its file was not copied whole, send it again.")
        at = data.find(hole, behind, end)
    # libjpeg and Pillow begin with each block at the first of them (20 MiB: 10 s).
    if data.find(b"\xff" * GAP_BYTES, begin, end) >= 0:
        raise damaged("scans")


def _behind_zeros(data: bytes, at: int, end: int) -> int:
    window = _WINDOWS_BYTES[0]
    while at < end:
        found = np.frombuffer(data, np.uint8, min(window, end - at), at) != 0
        if found.any():
            return at + int(found.argmax())
        at += len(found)
        window = min(4 * window, _WINDOWS_BYTES[1])
    return end


def _behind_marker(data: bytes, at: int) -> int:
    """The place behind the next marker in a scan that is neither a stuffed byte nor a restart; 0 when there is none."""
    if near := _SCAN_MARKER.search(data, at, at + _NEAR_BYTES + 1):
        return near.end()
    at, window = at + _NEAR_BYTES, _WINDOWS_BYTES[0]
    while at < len(data) - 1:
        codes = np.frombuffer(data, np.uint8, min(window + 1, len(data) - at), at)
        first, second = codes[:-1], codes[1:]
        found = (first == 0xFF) & (second != 0) & (second != 0xFF) & (second & 0xF8 != 0xD0)
        if found.any():
            return at + int(found.argmax()) + 2
        at += len(first)
        window = min(4 * window, _WINDOWS_BYTES[1])
    return 0
