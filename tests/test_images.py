from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from faceapp import images
from faceapp.errors import FaceappError, ImageError, ImageTooLarge, ImageTruncated, ImageUnsupported
from faceapp.schema import Photo

LIMITS = {"max_pixels": 1_000_000, "max_side_px": 2_000}
RED, GREEN, BLUE, YELLOW = (220, 20, 20), (20, 200, 20), (20, 20, 220), (220, 220, 20)


def corners(width: int = 96, height: int = 64) -> Image.Image:
    """Red top left, green top right, blue bottom left, yellow bottom right."""
    image = Image.new("RGB", (width, height))
    half = (width // 2, height // 2)
    for colour, place in ((RED, (0, 0)), (GREEN, (half[0], 0)), (BLUE, (0, half[1])), (YELLOW, half)):
        image.paste(colour, (*place, place[0] + half[0], place[1] + half[1]))
    return image


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def assert_upright(image: Image.Image) -> None:
    """The corners have the colours of `corners`, but for lossy compression."""
    width, height = image.size
    for colour, place in (
        (RED, (width // 4, height // 4)),
        (GREEN, (3 * width // 4, height // 4)),
        (BLUE, (width // 4, 3 * height // 4)),
        (YELLOW, (3 * width // 4, 3 * height // 4)),
    ):
        found = np.asarray(image)[place[1], place[0]]
        assert np.abs(found - np.array(colour, float)).max() < 40, (place, found, colour)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "HEIF", "GIF", "BMP", "TIFF"])
def test_every_format_is_read(format: str) -> None:
    data = encoded(corners(), format)

    decoded = images.decode(data, **LIMITS)

    assert decoded.photo == Photo(width=96, height=64, format=format)
    assert images.inspect(data, **LIMITS) == decoded.photo
    assert (decoded.image.mode, decoded.image.size, decoded.scale) == ("RGB", (96, 64), 1.0)
    assert_upright(decoded.image)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(format: str, orientation: int) -> None:
    # what a camera held so stores: the inverse of turning upright (6 and 8 undo each other, the others themselves)
    inverse = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}.get(
        orientation, images._UPRIGHT.get(orientation)
    )
    stored = corners() if inverse is None else corners().transpose(inverse)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(stored, format, exif=exif)

    decoded = images.decode(data, **LIMITS)

    assert decoded.photo == images.inspect(data, **LIMITS) == Photo(width=96, height=64, format=format)
    assert decoded.image.size == (96, 64)
    assert_upright(decoded.image)


def test_heic_orientation_is_applied_once() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = encoded(corners().transpose(Image.Transpose.ROTATE_90), "HEIF", exif=exif.tobytes())

    decoded = images.decode(data, **LIMITS)

    assert decoded.photo == images.inspect(data, **LIMITS) == Photo(width=96, height=64, format="HEIF")
    assert_upright(decoded.image)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_exif_block_does_not_hide_the_photo() -> None:
    data = encoded(corners(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xffnonsense")

    assert_upright(images.decode(data, **LIMITS).image)


def test_a_large_jpeg_is_scaled_while_it_is_decoded() -> None:
    data = encoded(corners(1601, 1203), "JPEG")
    limits = {"max_pixels": 10_000_000, "max_side_px": 2_000}

    small = images.decode(data, **limits, draft_side_px=300)
    full = images.decode(data, **limits, draft_side_px=0)

    assert small.photo == full.photo == Photo(width=1601, height=1203, format="JPEG")
    assert (small.scale, small.image.size) == (4.0, (401, 301))
    assert (full.scale, full.image.size) == (1.0, (1601, 1203))
    assert_upright(small.image)


def test_a_phone_photo_with_a_second_picture_behind_is_a_jpeg() -> None:
    data = encoded(corners(1600, 1200), "MPO", save_all=True, append_images=[corners(96, 64)])
    limits = {"max_pixels": 10_000_000, "max_side_px": 2_000}

    decoded = images.decode(data, **limits)

    assert decoded.photo == Photo(width=1600, height=1200, format="JPEG")
    assert_upright(decoded.image)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_colour_mode_becomes_rgb(mode: str) -> None:
    ramp = np.linspace(0, 255, 256).astype(np.uint8)[None].repeat(4, 0)
    if mode == "I;16":
        image = Image.fromarray(ramp.astype(np.uint16) * 257)
    elif mode in ("I", "F"):
        image = Image.fromarray(ramp.astype(np.int32 if mode == "I" else np.float32) * 1000)
    elif mode == "P":
        image = Image.fromarray(ramp).convert("RGB").quantize(256)
    else:
        image = Image.fromarray(ramp).convert("RGB").convert(mode)
    assert image.mode == mode

    decoded = images.decode(encoded(image, "TIFF"), **LIMITS).image

    grey = np.asarray(decoded.convert("L")).astype(int)
    assert decoded.mode == "RGB"
    if mode == "1":
        assert set(np.unique(grey)) == {0, 255}
    else:
        assert np.abs(grey - ramp).max() <= 2


@pytest.mark.parametrize(
    ("values", "greys"),
    [
        ([0.0, 1.0, np.nan], [0, 255, 0]),
        ([-3.4e38, 0.0, 3.4e38], [0, 128, 255]),
        ([-np.inf, 0.0, np.inf], [0, 128, 255]),
        ([7.0, 7.0, 7.0], [0, 0, 0]),
        ([0.0, 1e-45, 1e-45], [0, 0, 0]),
    ],
    ids=["not a number", "the largest", "infinite", "all the same", "too little to tell"],
)
def test_floats_of_any_size_are_grey(values: list[float], greys: list[int]) -> None:
    picture = Image.fromarray(np.array(values, np.float32)[None].repeat(4, 0))

    decoded = images.decode(encoded(picture, "TIFF"), **LIMITS).image

    assert [decoded.getpixel((x, 1)) for x in range(3)] == [(grey, grey, grey) for grey in greys]


def test_16_bit_png_keeps_its_brightness() -> None:
    grey = np.full((8, 8), 128 * 257, np.uint16)

    decoded = images.decode(encoded(Image.fromarray(grey), "PNG"), **LIMITS).image

    assert decoded.getpixel((4, 4)) == (128, 128, 128)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_what_is_transparent_is_white(format: str) -> None:
    image = Image.new("RGBA", (32, 32), (200, 0, 0, 0))
    image.paste((200, 0, 0, 255), (16, 0, 32, 32))

    decoded = images.decode(encoded(image, format, **({"lossless": True} if format == "WEBP" else {})), **LIMITS).image

    assert (decoded.getpixel((4, 16)), decoded.getpixel((24, 16))) == ((255, 255, 255), (200, 0, 0))


def test_a_transparent_palette_colour_is_white() -> None:
    image = corners().quantize(8)
    place = image.getpixel((4, 4))

    decoded = images.decode(encoded(image, "PNG", transparency=place), **LIMITS).image

    assert decoded.getpixel((4, 4)) == (255, 255, 255)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (96, 64), RED), Image.new("RGB", (96, 64), GREEN)]
    data = encoded(corners(), format, save_all=True, append_images=frames)

    assert_upright(images.decode(data, **LIMITS).image)


def test_the_smallest_photo_is_one_pixel() -> None:
    decoded = images.decode(encoded(Image.new("RGB", (1, 1), RED), "PNG"), **LIMITS)

    assert decoded.photo == Photo(width=1, height=1, format="PNG")


def either(data: bytes, expected: type[FaceappError], *, inspected: bool = True, **limits: int) -> FaceappError:
    """Decoding fails as expected, and so does the inspection of the headers alone unless it cannot know."""
    if inspected:
        with pytest.raises(expected):
            images.inspect(data, **(LIMITS | limits))
    with pytest.raises(expected) as caught:
        images.decode(data, **(LIMITS | limits))
    assert type(caught.value) is expected
    return caught.value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"this is a text file that somebody named photo.jpg\n",
        b"%PDF-1.7\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b"\x1f\x8b\x08\0",
    ],
)
def test_what_is_no_photo_is_unsupported(data: bytes) -> None:
    either(data, ImageUnsupported)


def test_a_format_that_pillow_knows_but_we_do_not_is_unsupported() -> None:
    either(encoded(corners(), "PPM"), ImageUnsupported)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("part", [0.3, 0.5, 0.9, 0.999])
def test_a_truncated_photo_is_refused_from_its_headers_already(format: str, part: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8))
    data = encoded(noise, format, **({"progressive": part > 0.6} if format == "JPEG" else {}))

    either(data[: int(len(data) * part)], ImageTruncated)


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "HEIF"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_other_truncated_photos_are_refused(format: str, part: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8))
    data = encoded(noise, format)

    with pytest.raises(ImageError):
        images.decode(data[: int(len(data) * part)], **LIMITS)


@pytest.mark.parametrize("kept_bytes", [3, 10, 25])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "HEIF"])
def test_a_photo_cut_off_in_its_headers_is_an_image_error(format: str, kept_bytes: int) -> None:
    with pytest.raises(ImageError):
        images.inspect(encoded(corners(), format)[:kept_bytes], **LIMITS)


