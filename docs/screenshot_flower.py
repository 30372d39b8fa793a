"""Makes docs/flower.png: `make up` in one terminal, this in another. It posts 100 photos and looks at the work.

It needs many workers at once: FACEAPP_SCALER_POLICY=depth make up
"""

from __future__ import annotations

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from faceapp.operations.client import Client
from faceapp.operations.samples import sample_photos
from faceapp.security.credential import local_key_for

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
PHOTOS = 100
UNDER_WAY = """() => {
    const count = (id) => Number(document.getElementById(id).textContent.replace(/\\D/g, ""));
    return count("workers-online") >= 8 && count("workers-active") >= 2 && count("workers-succeeded") >= 10;
}"""
TIMEOUT_MS = 90_000


def main() -> None:
    flower = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:5555"
    web = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8000"
    with sync_playwright() as playwright, ThreadPoolExecutor(PHOTOS) as threads:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto(f"{flower}/?key={local_key_for(flower)}")
        photo, client = sample_photos()["obama3.jpg"], Client(web)
        answers = [threads.submit(client.recognise, photo) for _ in range(PHOTOS)]
        take(page)
        assert {answer.result() for answer in answers} == {"obama3:obama"}
        browser.close()


def take(page: Page) -> None:
    """The workers' page, once there are several at work."""
    page.wait_for_function(UNDER_WAY, timeout=TIMEOUT_MS)
    page.screenshot(path=Path(__file__).with_name("flower.png"), full_page=True)


if __name__ == "__main__":
    main()
