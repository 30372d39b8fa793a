"""Which format a file has, by its first bytes, and who scans it."""

from __future__ import annotations

from faceapp.errors import ImageUnsupported
from faceapp.images import bitmaps, heif, jpeg, png, tiff, webp
from faceapp.images.scanning import Head

FORMATS = ("JPEG", "PNG", "WEBP", "HEIF", "AVIF", "GIF", "BMP", "TIFF")

_RAW = (b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FUJIFILMCCD-RAW", b"FOVb", b"\0MRM", b"II\x1a\0\0\0HEAPCCDR")
"""Of Olympus, Panasonic and Leica, Fujifilm, Sigma, Minolta and older Canons; the others' are TIFF."""
_RAW_BRAND = b"crx "
"""Newer Canons' (CR3)."""


def scan(data: bytes) -> Head:
    """Find the format, and walk through the file's structure. Raises ImageUnsupported, and what the scanners raise."""
    if not data:
        raise ImageUnsupported("The photo is empty: it has no bytes.")
    if data.startswith(jpeg.MAGIC):
        return jpeg.scan(data)
    if data.startswith(png.MAGIC):
        return png.scan(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return webp.scan(data)
    if data.startswith(b"GIF8"):
        return bitmaps.scan_gif(data)
    if data.startswith(tiff.MAGIC):
        return tiff.scan(data)
    if data[4:8] == b"ftyp":
        return heif.scan(data, _brand(data))
    if data.startswith(_RAW):
        raise ImageUnsupported(tiff.RAW)
    if data.startswith(b"BM"):
        return bitmaps.scan_bmp(data)
    raise ImageUnsupported


def media_type(data: bytes) -> str:
    """The media type of a file by its first bytes alone; `application/octet-stream` if it begins like no photo."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:8] == b"ftyp":
        return "image/avif" if data[8:12] in heif.AVIF_BRANDS else "image/heif"
    known: dict[bytes | tuple[bytes, ...], str] = {
        jpeg.MAGIC: "image/jpeg",
        png.MAGIC: "image/png",
        b"GIF8": "image/gif",
        tiff.MAGIC: "image/tiff",
        b"BM": "image/bmp",
    }
    return next((kind for magic, kind in known.items() if data.startswith(magic)), "application/octet-stream")


def _brand(data: bytes) -> str:
    major, others = data[8:12], data[16 : min(int.from_bytes(data[:4], "big"), 256)]
    brands = {others[at : at + 4] for at in range(0, len(others) - 3, 4)}
    if major == _RAW_BRAND:
        raise ImageUnsupported(tiff.RAW)
    if major in heif.AVIF_BRANDS or (major in (b"mif1", b"msf1") and brands & heif.AVIF_BRANDS):
        return "AVIF"
    if major in heif.HEIF_BRANDS:
        return "HEIF"
    raise ImageUnsupported
