"""From a photo's bytes to its size, and to an upright RGB picture."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pillow_heif
from PIL import ExifTags, Image

from faceapp.errors import ImageError, ImageTooLarge, ImageTruncated
from faceapp.images.formats import scan
from faceapp.images.scanning import Head
from faceapp.schema import Photo

# Thumbnails, depth maps and other pictures are none of ours, and libheif would look at each.
pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
# Pillow's own bomb limit is one number for the process, and it warns where we must refuse: ours replaces it.
Image.MAX_IMAGE_PIXELS = None

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

GREY = 128
HEAD_BYTES = 64
"""So much of the rest tells Pillow that the header is over."""
DECODED_FACTOR = 4
"""A photo may be made of so many times the pixels that it may have: of its tiles' edges and its alpha."""
SCANNED_PX = 2_000_000_000
"""Pixels of all passes of a progressive JPEG. 64 million in 31 passes take 2 s of one core."""
SAMPLE_BITS = (8, 10, 12, 14, 16)
"""Of the samples that cameras store in 16 bits."""
FILLER = bytes(range(1, 255)) * 4
"""Bytes without a marker, as the data of a scan that goes on."""

_PLUGIN_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    Image.DecompressionBombError,
    struct.error,
    zlib.error,
)
"""What Pillow's plugins raise for malformed files. Not a time limit's signal, which arrives in the middle of them."""


@dataclass(frozen=True, kw_only=True)
class DecodedPhoto:
    """An upright RGB picture.

    `photo` has the full size in pixels; `image` may be smaller, each of its pixels is `scale` pixels of the photo.
    """

    image: Image.Image
    photo: Photo
    scale: float


def inspect(data: bytes, *, max_pixels: int, max_side_px: int, max_jpeg_pixels: int = 0) -> Photo:
    """Format and upright size from the headers alone, without decoding a pixel.

    A JPEG that is decoded at a part of its size may have `max_jpeg_pixels` (0: `max_pixels`). Raises ImageUnsupported
    for what is no photo or a RAW, ImageTooLarge beyond the limits or for what takes too much work, ImageTruncated when
    the file visibly ends too early, ImageError when its headers make no sense.
    """
    head = scan(data)
    limits = (max_pixels, max_jpeg_pixels, max_side_px)
    if head.size:
        _check_size(head, *head.size, *limits)
    begin = head.head + data[head.start : head.start + HEAD_BYTES] if head.head else data
    with _open(begin, head) as image:
        return _checked(image, head, *limits)


def decode(
    data: bytes, *, max_pixels: int, max_side_px: int, max_jpeg_pixels: int = 0, draft_side_px: int = 640
) -> DecodedPhoto:
    """Decode to upright RGB: the first frame of an animation, transparency over white, 16 bits brought to 8.

    A JPEG whose shorter side is at least twice `draft_side_px` is scaled by 1/2, 1/4 or 1/8 while it is decoded, which
    is much faster; 0 decodes every pixel. Raises what `inspect` raises; a photo that is cut off is ImageTruncated,
    never a picture with a grey rest.
    """
    head = scan(data)
    limits = (max_pixels, max_jpeg_pixels, max_side_px)
    if head.size:
        _check_size(head, *head.size, *limits)
    with _open(head.file(data), head) as image:
        photo = _checked(image, head, *limits)
        scale = _load(image, draft_side_px)
        if head.format == "JPEG" and (not head.whole or _ends_grey(image)):
            _check_complete(data, head, image, draft_side_px)
        rgb, orientation = _rgb(image, head.bits), _orientation(image, head)
        if orientation in _UPRIGHT:
            rgb = rgb.transpose(_UPRIGHT[orientation])
        return DecodedPhoto(image=rgb, photo=photo, scale=scale)


def _load(image: Image.Image, draft_side_px: int) -> float:
    """Decode the opened image, and return how many of its pixels are one now."""
    full_width = image.width
    if draft_side_px and image.format == "JPEG":
        image.draft(None, (draft_side_px, draft_side_px))
    scale, size = float(round(full_width / image.width)), image.size
    image.load()
    if image.size != size:  # an HEIC's container may lie: every length of the answer would be wrong
        raise ImageError("The photo is damaged: it has another size than its header says.")
    return scale


def _ends_grey(image: Image.Image) -> bool:
    """Whether the picture may have a grey rest: libjpeg makes one where the end marker comes too early."""
    last = image.getpixel((image.width - 1, image.height - 1))
    return last in (GREY, (GREY,) * len(image.getbands()))


