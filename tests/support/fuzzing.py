"""What the fuzzing tests share: how many cases they try, and how real files are broken.

`make test-all` tries few cases, always the same ones. With FUZZ_EXAMPLES=N (`make fuzz`) every test tries N new ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.support.services import REPOSITORY

HUNG_S = 120.0
"""Reading a few thousand bytes takes milliseconds; a reader that is busy for so long does not come back."""
MEMORY_KIB = 128 * 1024
"""The most memory that one file may take: twice a photo of two million pixels, as RGBA over white or as float64."""

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))

_FIELDS = [
    0,
    1,
    2,
    3,
    7,
    8,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0x80000000,
    2**32 - 1,
]
_FIELDS += [2**63 - 1, 2**63, 2**64 - 1]


def cases(quick: int, *, slow: int = 1) -> settings:
    """`quick` cases in `make test-all`; in `make fuzz` FUZZ_EXAMPLES, or a `slow`th of them where each takes long."""
    return settings(
        max_examples=max(quick, EXAMPLES // slow),
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


@dataclass(frozen=True)
class Edit:
    """One way to break a file: `at` and `size` are parts of its length, 0 to 1; `data` is what comes in there."""

    kind: str
    at: float
    size: float = 0.0
    data: bytes = b""

    def apply(self, whole: bytes) -> bytes:
        at = round(self.at * max(0, len(whole) - 1))
        end = min(len(whole), at + 1 + round(self.size * 64))
        match self.kind:
            case "cut":
                return whole[:at]
            case "set":
                return whole[:at] + self.data + whole[at + len(self.data) :]
            case "flip":
                return whole[:at] + bytes([whole[at] ^ self.data[0]]) + whole[at + 1 :] if whole else whole
            case "insert":
                return whole[:at] + self.data + whole[at:]
            case "drop":
                return whole[:at] + whole[end:]
            case _:  # repeat
                return whole[:end] + whole[at:end] * 3 + whole[end:]


_part = st.floats(0, 1, width=32)
# The beginning of a file is its header, where a byte says more than anywhere else.
_place = st.one_of(_part, _part.map(lambda part: part / 16), _part.map(lambda part: part**3))
_field = st.builds(
    lambda value, size, order: (value % 2 ** (8 * size)).to_bytes(size, order),
    st.one_of(st.sampled_from(_FIELDS), st.integers(0, 2**32)),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from(["big", "little"]),
)
_edit = st.one_of(
    st.builds(Edit, st.just("flip"), _place, data=st.integers(0, 7).map(lambda bit: bytes([1 << bit]))),
    st.builds(Edit, st.just("set"), _place, data=_field),
    st.builds(Edit, st.just("set"), _place, data=_field),
    st.builds(Edit, st.just("insert"), _place, data=st.one_of(_field, st.binary(min_size=1, max_size=32))),
    st.builds(Edit, st.sampled_from(["drop", "repeat"]), _place, size=_part),
    st.builds(Edit, st.just("cut"), _part),
)


@dataclass(frozen=True)
class Broken:
    """A real file, broken: `splice` is another one from whose middle a piece comes in, `mended` its checksums right."""

    name: str
    edits: tuple[Edit, ...]
    splice: str = ""
    mended: bool = False

    def of(self, files: Mapping[str, bytes]) -> bytes:
        data = files[self.name]
        if self.splice:
            other = files[self.splice]
            at = len(data) // 2
            data = data[:at] + other[len(other) // 3 :]
        for edit in self.edits:
            data = edit.apply(data)
        return mended(data) if self.mended else data


def broken(names: list[str]) -> st.SearchStrategy[Broken]:
    """Files of these names, broken in one to six places."""
    return st.builds(
        Broken,
        st.sampled_from(names),
        st.lists(_edit, min_size=1, max_size=6).map(tuple),
        splice=st.one_of(st.just(""), st.just(""), st.just(""), st.sampled_from(names)),
        mended=st.booleans(),
    )


def mended(data: bytes) -> bytes:
    """The file with the checksums (PNG) and the size (RIFF) that its content has now: decoders look no further else."""
    if data.startswith(b"RIFF"):
        return data[:4] + struct.pack("<I", max(0, len(data) - 8) % 2**32) + data[8:]
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    at, parts = 8, [data[:8]]
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        parts += [data[at:end], struct.pack(">I", zlib.crc32(data[at + 4 : end]))]
        at = end + 4
    return b"".join(parts) + data[at:]


class Judge:
    """A process that reads files of one kind (tests/support/judges.py); another one after it crashed or hung."""

    def __init__(self, kind: str, whole: Iterable[bytes]) -> None:
        self._kind, self._whole = kind, list(whole)
        self._process: subprocess.Popen[bytes] | None = None
        self._idle_kib = 0

    def __call__(self, data: bytes) -> str:
        """`read`, or why the file was refused. Fails the test, and keeps the file, for everything else."""
        process = self._process or self._start()
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(len(data).to_bytes(4, "big") + data)
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it says why below
        ready, _, _ = select.select([process.stdout], [], [], HUNG_S)
        line = process.stdout.readline() if ready else b""
        if not line:
            why = f"its reader crashed with status {process.wait(240)}" if ready else "its reader hung"
            self.close()
            raise AssertionError(f"{self._kept(data)}: {why}")
        told = json.loads(line)
        if told["wrong"]:
            raise AssertionError(f"{self._kept(data)}: {told['wrong']}")
        if (took_kib := int(told["peak_kib"]) - self._idle_kib) > MEMORY_KIB:
            self.close()
            raise AssertionError(f"{self._kept(data)}: its reader took {took_kib:,} KiB")
        return str(told["outcome"])

    def close(self) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.judges", self._kind],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdin
        assert self._process.stdout
        # With the first file of each format its reader's own code is loaded: that memory is no file's.
        for data in self._whole:
            self._process.stdin.write(len(data).to_bytes(4, "big") + data)
            self._process.stdin.flush()
            told = json.loads(self._process.stdout.readline())
            assert told["outcome"] == "read", told
            self._idle_kib = int(told["peak_kib"])
        return self._process

    def _kept(self, data: bytes) -> Path:
        path = Path(tempfile.gettempdir()) / f"faceapp-{self._kind}-{hashlib.sha256(data).hexdigest()[:12]}"
        path.write_bytes(data)
        return path


@contextmanager
def judge(kind: str, whole: Iterable[bytes]) -> Iterator[Judge]:
    """A judge of files of one kind; `whole` are some that can be read."""
    made = Judge(kind, whole)
    try:
        yield made
    finally:
        made.close()
