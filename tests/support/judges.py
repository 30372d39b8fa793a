"""`python -m tests.support.judges KIND` reads files from standard input, so that a crash or a hang is its own.

A file is four bytes of length and its bytes; the answer is a line of JSON. A judge returns `read` or the reason that
the file was refused for, and raises for everything else that happens.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from faceapp import images
from faceapp.errors import ImageError, WeightsError
from faceapp.images import png, scanning

MAX_PIXELS = 2_000_000
MAX_SIDE_PX = 2_000
ADDRESSES_BYTES = 6 * 2**30


def photo(data: bytes) -> str:
    """Looking at the header and decoding have to agree."""
    limits = {"max_pixels": MAX_PIXELS, "max_side_px": MAX_SIDE_PX}
    seen, refused = None, ""
    visited, visit = 0, scanning.Parts.visit

    def counting(parts: scanning.Parts, number: int = 1) -> None:
        nonlocal visited
        visited += number
        visit(parts, number)

    setattr(scanning.Parts, "visit", counting)  # noqa: B010 - mypy forbids =
    try:
        seen = images.inspect(data, **limits)
    except ImageError as error:
        refused = error.code
    finally:
        setattr(scanning.Parts, "visit", visit)  # noqa: B010
    assert visited <= 2 * scanning.PARTS + len(data) // png.CHUNK_BYTES, visited
    decoded, code = None, ""
    try:
        decoded = images.decode(data, **limits)
    except ImageError as error:
        code = error.code
    if seen is None or decoded is None:
        assert seen or code == refused, (code, refused)
        return code
    width, height = decoded.image.size
    assert decoded.photo == seen
    assert decoded.image.mode == "RGB"
    assert width * height <= MAX_PIXELS
    assert abs(width * decoded.scale - seen.width) <= decoded.scale
    assert abs(height * decoded.scale - seen.height) <= decoded.scale
    return "read"


def landmarks(data: bytes) -> str:
    """What is read has to place five points."""
    from faceapp.recognition.landmarks import DlibLandmarks

    try:
        place = DlibLandmarks(_file(data))
    except WeightsError as error:
        return error.code
    with np.errstate(all="ignore"):  # the largest of float32 are numbers, too
        assert place(Image.linear_gradient("L").convert("RGB"), (40, 40, 200, 200)).shape == (5, 2)
    return "read"


def network(data: bytes) -> str:
    from faceapp.recognition import dlib_resnet

    try:
        dlib_resnet.load(_file(data))
    except WeightsError as error:
        return error.code
    return "read"


def course(data: bytes) -> str:
    """What is read has to be people and vectors of one length."""
    from faceapp.recognition import load_course_gallery

    try:
        people = load_course_gallery(_file(data))
    except WeightsError as error:
        return error.code
    assert all(isinstance(name, str) and row.shape == (512,) and row.dtype == np.float32 for name, row in people)
    return "read"


def vector(data: bytes) -> str:
    from faceapp.people.formats import unpack_vector

    try:
        found = unpack_vector(data)
    except ValueError:
        return "refused"
    assert found.rows.dtype == np.float32
    assert found.rows.ndim == 2
    assert len(found.rows) == 2
    assert np.isfinite(found.rows).all()
    return "read"


def snapshot(data: bytes) -> str:
    from faceapp.people.formats import unpack_snapshot

    try:
        found = unpack_snapshot(data)
    except ValueError:
        return "refused"
    assert found.rows.dtype == np.float32
    assert found.rows.shape[:2] == (2, len(found.keys))
    assert len(found.keys) == len(found.etags)
    return "read"


JUDGES: dict[str, Callable[[bytes], str]] = {
    each.__name__: each for each in (photo, landmarks, network, course, vector, snapshot)
}


def _file(data: bytes) -> Path:
    path = Path(tempfile.gettempdir()) / "file"  # of this process: see main
    path.write_bytes(data)
    return path


def main(kind: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES_BYTES, ADDRESSES_BYTES))
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as tempfile.tempdir:
        while head := sys.stdin.buffer.read(4):
            data = sys.stdin.buffer.read(int.from_bytes(head, "big"))
            try:
                told = {"outcome": JUDGES[kind](data), "wrong": ""}
            except BaseException:
                told = {"outcome": "", "wrong": traceback.format_exc()}
            told["peak_kib"] = str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
