"""What kind of file a photo of the gallery is, without looking into it."""

from __future__ import annotations

AVIF = frozenset({b"avif", b"avis"})


def media_type(data: bytes) -> str:
    """The media type of a file by its first bytes alone; `application/octet-stream` if it begins like no photo."""
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:8] == b"ftyp":
        return "image/avif" if _is_avif(data) else "image/heif"
    known = {
        b"\x89PNG": "image/png",
        b"GIF8": "image/gif",
        b"II": "image/tiff",
        b"MM": "image/tiff",
        b"BM": "image/bmp",
    }
    return next((kind for magic, kind in known.items() if data.startswith(magic)), "application/octet-stream")


def _is_avif(data: bytes) -> bool:
    """As faceapp.images tells it, which this does not use, since it brings every decoder with it."""
    major, others = data[8:12], data[16 : min(int.from_bytes(data[:4], "big"), 256)]
    brands = {others[at : at + 4] for at in range(0, len(others) - 3, 4)}
    return major in AVIF or (major in (b"mif1", b"msf1") and not brands.isdisjoint(AVIF))
