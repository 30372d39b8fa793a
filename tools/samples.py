"""The sample photos, taken out of two packages that pip downloads: `make samples`, and `make` once it has installed.

Two processes may do this at once: a photo appears whole or not at all. Photos that are there and whole stay.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from faceapp.errors import LocalError
from faceapp.operations.samples import SHA256, default_folder, is_sound, sample_photos


@dataclass(frozen=True)
class _Package:
    """What pip downloads, the photos in it, and how to read one of its files."""

    requirement: str
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
        requirement="face_recognition==1.3.0 "
        "--hash=sha256:5e5efdd1686aa566af0d3cc1313b131e4b197657a8ffd03669e6d3fad92705ec",
        # Only the source distribution has the photos. pip asks its backend for its metadata, so with isolation it would
        # fetch one without looking at its hash.
        options=("--no-binary=face_recognition", "--no-build-isolation"),
        folder="face_recognition-1.3.0/tests/test_images",
        photos=tuple(name for name in SHA256 if name.endswith(".jpg")),
        read=_from_tar,
    ),
    _Package(
        requirement="scikit-image==0.26.0 "
        "--hash=sha256:7df650e79031634ac90b11e64a9eedaf5a5e06fcd09bcd03a34be01745744466",
        # One wheel for every machine: only a picture in it is wanted.
        options=(
            "--only-binary=:all:",
            "--platform=manylinux_2_28_x86_64",
            "--python-version=3.12",
            "--implementation=cp",
        ),
        folder="skimage/data",
        photos=("astronaut.png",),
        read=_from_zip,
    ),
)


def main() -> int:
    """Fetch them into the folder where faceapp looks. Returns 1, with a sentence, when that cannot be done."""
    try:
        fetch()
    except LocalError as error:
        print(f"samples: {error.detail}", file=sys.stderr)
        return 1
    return 0


def fetch(folder: Path | None = None) -> dict[str, Path]:
    """Every sample photo's path, by its name; what is missing or damaged is fetched. Raises LocalError."""
    folder = folder or default_folder()
    for package in _PACKAGES:
        if not all(is_sound(folder / name) for name in package.photos):
            _fetch(package, folder)
    return sample_photos(folder)


def _fetch(package: _Package, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
            archive = _download(package, Path(temporary))
            for name in package.photos:
                part = Path(temporary, name)
                part.write_bytes(package.read(archive, f"{package.folder}/{name}"))
                if not is_sound(part):
                    raise LocalError(f"the sample photo {name} in {archive.name} is not the expected one")
                part.replace(folder / name)
    except (OSError, KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise LocalError(f"the sample photos cannot be stored in {folder}: {error}") from error


def _download(package: _Package, folder: Path) -> Path:
    """The archive that pip has downloaded into `folder`, which was empty."""
    wanted, target = folder / "requirements.txt", folder / "archive"
    # pip takes hashes in a file only.
    wanted.write_text(f"{package.requirement}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, "--dest", str(target), *package.options, "--requirement", str(wanted)],
        capture_output=True,
        text=True,
    )
    archives = sorted(target.iterdir()) if target.is_dir() else []
    if done.returncode or len(archives) != 1:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise LocalError(f"pip could not fetch the sample photos (is there a network?): {said}")
    return archives[0]


if __name__ == "__main__":
    sys.exit(main())
