"""dlib's binary serialisation, read strictly: whatever is not exactly as expected is a WeightsError.

The format is the one of dlib/serialize.h and dlib/cuda/tensor.h: an integer is a control byte (low four bits: number
of bytes, top bit: sign) and that many little-endian bytes; a float is a mantissa and a binary exponent, both such
integers; a string is its length and its bytes; a tensor is a version, four lengths and raw little-endian floats.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from faceapp.errors import WeightsError

_SPECIAL_EXPONENT = 32000
"""Exponents from here on stand for infinities and NaN (dlib/float_details.h): no trained weight has one."""


class DlibReader:
    """Reads one file from front to back. Every method raises WeightsError when the file does not fit."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._data = path.read_bytes()
        except OSError as error:
            raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
        self._at = 0

    def fail(self, why: str) -> NoReturn:
        raise WeightsError(f"{self._path} is damaged near byte {self._at}: {why}")

    def raw(self, size_bytes: int) -> bytes:
        """The next `size_bytes` bytes as they are."""
        found = self._data[self._at : self._at + max(0, size_bytes)]
        if len(found) != size_bytes:
            self.fail("the file ends too early")
        self._at += size_bytes
        return found

    def integer(self) -> int:
        control = self.raw(1)[0]
        size_bytes = control & 0x0F
        if control & 0x70 or not 1 <= size_bytes <= 8:
            self.fail("not an integer")
        value = int.from_bytes(self.raw(size_bytes), "little")
        return -value if control & 0x80 else value

    def integers(self, count: int) -> list[int]:
        return [self.integer() for _ in range(count)]

    def real(self) -> float:
        mantissa, exponent = self.integer(), self.integer()
        if abs(exponent) >= _SPECIAL_EXPONENT:
            self.fail("a weight is not finite")
        return math.ldexp(mantissa, exponent)

    def reals(self, count: int) -> list[float]:
        return [self.real() for _ in range(count)]

    def boolean(self) -> bool:
        found = self.raw(1)
        if found not in (b"0", b"1"):
            self.fail("not a truth value")
        return found == b"1"

    def expect(self, what: str, *wanted: str | int) -> None:
        """Read a string or an integer (as `wanted` is) and insist on its value."""
        text = isinstance(wanted[0], str)
        found: str | int = self.raw(self.integer()).decode("latin1") if text else self.integer()
        if found not in wanted:
            self.fail(f"{what} is {found!r}, not {' or '.join(map(repr, wanted))}")

    def tensor(self) -> NDArray[np.float32]:
        """float32 [samples, channels, rows, columns], finite."""
        self.expect("the tensor version", 2)
        shape = self.integers(4)
        if min(shape) < 0:
            self.fail(f"a tensor has the shape {shape}")
        values = np.frombuffer(self.raw(4 * math.prod(shape)), "<f4").reshape(shape)
        if not np.isfinite(values).all():
            self.fail("a weight is not finite")
        return values

    def end(self) -> None:
        """Insist that nothing is left."""
        if self._at != len(self._data):
            self.fail(f"{len(self._data) - self._at} bytes too many")

    def all_integers(self) -> NDArray[np.int64]:
        """The rest of the file, which must be integers and nothing else: int64 [n]. Much faster than one by one."""
        starts = np.asarray(self._integer_starts(), np.int64)
        data = np.frombuffer(self._data + bytes(8), np.uint8)
        control = data[starts]
        size_bytes = control & 0x0F
        values = np.zeros(len(starts), np.int64)
        for byte in range(int(size_bytes.max(initial=0))):
            part = data[starts + 1 + byte].astype(np.int64) << (8 * byte)
            values |= np.where(size_bytes > byte, part, 0)
        return np.where(control & 0x80, -values, values)

    def _integer_starts(self) -> list[int]:
        """The offsets of all control bytes from here to the end."""
        data, at, starts = self._data, self._at, []
        while at < len(data):
            size_bytes = data[at] & 0x0F
            if data[at] & 0x70 or not 1 <= size_bytes <= 8:
                self._at = at
                self.fail("not an integer")
            starts.append(at)
            at += 1 + size_bytes
        self._at = len(data)
        if at != len(data):
            self.fail("the file ends too early")
        return starts
