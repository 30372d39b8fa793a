"""Photos broken in every way: each is read, or refused as an ImageError, in bounded memory, and nothing crashes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from faceapp.errors import ImageError
from tests.fuzzing import Broken, Edit, Judge, broken, cases, judge


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


@pytest.mark.fuzz
@cases(100)
@given(
    head=st.deferred(lambda: st.sampled_from([data[:16] for data in photos().values()])), rest=st.binary(max_size=400)
)
def test_anything_behind_a_real_beginning_is_refused(read: Judge, head: bytes, rest: bytes) -> None:
    assert read(head + rest) in {"read", *REFUSALS}
