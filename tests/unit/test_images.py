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
from faceapp.config import Settings
from faceapp.errors import FaceappError, ImageError, ImageTooLarge, ImageTruncated, ImageUnsupported
from faceapp.images import decoding, formats
from faceapp.images.formats import scan
from faceapp.people.media_types import media_type
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


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8))


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


@pytest.mark.parametrize("format", images.FORMATS)
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
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(held(orientation), format, exif=exif)

    decoded = images.decode(data, **LIMITS)

    assert decoded.photo == images.inspect(data, **LIMITS) == Photo(width=96, height=64, format=format)
    assert decoded.image.size == (96, 64)
    assert_upright(decoded.image)


def held(orientation: int) -> Image.Image:
    """`corners` as a camera held so stores them: the inverse of turning upright (6 and 8 undo each other)."""
    inverse = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}.get(
        orientation, decoding._UPRIGHT.get(orientation)
    )
    return corners() if inverse is None else corners().transpose(inverse)


@pytest.mark.parametrize("format", ["HEIF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_that_turns_the_picture_is_applied_once(format: str, orientation: int) -> None:
    """R2: with irot or imir, EXIF says the same for the record, and does not turn the picture once more."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "a camera"
    data = encoded(held(orientation), format, exif=exif.tobytes())
    assert (b"irot" in data or b"imir" in data) == (orientation > 1)

    decoded = images.decode(data, **LIMITS)

    assert decoded.photo == images.inspect(data, **LIMITS) == Photo(width=96, height=64, format=format)
    assert_upright(decoded.image)


@pytest.mark.parametrize("format", ["HEIF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_that_only_its_exif_turns_is_turned(format: str, orientation: int) -> None:
    """R2: as phones' viewers do."""
    other_tag = ExifTags.Base.Orientation + 1
    exif = Image.Exif()
    exif[other_tag] = orientation
    data = encoded(held(orientation), format, exif=exif.tobytes())
    tag, short = struct.pack("<H", other_tag), struct.pack("<HI", 3, 1)
    if tag + short not in data:
        tag, short = struct.pack(">H", other_tag), struct.pack(">HI", 3, 1)
    order = "<" if tag[0] == other_tag & 0xFF else ">"
    assert data.count(tag + short) == 1
    data = data.replace(tag + short, struct.pack(order + "H", ExifTags.Base.Orientation) + short)
    assert b"irot" not in data
    assert b"imir" not in data

    decoded = images.decode(data, **LIMITS)

    assert decoded.photo == images.inspect(data, **LIMITS) == Photo(width=96, height=64, format=format)
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


@pytest.mark.parametrize(("brightest", "as_bright"), [(4095, 255), (1023, 255), (900, 224), (5000, 78), (65535, 255)])
def test_samples_of_a_camera_in_16_bits_are_stretched(brightest: int, as_bright: int) -> None:
    """R13: 12 bits in 16 were too dark for a face."""
    ramp = np.linspace(0, brightest, 256).astype(np.uint16)[None].repeat(4, 0)

    decoded = images.decode(encoded(Image.fromarray(ramp), "PNG"), **LIMITS).image

    assert decoded.getpixel((255, 1)) == (as_bright,) * 3
    assert decoded.getpixel((0, 1)) == (0, 0, 0)


def test_a_png_that_names_its_significant_bits_is_stretched_by_those() -> None:
    """R13: by sBIT, where the samples are within it."""
    grey = encoded(Image.fromarray(np.full((8, 8), 900, np.uint16)), "PNG")
    after_header = 8 + 25
    named = grey[:after_header] + chunk(b"sBIT", b"\x0c") + grey[after_header:]

    assert images.decode(named, **LIMITS).image.getpixel((4, 4)) == (56, 56, 56)  # of 4095


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


@pytest.mark.parametrize(
    "data",
    [
        b"IIRO\x08\0\0\0",
        b"IIU\0\x18\0\0\0",
        b"II*\0\x10\0\0\0CR\x02\0\0\0\0\0",
        b"FUJIFILMCCD-RAW 0201FF383501",
        b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom",
    ],
    ids=["Olympus", "Panasonic", "Canon CR2", "Fujifilm", "Canon CR3"],
)
def test_a_raw_of_its_own_kind_is_named(data: bytes) -> None:
    """R3: it says what to send instead."""
    assert "RAW file" in either(data, ImageUnsupported).detail


def tiff_with(*entries: tuple[int, int, int], sub: tuple[tuple[int, int, int], ...] = ()) -> bytes:
    """A TIFF whose first directory has these tags, too (tag, type, value), and `sub` is a directory of it."""
    plain = encoded(corners(), "TIFF")
    (at,) = struct.unpack("<I", plain[4:8])
    (count,) = struct.unpack("<H", plain[at : at + 2])
    old = [struct.unpack("<HHI4s", plain[at + 2 + 12 * n : at + 14 + 12 * n]) for n in range(count)]
    new = [(tag, type, 1, struct.pack("<I", value)) for tag, type, value in entries]
    end = len(plain) + len(plain) % 2
    inner = b"".join(struct.pack("<HHII", tag, type, 1, value) for tag, type, value in sub)
    inner = struct.pack("<H", len(sub)) + inner + bytes(4)
    if sub:
        new.append((330, 4, 1, struct.pack("<I", end)))
    else:
        inner = b""
    tags = sorted({each[0]: each for each in [*old, *new]}.values())
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHI4s", *each) for each in tags) + bytes(4)
    return plain[:4] + struct.pack("<I", end + len(inner)) + plain[8:].ljust(end - 8, b"\0") + inner + directory


@pytest.mark.parametrize(
    "data",
    [
        tiff_with((50706, 1, 0x00000401)),
        tiff_with((254, 4, 1), sub=((254, 4, 0), (262, 3, 32803))),
        tiff_with((254, 4, 1), sub=((254, 4, 0),)),
        tiff_with(sub=((262, 3, 34892),)),
        tiff_with((262, 3, 32803)),
        tiff_with((259, 3, 34713)),
    ],
    ids=["DNGVersion", "NEF", "thumbnail first", "linear raw beside", "sensor", "Nikon's compression"],
)
def test_a_raw_laid_out_as_tiff_is_refused(data: bytes) -> None:
    """R3: what can be decoded of it is a thumbnail."""
    assert "RAW file" in either(data, ImageUnsupported).detail


def test_a_tiff_with_a_smaller_copy_beside_is_no_raw() -> None:
    """R3: an ordinary TIFF stays one."""
    data = tiff_with((271, 2, 0x00414243), sub=((254, 4, 1), (262, 3, 2)))

    assert_upright(images.decode(data, **LIMITS).image)


@pytest.mark.parametrize(
    ("marker", "bits", "sentence"),
    [
        (0xC3, 8, "lossless"),
        (0xC5, 8, "hierarchical"),
        (0xC9, 8, "arithmetic"),
        (0xCA, 8, "arithmetic"),
        (0xC1, 12, "12 bits"),
    ],
)
def test_a_jpeg_that_is_not_read_is_refused_at_the_door(marker: int, bits: int, sentence: str) -> None:
    """R13: it failed in the worker only, without saying why."""
    data = encoded(corners(), "JPEG")
    at = data.index(b"\xff\xc0")
    data = data[: at + 1] + bytes([marker]) + data[at + 2 : at + 4] + bytes([bits]) + data[at + 5 :]

    assert sentence in either(data, ImageUnsupported).detail


@pytest.mark.parametrize("data", [b"\xff\x0a" + bytes(20), b"\0\0\0\x0cJXL \r\n\x87\n", b"\0\0\0\x0cjP  \r\n\x87\n"])
def test_jpeg_xl_and_jpeg_2000_are_unsupported(data: bytes) -> None:
    """R13."""
    either(data, ImageUnsupported)


def test_a_format_that_pillow_knows_but_we_do_not_is_unsupported() -> None:
    either(encoded(corners(), "PPM"), ImageUnsupported)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
@pytest.mark.parametrize("part", [0.3, 0.5, 0.9, 0.999])
def test_a_truncated_photo_is_refused_from_its_headers_already(format: str, part: float) -> None:
    data = encoded(noise(), format)

    either(data[: int(len(data) * part)], ImageTruncated)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}, {"optimize": True}])
