"""What the scanners share: the bounds on their work, and what they tell."""

from __future__ import annotations

from dataclasses import dataclass

from faceapp.errors import ImageError

PARTS = 4096
"""Segments, chunks, blocks or boxes that a file may have. Phones' photos of 200 tiles have 1,500."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a file's structure says, and what a decoder is to be given of the file."""

    format: str
    orientation: int = 1
    """EXIF's, 1 to 8, where it is to be applied after decoding; 0: Pillow knows it."""
    size: tuple[int, int] | None = None
    """As it is stored, in pixels, where a decoder would take memory before it says so."""
    head: bytes = b""
    """What the decoder reads instead of the file's first `start` bytes."""
    start: int = 0
    end: int | None = None
    tail: bytes = b""
    """What it reads after them."""
    decoded_px: int = 0
    """Pixels that are decoded to get the picture's, if they are not the same."""
    scans: int = 1
    """Passes over the whole picture, which the decoder holds in memory where there are several."""
    whole: bool = True
    """Whether the file says that it ends where it does."""
    bits: int = 0
    """Significant bits of a sample, if the file says so."""
    parts: int = 0
    """How many parts the scanner visited."""

    def file(self, data: bytes, *, tail: bytes | None = None) -> bytes:
        """The file that is to be decoded: `data` without what no decoder needs."""
        if not self.head:
            return data
        return b"".join((self.head, memoryview(data)[self.start : self.end], self.tail if tail is None else tail))


class Parts:
    """Counts the parts of a file. Raises ImageError when there are more than `most`, which no real one has."""

    def __init__(self, most: int = PARTS) -> None:
        self._most = most
        self.visited = 0

    def visit(self, number: int = 1) -> None:
        self.visited += number
        if self.visited > self._most:
            raise ImageError("The photo's file is in more pieces than a camera or a program makes: save it again.")


def damaged(what: str) -> ImageError:
    """The error of a file whose structure makes no sense; `what` is a noun."""
    return ImageError(f"The photo is damaged: its {what} cannot be read.")