def test_the_end_of_a_preview_is_not_the_end_of_the_photo() -> None:
    preview = encoded(corners(48, 32), "JPEG")
    data = encoded(corners(), "JPEG", exif=b"Exif\0\0" + preview)
    assert data.count(b"\xff\xd9") >= 2

    either(data[:-40], ImageTruncated)


def test_bytes_behind_the_photo_do_not_matter() -> None:
    for format in ("JPEG", "PNG"):
        data = encoded(corners(), format) + b"\xff\xda trailer of a motion photo"
        assert_upright(images.decode(data, **LIMITS).image)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred kB whose pixels would take width * height * 3 bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    error = either(bomb(60_000, 60_000), ImageTooLarge, max_side_px=65_500, max_pixels=50_000_000)

    assert "60000 x 60000" in error.detail


def test_20000_px_wide_is_too_wide() -> None:
    error = either(encoded(Image.new("L", (20_000, 2)), "JPEG"), ImageTooLarge, max_side_px=16_000)

    assert "20000 x 2" in error.detail


def test_the_limits_themselves_are_allowed() -> None:
    data = encoded(corners(100, 50), "PNG")

    assert images.inspect(data, max_pixels=5000, max_side_px=100).width == 100
    either(data, ImageTooLarge, max_pixels=4999)
    either(data, ImageTooLarge, max_side_px=99)