@pytest.mark.parametrize("part", [0.1, 0.3, 0.5, 0.9, 0.99])
def test_a_truncated_jpeg_never_has_a_grey_rest(options: dict[str, Any], part: float) -> None:
    """R12: only its decoder can tell it from one that lacks its end marker alone."""
    data = encoded(noise(), "JPEG", **options)

    # An end marker behind what is left of a progressive one makes a coarse picture of it, without a grey rest.
    for ending in (b"", b"\xff") if "progressive" in options else (b"", b"\xff", b"\xff\xd9"):
        either(data[: int(len(data) * part)] + ending, ImageTruncated, inspected=False)


def test_a_picture_that_ends_grey_is_whole() -> None:
    """R12: as one whose rest is missing looks."""
    for mode in ("RGB", "L", "CMYK"):
        grey = Image.new(mode, (300, 200), (128,) * len(Image.new(mode, (1, 1)).getbands()))
        assert images.decode(encoded(grey, "JPEG"), **LIMITS).image.size == (300, 200)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}, {"optimize": True}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_without_its_end_marker_is_whole(options: dict[str, Any], mode: str) -> None:
    """R12: all of its picture is there."""
    data = encoded(noise().convert(mode), "JPEG", **options)

    assert images.inspect(data[:-2], **LIMITS) == Photo(width=300, height=200, format="JPEG")
    for size_bytes in (len(data) - 1, len(data) - 2):
        assert images.decode(data[:size_bytes], **LIMITS).image == images.decode(data, **LIMITS).image


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}])
@pytest.mark.parametrize("ending", [b"", b"\xff\xd9"])
def test_a_jpeg_with_a_hole_is_refused(options: dict[str, Any], ending: bytes) -> None:
    """R12: a file that was not copied whole has zeros for its rest, and they mean something to a decoder."""
    data = encoded(noise(), "JPEG", quality=95, **options)
    half = len(data) // 2

    either(data[:half] + bytes(half - len(ending)) + ending, ImageTruncated)
    either(data[:half] + bytes(5000) + data[half + 5000 :], ImageTruncated)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}])
