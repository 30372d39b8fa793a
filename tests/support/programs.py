"""Programs that a test needs and a machine need not have: without one the test is skipped, and in CI it fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.support.services import PATIENCE_S

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A name of somebody else's that means this machine, as after DNS rebinding.
    "--host-resolver-rules=MAP evil.example 127.0.0.1",
]
TIMEOUT_MS = PATIENCE_S * 1000
# It has a bound of its own, five seconds, whatever that of the page is.
expect.set_options(timeout=TIMEOUT_MS)


def needs(*names: str) -> str:
    """The path of the first of these programs that is installed. Skips the test, except in CI, where none is."""
    everywhere = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    for name in names:
        if path := shutil.which(name, path=everywhere):
            return path
    if "CI" in os.environ:
        pytest.fail(f"{names[0]} is missing: .ci/run installs it")
    pytest.skip(f"{names[0]} is not installed")


@contextmanager
def chromium(*options: str) -> Iterator[Browser]:
    """A real browser, with more options than those that every test's has."""
    path = needs(*CHROMIUM)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*OPTIONS, *options], timeout=TIMEOUT_MS)
        yield browser
        browser.close()
