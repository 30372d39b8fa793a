"""Photos of known faces for the first gallery and the tests, taken out of two packages that pip fetches.

They are not shipped: the photos are public (official portraits and a NASA picture), the repository stays small.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class _Package:
    """What pip downloads, the photos in it, and how to read one of its files."""

    options: tuple[str, ...]
    folder: str
    photos: tuple[str, ...]
    read: Callable[[Path, str], bytes]


def _from_tar(archive: Path, name: str) -> bytes:
    with tarfile.open(archive) as opened:
        member = opened.extractfile(name)
        if member is None:
            raise KeyError(name)
        return member.read()


def _from_zip(archive: Path, name: str) -> bytes:
    with zipfile.ZipFile(archive) as opened:
        return opened.read(name)


_PACKAGES = (
    _Package(
        # only the source distribution has the photos
        options=("--no-binary=face_recognition", "face_recognition==1.3.0"),
        folder="face_recognition-1.3.0/tests/test_images",
        photos=tuple(name for name in SHA256 if name.endswith(".jpg")),
        read=_from_tar,
    ),
    _Package(
        # one wheel for every machine: only a picture in it is wanted
        options=(
            "--only-binary=:all:",
            "--platform=manylinux_2_28_x86_64",
            "--python-version=3.12",
            "--implementation=cp",
            "scikit-image==0.26.0",
        ),
        folder="skimage/data",
        photos=("astronaut.png",),
        read=_from_zip,
    ),
)


def default_folder() -> Path:
    """The user's cache folder: `$XDG_CACHE_HOME` or ~/.cache, then faceapp/samples."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "faceapp" / "samples"


def sample_photos(folder: Path | None = None) -> dict[str, Path]:
    """Every sample photo's path, by its name; fetched into `folder` at the first call, and again when one is damaged.

    Two processes may do this at once: a photo appears whole or not at all. Raises LocalError when pip cannot fetch.
    """
    folder = folder or default_folder()
    for package in _PACKAGES:
        if not all(_is_sound(folder / name, SHA256[name]) for name in package.photos):
            _fetch(package, folder)
    return {name: folder / name for name in SHA256}


def _fetch(package: _Package, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
            archive = _pip_download(package.options, Path(temporary))
            for name in package.photos:
                part = Path(temporary, name)
                part.write_bytes(package.read(archive, f"{package.folder}/{name}"))
                if not _is_sound(part, SHA256[name]):
                    raise LocalError(f"the sample photo {name} in {archive.name} is not the expected one")
                part.replace(folder / name)
    except (OSError, KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise LocalError(f"the sample photos cannot be stored in {folder}: {error}") from error


def _pip_download(options: Iterable[str], folder: Path) -> Path:
    """The archive that pip has downloaded into `folder`, which was empty."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    target = folder / "archive"
    done = subprocess.run([*command, "--dest", str(target), *options], capture_output=True, text=True)
    archives = sorted(target.iterdir()) if target.is_dir() else []
    if done.returncode or len(archives) != 1:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise LocalError(f"pip could not fetch the sample photos (is there a network?): {said}")
    return archives[0]


def _is_sound(path: Path, sha256: str) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    except OSError:
        return False
