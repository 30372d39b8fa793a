"""Makes docs/page.png from a running service: `make up` in one terminal, `python docs/screenshot.py` in another."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from faceapp.operations.samples import sample_photos
from faceapp.security.credential import key_for

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    samples = sample_photos()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto(f"{url}/#key={key_for(url)}")
        page.set_input_files("input[type=file]", [samples["obama3.jpg"], samples["astronaut.png"]])
        page.get_by_text("eileen_collins.").wait_for()
        page.get_by_text("obama.", exact=True).wait_for()
        page.screenshot(path=Path(__file__).with_name("page.png"), full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