def _check_complete(data: bytes, head: Head, image: Image.Image, draft_side_px: int) -> None:
    """Raise ImageTruncated when not all of a JPEG's picture is there: then it depends on what follows the last byte,
    where libjpeg puts a grey rest.
    """
    with _open(head.file(data, tail=FILLER + head.tail), head) as other:
        _load(other, draft_side_px)
        if other.tobytes() != image.tobytes():
            raise ImageTruncated


@contextmanager
def _open(data: bytes, head: Head) -> Iterator[Image.Image]:
    """The lazily opened image; every error inside the block comes out as an ImageError."""
    try:
        with Image.open(io.BytesIO(data), formats=(head.format,)) as image:
            yield image
    except MemoryError as error:  # a limit of the process, which every other one has, too
        raise ImageTooLarge("The photo needs more memory to be decoded than one may take here.") from error
    except _PLUGIN_ERRORS as error:  # the plugins raise nearly every builtin exception on malformed files
        said = str(error).lower()
        if isinstance(error, EOFError) or "truncated" in said or "end of file" in said:
            raise ImageTruncated from error
        raise ImageError from error


def _check_size(head: Head, width: int, height: int, max_pixels: int, max_jpeg_pixels: int, max_side_px: int) -> None:
    # Decoded small, line by line; in several passes it would be held in memory as a whole.
    small = head.format == "JPEG" and head.scans == 1
    most = max(max_pixels, max_jpeg_pixels) if small else max_pixels
    if width < 1 or height < 1:
        raise ImageError("The photo has no pixels.")
    if max(width, height) > max_side_px:
        raise ImageTooLarge(f"The photo is {width} x {height} pixels: no side may be longer than {max_side_px:,}.")
    if width * height > most:
        raise ImageTooLarge(f"The photo is {width} x {height} pixels: it may have at most {most:,}.")
    if width * height * head.scans > SCANNED_PX:
        raise ImageTooLarge(f"The photo is a JPEG of {width} x {height} pixels in {head.scans} passes: save it anew.")
    if head.decoded_px > DECODED_FACTOR * max_pixels:
        raise ImageTooLarge("The photo is made of many more pixels than it shows: save it anew.")


def _checked(image: Image.Image, head: Head, max_pixels: int, max_jpeg_pixels: int, max_side_px: int) -> Photo:
    width, height = image.size
    _check_size(head, width, height, max_pixels, max_jpeg_pixels, max_side_px)
    if _orientation(image, head) >= 5:
        width, height = height, width
    return Photo(width=width, height=height, format=head.format)


def _orientation(image: Image.Image, head: Head) -> int:
    """The EXIF orientation that is still to be applied, 1 to 8."""
    if head.orientation:
        return head.orientation
    # An AVIF's boxes, as Pillow writes them into its EXIF.
    found = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _rgb(image: Image.Image, bits: int) -> Image.Image:
    if image.mode == "RGB":
        return image.copy()  # the opened file is closed behind us
    if image.mode.startswith(("I", "F")):
        return _eight_bits(image, bits).convert("RGB")
    if "A" in image.mode or "a" in image.mode or image.has_transparency_data:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(page, layer).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image, bits: int) -> Image.Image:
    """Grey with 16 or more bits a pixel (Pillow's own conversion would clip everything above 255 to white).

    Cameras store 10 to 14 bits in 16, which would be too dark to find a face in. The brightest pixel tells: it is
    within `bits`, which the file names, or else within the fewest that cameras have. A photo taken at night in 16 bits
    whose lights are below a quarter of the range is brightened by that, and loses nothing.
    """
    grey = np.nan_to_num(np.array(image, np.float32), copy=False)
    if image.mode.startswith("I;16"):
        brightest, named = float(grey.max()), 2.0**bits - 1
        depths = [2.0**each - 1 for each in SAMPLE_BITS]
        low, high = 0.0, named if brightest <= named else next(most for most in depths if brightest <= most)
    else:  # 32-bit integers and floats have no agreed range
        np.clip(grey, -FLOAT_MOST, FLOAT_MOST, out=grey)
        low, high = float(grey.min()), float(grey.max())
    # In place: a photo of 64 million pixels takes 200 MB each time.
    grey -= low
    grey *= min(255 / ((high - low) or 1), FLOAT_MOST)
    return Image.fromarray(np.rint(grey, out=grey).astype(np.uint8))
