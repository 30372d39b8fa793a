"""Photos broken in every way: each is read, or refused as an ImageError, in bounded memory, and nothing crashes."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from faceapp.errors import ImageError
from tests.support.fuzzing import Broken, Edit, Judge, broken, cases, judge, mended


@cache
def photos() -> dict[str, bytes]:
    """Small real files of every format, in the variants that take different ways through their decoders."""
    y, x = np.mgrid[0:24, 0:32]
    rgb = Image.fromarray(np.dstack([x * 8, y * 10, (x * y) % 256]).astype(np.uint8))
    grey, sixteen = rgb.convert("L"), Image.fromarray((x * y * 80).astype(np.uint16))
    alpha = rgb.copy()
    alpha.putalpha(grey)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    frames: dict[str, Any] = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)], "duration": 50}
    made: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "jpeg": (rgb, "JPEG", {"exif": exif, "icc_profile": b"x" * 200}),
        "jpeg progressive": (rgb, "JPEG", {"progressive": True, "comment": b"a comment"}),
        "jpeg restarts": (rgb, "JPEG", {"restart_marker_blocks": 1}),
        "jpeg grey": (grey, "JPEG", {}),
        "jpeg cmyk": (rgb.convert("CMYK"), "JPEG", {}),
        "jpeg large": (rgb.resize((1400, 1300)), "JPEG", {"quality": 5}),
        "mpo": (rgb, "MPO", {"save_all": True, "append_images": [grey]}),
        "png": (rgb, "PNG", {"exif": exif}),
        "png palette": (alpha.quantize(16), "PNG", {}),
        "png 16 bits": (sixteen, "PNG", {}),
        "png 1 bit": (grey.convert("1"), "PNG", {"transparency": 0}),
        "png alpha": (alpha, "PNG", {"icc_profile": b"x" * 200, "dpi": (72, 72)}),
        "apng": (rgb, "PNG", frames),
        "webp": (rgb, "WEBP", {"exif": exif}),
        "webp lossless": (alpha, "WEBP", {"lossless": True}),
        "webp animated": (alpha, "WEBP", frames),
        "heic": (rgb, "HEIF", {}),
        "heic grey": (grey, "HEIF", {}),
        "heic alpha": (alpha, "HEIF", {"exif": exif.tobytes()}),
        "avif": (rgb, "AVIF", {"exif": exif, "speed": 9}),
        "avif alpha": (alpha, "AVIF", {"speed": 9}),
        "heic several": (rgb, "HEIF", {"save_all": True, "append_images": [grey]}),
        "gif": (rgb, "GIF", {}),
        "gif animated": (alpha, "GIF", frames),
        "bmp": (rgb, "BMP", {}),
        "bmp palette": (rgb.quantize(16), "BMP", {}),
        "bmp 1 bit": (grey.convert("1"), "BMP", {}),
        "tiff": (rgb, "TIFF", {}),
        "tiff big": (rgb, "TIFF", {"big_tiff": True}),
        "tiff float": (grey.convert("F"), "TIFF", {}),
        "tiff 16 bits": (sixteen, "TIFF", {}),
        "tiff several": (rgb, "TIFF", frames),
        "tiff group4": (grey.convert("1"), "TIFF", {"compression": "group4"}),
        **{
            f"tiff {name}": (rgb, "TIFF", {"compression": name})
            for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg", "zstd", "lzma")
        },
    }
    found = {}
    for name, (image, format, options) in made.items():
        out = io.BytesIO()
        image.save(out, format, **options)
        found[name] = out.getvalue()
    return found


@pytest.fixture(scope="module")
def read() -> Iterator[Judge]:
    with judge("photo", photos().values()) as made:
        yield made


REFUSALS = {ImageError.code, *(each.code for each in ImageError.__subclasses__())}


@pytest.mark.fuzz
@cases(400)
@example(each=Broken("heic grey", (Edit("flip", 0.65625, data=b"\x01"),)))  # twice as wide as its header says
@given(each=st.deferred(lambda: broken(list(photos()))))
def test_a_broken_photo_is_read_or_refused(read: Judge, each: Broken) -> None:
    assert read(each.of(photos())) in {"read", *REFUSALS}


UNITS: dict[str, list[bytes]] = {
    "jpeg": [
        b"\xff",
        b"\0",
        b"\xff\xd0",
        b"\xff\xee\0\2",
        b"\xff\xe1\0\x08Exif\0\0",
        b"\xff\xfe\0\4\xff\xd9",
        b"\xff\1",
    ],
    "jpeg progressive": [b"\xff\xda\0\x08\1\1\0\1\5\2", b"\xff\xc4\0\2", b"\xff\0", b"\xff\xdd\0\4\0\1"],
    "png": [b"\0\0\0\0tEXt\x9a\xc3\x10\xbb", b"\0\0\0\0IDAT5\xaf\x06\x1e", b"\0\0\0\0IEND\xaeB`\x82"],
    "webp": [b"ABCD\0\0\0\0", b"EXIF\2\0\0\0II", b"ANMF\0\0\0\0"],
    "gif": [b"!\xfe\0", b"!\xf9\4\0\0\0\0\0", b"!\xff\1a\0", b",\0\0\0\0\1\0\1\0\0\2\0"],
    "heic": [b"\0\0\0\x08free", b"\0\0\0\x0cmeta\0\0\0\0", b"\0\0\0\1moov\0\0\0\0\0\0\0\x10"],
    "avif": [b"\0\0\0\x08free", b"\0\0\0\x14ispe\0\0\0\0\0\0\0\1\0\0\0\1", b"\0\0\0\0free"],
    "tiff": [b"\0\1\3\0\1\0\0\0\1\0\0\0", b"\2\1\3\0\xff\xff\0\0\0\0\0\0"],
    "bmp": [b"\0\2\0\0", b"\1\0", b"\0\0"],
}
"""Parts of a format, the smallest that make its decoders go on."""


@pytest.mark.fuzz
@cases(60)
@given(each=st.sampled_from([(name, unit) for name, units in UNITS.items() for unit in units]), data=st.data())
def test_a_part_again_and_again_is_read_or_refused(read: Judge, each: tuple[str, bytes], data: st.DataObject) -> None:
    """S2: the judge counts the parts that are looked at, and the memory that they take."""
    name, unit = each
    whole = photos()[name]
    at = data.draw(st.sampled_from(places(whole)))
    number = data.draw(st.integers(1, 2**18 // len(unit)))

    assert read(mended(whole[:at] + unit * number + whole[at:])) in {"read", *REFUSALS}


def places(whole: bytes) -> list[int]:
    """Where one part of a file ends and another begins, as far as its formats' names tell, and its end."""
    names = rb"\xff[\xc0-\xfe]|IDAT|IEND|VP8|EXIF|!\xf9|,\0\0\0\0|meta|mdat|iprp|ispe"
    found = [match.start() - 4 * (match[0][:1].isalpha()) for match in re.finditer(names, whole)]
    return sorted({2, 8, 12, 33, *(at for at in found if at > 0), len(whole)})


@pytest.mark.fuzz
@cases(100)
@given(
    head=st.deferred(lambda: st.sampled_from([data[:16] for data in photos().values()])), rest=st.binary(max_size=400)
)
def test_anything_behind_a_real_beginning_is_refused(read: Judge, head: bytes, rest: bytes) -> None:
    assert read(head + rest) in {"read", *REFUSALS}