def test_inspecting_a_png_decodes_no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Image.Image) -> None:
        raise AssertionError("decoded")

    data = encoded(corners(), "PNG")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)

    assert images.inspect(data, **LIMITS) == Photo(width=96, height=64, format="PNG")


ENCODED = {format: encoded(corners(), format) for format in ("JPEG", "PNG", "WEBP", "HEIF", "GIF", "BMP", "TIFF")}


@given(
    format=st.sampled_from(sorted(ENCODED)),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=20),
    kept=st.floats(0.0, 1.0),
)
def test_damaged_photos_give_image_errors_and_nothing_else(
    format: str, changes: list[tuple[float, int]], kept: float
) -> None:
    data = bytearray(ENCODED[format])
    for where, value in changes:
        data[int(where * len(data))] = value
    damaged = bytes(data[: int(kept * len(data)) + 1])

    for read in (images.inspect, images.decode):
        try:
            read(damaged, **LIMITS)
        except ImageError:
            continue


def test_real_photos(samples: dict[str, Path]) -> None:
    sizes = {}
    for name, path in samples.items():
        decoded = images.decode(path.read_bytes(), max_pixels=50_000_000, max_side_px=16_000)
        assert decoded.photo.width == pytest.approx(decoded.image.width * decoded.scale, abs=decoded.scale)
        sizes[name] = (decoded.photo.width, decoded.photo.height)
    assert sizes["astronaut.png"] == (512, 512)
    assert sizes["obama_partial_face.jpg"] == (491, 1137)
