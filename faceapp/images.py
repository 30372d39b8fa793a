"""Photos as they arrive: sniff the format, hold the limits, turn upright, decode to RGB.

The bytes come from strangers. `inspect` reads headers only; nothing is decoded before its size is known to be within
the limits, and whatever goes wrong inside Pillow or libheif leaves this module as one of `ImageError`'s kinds.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pillow_heif
from PIL import ExifTags, Image

from faceapp.errors import ImageError, ImageTooLarge, ImageTruncated, ImageUnsupported
from faceapp.schema import Photo

FORMATS = ("JPEG", "PNG", "WEBP", "HEIF", "GIF", "BMP", "TIFF")

pillow_heif.register_heif_opener()
# Pillow's own bomb limit is one number for the process, and it warns where we must refuse: ours replaces it.
Image.MAX_IMAGE_PIXELS = None

_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the stored pixels upright (CIPA DC-008, tag 0x0112)."""

FLOAT_MOST = 1e38
"""Floats of single precision can be this far on both sides of 0 and still be subtracted (IEEE 754: up to 3.4e38)."""


@dataclass(frozen=True, kw_only=True)
class DecodedPhoto:
    """An upright RGB picture.

    `photo` has the full size in pixels; `image` may be smaller, each of its pixels is `scale` pixels of the photo.
    """

    image: Image.Image
    photo: Photo
    scale: float


def inspect(data: bytes, *, max_pixels: int, max_side_px: int) -> Photo:
    """Format and upright size from the headers alone, without decoding a pixel.

    Raises ImageUnsupported for what is no photo, ImageTooLarge beyond `max_pixels` or `max_side_px`, ImageTruncated
    when the file visibly ends too early, ImageError when its headers make no sense.
    """
    with _open(data) as image:
        return _checked(data, image, max_pixels=max_pixels, max_side_px=max_side_px)


def decode(data: bytes, *, max_pixels: int, max_side_px: int, draft_side_px: int = 640) -> DecodedPhoto:
    """Decode to upright RGB: the first frame of an animation, transparency over white, 16 bits brought to 8.

    A JPEG whose shorter side is at least twice `draft_side_px` is scaled by 1/2, 1/4 or 1/8 while it is decoded, which
    is much faster; 0 decodes every pixel. Raises what `inspect` raises; a photo that is cut off is ImageTruncated,
    never a picture with a grey rest.
    """
    with _open(data) as image:
        photo = _checked(data, image, max_pixels=max_pixels, max_side_px=max_side_px)
        orientation = _orientation(image)
        full_width = image.width
        if draft_side_px and photo.format == "JPEG":
            image.draft(None, (draft_side_px, draft_side_px))
        scale, size = float(round(full_width / image.width)), image.size
        image.load()
        if image.size != size:  # an HEIC's container may lie: every length of the answer would be wrong
            raise ImageError("The photo is damaged: it has another size than its header says.")
        rgb = _rgb(image)
        if orientation in _UPRIGHT:
            rgb = rgb.transpose(_UPRIGHT[orientation])
        return DecodedPhoto(image=rgb, photo=photo, scale=scale)


@contextmanager
def _open(data: bytes) -> Iterator[Image.Image]:
    """The lazily opened image; every error inside the block comes out as an ImageError."""
    if not data:
        raise ImageUnsupported("The photo is empty: it has no bytes.")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image
    except ImageError:
        raise
    except MemoryError as error:  # a limit of the process, which every other one has, too
        raise ImageTooLarge("The photo needs more memory to be decoded than one may take here.") from error
    except Exception as error:  # the plugins raise nearly every builtin exception on malformed files
        raise _explained(data, error) from error


def _explained(data: bytes, error: Exception) -> ImageError:
    """What a failure inside Pillow or libheif means to whoever sent the photo."""
    if not _known(data):
        return ImageUnsupported()
    said = str(error).lower()
    if isinstance(error, EOFError) or _cut_off(data) or "truncated" in said or "end of file" in said:
        return ImageTruncated()
    return ImageError()


def _checked(data: bytes, image: Image.Image, *, max_pixels: int, max_side_px: int) -> Photo:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError("The photo has no pixels.")
    if max(width, height) > max_side_px:
        raise ImageTooLarge(f"The photo is {width} x {height} pixels: no side may be longer than {max_side_px:,}.")
    if width * height > max_pixels:
        raise ImageTooLarge(f"The photo is {width} x {height} pixels: it may have at most {max_pixels:,}.")
    if _cut_off(data):
        raise ImageTruncated()
    if _orientation(image) >= 5:
        width, height = height, width
    # MPO is a JPEG with more pictures behind the first, as many phones write it
    return Photo(width=width, height=height, format="JPEG" if image.format == "MPO" else image.format or "")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that is still to be applied, 1 to 8."""
    if image.format in ("TIFF", "HEIF"):  # their decoders turn the picture themselves
        return 1
    try:
        # not image.getexif(): PNG's decodes all pixels to look for an EXIF block behind them
        found = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken metadata does not make a photo unreadable
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image.copy()  # the opened file is closed behind us
    if image.mode.startswith(("I", "F")):
        return _eight_bits(image).convert("RGB")
    if "A" in image.mode or "a" in image.mode or image.has_transparency_data:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(page, layer).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey with 16 or more bits a pixel (Pillow's own conversion would clip everything above 255 to white)."""
    grey = np.nan_to_num(np.array(image, np.float32), copy=False)
    if image.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    else:  # 32-bit integers and floats have no agreed range
        np.clip(grey, -FLOAT_MOST, FLOAT_MOST, out=grey)
        low, high = float(grey.min()), float(grey.max())
    # In place: a photo of 50 million pixels takes 200 MB each time.
    grey -= low
    grey *= min(255 / ((high - low) or 1), FLOAT_MOST)
    return Image.fromarray(np.rint(grey, out=grey).astype(np.uint8))


def _known(data: bytes) -> bool:
    """Whether the file begins like one of FORMATS."""
    webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    heif = data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS
    return data.startswith(_MAGIC) or webp or heif


def _cut_off(data: bytes) -> bool:
    """Whether the container says that bytes are missing at the end; False where it does not tell."""
    if data.startswith(b"\xff\xd8"):
        return data.find(b"\xff\xd9", _jpeg_scan(data)) < 0
    if data.startswith(b"\x89PNG"):
        return data.rfind(b"IEND") < 0
    if data.startswith(b"RIFF"):
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    return False


def _jpeg_scan(data: bytes) -> int:
    """Where a JPEG's first scan begins (ITU-T T.81, B.1): the end marker of an embedded preview must not count."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return at  # not a marker: let the decoder judge
        if data[at + 1] == 0xFF:  # fill byte
            at += 1
        elif data[at + 1] == 0xDA:
            return at
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return len(data)


def media_type(data: bytes) -> str:
    """The media type of a file by its first bytes alone; `application/octet-stream` if it begins like no photo."""
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:8] == b"ftyp":
        return "image/avif" if data[8:12] in (b"avif", b"avis") else "image/heif"
    known = {
        b"\x89PNG": "image/png",
        b"GIF8": "image/gif",
        b"II": "image/tiff",
        b"MM": "image/tiff",
        b"BM": "image/bmp",
    }
    return next((kind for magic, kind in known.items() if data.startswith(magic)), "application/octet-stream")