def test_a_large_area_of_one_colour_is_no_hole(options: dict[str, Any]) -> None:
    """R12: with tables of its own a page's white may be thousands of bytes of zeros."""
    page = Image.new("L", (2000, 2000), 255)
    page.paste(noise().convert("L"), (10, 10))
    data = encoded(page, "JPEG", **options)
    assert (bytes(1024) in data) == bool(options)

    assert images.decode(data, **LIMITS | {"max_pixels": 4_000_000}, draft_side_px=0).image.getpixel((1999, 1999)) == (
        255,
        255,
        255,
    )


@pytest.mark.parametrize("format", images.FORMATS)
def test_the_gallery_tells_formats_alike(format: str) -> None:
    """What a photo of the gallery is sent as, which is told without the decoders."""
    data = encoded(noise(), format)
    assert media_type(data) == f"image/{scan(data).format.lower()}" == f"image/{format.lower()}"


@pytest.mark.parametrize("major", [b"mif1", b"msf1", b"avif", b"avis", b"heic", b"hevc"])
@pytest.mark.parametrize("format", ["HEIF", "AVIF"])
def test_the_gallery_tells_brands_alike(format: str, major: bytes) -> None:
    """An AVIF whose major brand is mif1 was sent as image/heif."""
    data = encoded(noise(), format)
    data = data[:8] + major + data[12:]
    assert media_type(data) == f"image/{formats._brand(data).lower()}"


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "HEIF", "AVIF"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_other_truncated_photos_are_refused(format: str, part: float) -> None:
    data = encoded(noise(), format)

    with pytest.raises(ImageError):
        images.decode(data[: int(len(data) * part)], **LIMITS)


@pytest.mark.parametrize("kept_bytes", [3, 10, 25])
@pytest.mark.parametrize("format", images.FORMATS)
def test_a_photo_cut_off_in_its_headers_is_an_image_error(format: str, kept_bytes: int) -> None:
    with pytest.raises(ImageError):
        images.inspect(encoded(corners(), format)[:kept_bytes], **LIMITS)


def test_the_end_of_a_preview_is_not_the_end_of_the_photo() -> None:
    preview = encoded(corners(48, 32), "JPEG")
    data = encoded(corners(), "JPEG", exif=b"Exif\0\0" + preview)
    assert data.count(b"\xff\xd9") >= 2

    either(data[:-40], ImageTruncated, inspected=False)


def test_bytes_behind_the_photo_do_not_matter() -> None:
    for format in ("JPEG", "PNG"):
        data = encoded(corners(), format) + b"\xff\xda trailer of a motion photo"
        assert_upright(images.decode(data, **LIMITS).image)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred kB whose pixels would take width * height * 3 bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    error = either(bomb(60_000, 60_000), ImageTooLarge, max_side_px=65_500, max_pixels=50_000_000)

    assert "60000 x 60000" in error.detail


def test_20000_px_wide_is_too_wide() -> None:
    error = either(encoded(Image.new("L", (20_000, 2)), "JPEG"), ImageTooLarge, max_side_px=16_000)

    assert "20000 x 2" in error.detail


def of_size(data: bytes, width: int, height: int) -> bytes:
    """A JPEG that says so of its size."""
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


@pytest.mark.parametrize(("width", "height"), [(8160, 6144), (9248, 6936), (12_000, 9000), (16_320, 12_240)])
def test_phones_of_50_to_200_megapixels(width: int, height: int) -> None:
    """R5: within the default settings."""
    data = of_size(encoded(corners(), "JPEG"), width, height)

    assert images.inspect(data, **Settings().photo_limits) == Photo(width=width, height=height, format="JPEG")


def test_a_jpeg_that_is_decoded_as_a_whole_has_the_other_formats_limit() -> None:
    """R5: a progressive one, or one whose colours come one after the other, is held in memory as a whole."""
    data = of_size(encoded(corners(), "JPEG"), 2000, 1000)
    assert images.inspect(data, **LIMITS, max_jpeg_pixels=3_000_000).width == 2000
    progressive = of_size(encoded(corners(), "JPEG", progressive=True), 2000, 1000)
    either(progressive, ImageTooLarge, max_jpeg_pixels=3_000_000)
    colours = encoded(corners(), "JPEG")
    scan = colours.index(b"\xff\xda")
    one_colour = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0"
    apart = of_size(colours[:scan] + one_colour + colours[scan + 14 :], 2000, 1000)
    either(apart, ImageTooLarge, max_jpeg_pixels=3_000_000)


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


ENCODED = {format: encoded(corners(), format) for format in images.FORMATS}


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
