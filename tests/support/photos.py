"""Fixtures: real photos, and the recogniser that looks at them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from faceapp.errors import LocalError
from faceapp.recognition import Recogniser
from tools.samples import fetch


@pytest.fixture(scope="session")
def samples() -> dict[str, Path]:
    """The sample photos by name. Without a network the tests that need them are skipped, except in CI."""
    try:
        return fetch()
    except LocalError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(error.detail)


@pytest.fixture(scope="session")
def recogniser() -> Recogniser:
    """The default recogniser, in float32 so that results do not depend on the machine."""
    return Recogniser(precision="fp32", device="cpu", max_pixels=50_000_000, max_side_px=16_000)
