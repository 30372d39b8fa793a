"""What kind of file a photo of the gallery is, without looking into it."""

from __future__ import annotations


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
