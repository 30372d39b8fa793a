"""Unit tests start nothing: what needs the embedded AWS, or anything that runs on it, belongs to another folder."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def aws_endpoint() -> str:
    pytest.fail("A test in tests/unit needs no AWS: move this one to tests/integration.")
