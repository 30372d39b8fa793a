"""Photos of known faces for the first gallery and the tests: which they are, and where they lie.

They are not shipped: the photos are public (official portraits and a NASA picture), the repository stays small.
tools/samples.py fetches them, when the checkout is installed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from faceapp.errors import LocalError

PEOPLE: Mapping[str, tuple[str, ...]] = {
    "obama": ("obama.jpg", "obama2.jpg"),
    "biden": ("biden.jpg",),
    "eileen_collins": ("astronaut.png",),
}
"""Who is in the first gallery, and on which photos. obama3.jpg stays out: it is the one to ask with."""

SHA256: Mapping[str, str] = {
    "obama.jpg": "0930e3aa8cae5920329c0c8cbc6a2ab70f47b0e67b432875beaa95cbf7e741f6",
    "obama2.jpg": "a7efcc907375274796f39646510704aa86672d59f6d5469d69af3c85590976a6",
    "obama3.jpg": "76ac6bf97c36dc2da0ad16a537d6a5ac1b10f48d49aac29a0cca9a17cdbc3ca3",
    "biden.jpg": "3c17508bb91554c637a2eabddfae790e5bb1caba93130814fc2ac50be9760c4c",
    "obama_partial_face.jpg": "c2d1f09e7ef3042352b41e41286e6eb0522f64f88308be13886991b95db52117",
    "obama_partial_face2.jpg": "9a812347f97633542b8cd9992de22def11b74f79d82056bc3ee830f13878e028",
    "astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
}
"""The photos' names and what they must hash to."""


def default_folder() -> Path:
    """The user's cache folder: `$XDG_CACHE_HOME` or ~/.cache, then faceapp/samples."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "faceapp" / "samples"


def sample_photos(folder: Path | None = None) -> dict[str, Path]:
    """Every sample photo's path, by its name. Raises LocalError when one is missing or damaged."""
    folder = folder or default_folder()
    if lacking := [name for name in SHA256 if not is_sound(folder / name)]:
        raise LocalError(
            f"the sample photos are not all in {folder} ({lacking[0]} is missing or damaged): 'make samples', typed in "
            "a checkout, fetches them"
        )
    return {name: folder / name for name in SHA256}


def is_sound(photo: Path) -> bool:
    """Whether this is the sample photo of its name."""
    try:
        return hashlib.sha256(photo.read_bytes()).hexdigest() == SHA256[photo.name]
    except OSError:
        return False
