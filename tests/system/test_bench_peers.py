"""The peers of `python -m benchmarks.load` do the same work: whoever is compared answers everything rightly."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from benchmarks.load import REDIS_SERVER, distinct_photos, with_comment
from tests.support.services import REPOSITORY, users_environ

PHOTOS = 12


def test_photos_differ_in_their_bytes_and_not_in_what_they_show(samples: dict[str, Path]) -> None:
    photos = distinct_photos(8)
    assert len({each.data for each in photos}) == len({each.file_name for each in photos}) == 8
    plain = samples["biden.jpg"].read_bytes()
    with Image.open(io.BytesIO(plain)) as before, Image.open(io.BytesIO(with_comment(plain, "photo 7"))) as after:
        assert after.info["comment"] == b"photo 7"
        assert ImageChops.difference(before, after).getbbox() is None


@pytest.mark.system
def test_ours_and_both_peers_answer_every_photo_rightly(tmp_path: Path) -> None:
    designs = {"ours", "redis", "polling"}
    if not shutil.which(REDIS_SERVER) and "CI" not in os.environ:
        designs.remove("redis")
    written = tmp_path / "books.json"
    size = ["--photos", str(PHOTOS), "--concurrency", str(PHOTOS), "--workers", "2", "--limit", "120"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load", *size, "--json", str(written)],
        cwd=REPOSITORY,
        env=users_environ(NO_PROXY="127.0.0.1"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    books = json.loads(written.read_text())
    assert {name: (each["answered"], each["right"], each["stopped"]) for name, each in books.items()} == {
        name: (PHOTOS, PHOTOS, "") for name in designs
    }
    for peer in designs - {"ours"}:
        assert {"redis": "Celery + Redis over ours", "polling": "ours over simple polling"}[peer] in done.stdout
