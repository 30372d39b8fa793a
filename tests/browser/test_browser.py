"""The page in a real browser, with a real web tier and a real worker behind it."""

from __future__ import annotations

import base64
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from faceapp.config import Settings
from faceapp.http.openapi import document
from faceapp.people import People
from faceapp.security.keys import Keys
from faceapp.storage import Storage
from tests.support.aws import KEY
from tests.support.programs import TIMEOUT_MS, chromium
from tests.support.web import encoded, nothing_new, plain, side_by_side, stored, web_server

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("worker")]

DROP = """(place, [name, data]) => {
    const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
    place.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def web(aws_endpoint: str, system: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with web_server(aws_endpoint, system, tmp_path_factory.mktemp("web") / "log") as (url, _):
        yield url


@pytest.fixture
def page(browser: Browser, web: str) -> Iterator[Page]:
    """The page, opened; whatever goes wrong in it, or leaves this machine, fails the test."""
    yield from opened(browser, web, f"#key={KEY}")


@pytest.fixture
def phone(browser: Browser, web: str) -> Iterator[Page]:
    """The same on a phone."""
    yield from opened(
        browser, web, f"#key={KEY}", viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True
    )


def opened(browser: Browser, web: str, fragment: str = "", **options: Any) -> Iterator[Page]:
    context = browser.new_context(**options)
    context.set_default_timeout(TIMEOUT_MS)
    page, troubles = context.new_page(), []
    page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    page.on("console", lambda line: troubles.append(line.text) if "Content Security Policy" in line.text else None)
    page.on("request", lambda request: None if local(request.url, web) else troubles.append(f"asked {request.url}"))
    page.goto(f"{web}/{fragment}")
    expect(page.locator("#health")).to_have_text("ready")
    yield page
    context.close()
    assert troubles == []


def local(url: str, web: str) -> bool:
    return url.startswith((f"{web}/", "blob:", "data:"))


@pytest.fixture(scope="module")
def guarded(aws_endpoint: str, system: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A web tier that asks everybody for a key."""
    log = tmp_path_factory.mktemp("guarded") / "log"
    with web_server(aws_endpoint, system, log, FACEAPP_WEB_AUTH="always") as (url, _):
        yield url


@contextmanager
def elsewhere(html: str) -> Iterator[str]:
    """The URL of another site, which has this page."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, *_: object) -> None:
            """Nothing of it is of interest."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()


@pytest.fixture
def person(system: Settings) -> Iterator[str]:
    """A name that is nobody's, forgotten afterwards."""
    name = f"Grace {uuid.uuid4().hex[:6]}"
    yield name
    people = People(Storage(system))
    if name in {each.name for each in people.list_people()}:
        people.forget(name)


def drop(page: Page, data: bytes, name: str) -> None:
    page.locator("#drop").evaluate(DROP, [name, base64.b64encode(data).decode()])


def wait_for(page: Page) -> None:
    """Until the newest photo has its answer."""
    expect(page.locator(".card").first.locator(".again")).to_be_visible()


def test_a_dropped_face_is_enrolled_named_and_forgotten(page: Page, person: str, samples: dict[str, Path]) -> None:
    drop(page, samples["obama.jpg"].read_bytes(), "obama.jpg")
    wait_for(page)
    card = page.locator(".card").first
    box = card.locator(".box")
    expect(box).to_have_text("unknown")

    box.click()
    expect(card.get_by_label("Name of face 1")).to_be_focused()
    page.keyboard.type(person)
    page.keyboard.press("Enter")
    expect(card.locator(".enrol-status")).to_contain_text(f"Enrolled as {person}")
    in_list = page.locator("#people-list").get_by_role("button", name=person)
    expect(in_list).to_contain_text("1 photo")

    drop(page, samples["obama3.jpg"].read_bytes(), "obama3.jpg")
    wait_for(page)
    expect(page.locator(".card")).to_have_count(2)
    expect(card.locator(".summary")).to_have_text(f"{person}.")
    expect(card.locator(".box")).to_have_text(person)
    expect(card.locator(".verdict")).to_contain_text("at a distance of 0.")

    in_list.click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("img")).to_have_count(1)
    dialog.get_by_role("button", name="Forget this person").click()
    dialog.get_by_role("button", name="Yes, forget").click()
    expect(dialog).to_be_hidden()
    expect(in_list).to_have_count(0)


def test_boxes_lie_on_the_faces_of_a_photo_that_is_stored_rotated(page: Page, samples: dict[str, Path]) -> None:
    upright = side_by_side(samples["obama.jpg"], samples["biden.jpg"])
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = encoded(upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    drop(page, encoded(upright), "upright.jpg")
    wait_for(page)
    drop(page, sideways, "sideways.jpg")
    expect(page.locator(".card")).to_have_count(2)
    wait_for(page)

    def places(n: int) -> list[list[float]]:
        card = page.locator(".card").nth(n)
        picture = card.locator("img").bounding_box()
        assert picture is not None
        boxes = [card.locator(".box").nth(face).bounding_box() for face in range(2)]
        return [
            [(box["x"] - picture["x"]) / picture["width"], (box["y"] - picture["y"]) / picture["height"]]
            for box in boxes
            if box is not None
        ]

    expect(page.locator(".card").first.locator(".box")).to_have_count(2)
    for sideways_place, upright_place in zip(places(0), places(1), strict=True):
        assert sideways_place == pytest.approx(upright_place, abs=0.03)


def test_a_format_that_browsers_cannot_show_still_gets_its_answer(page: Page, samples: dict[str, Path]) -> None:
    drop(page, encoded(side_by_side(samples["biden.jpg"]), "HEIF"), "phone.heic")
    wait_for(page)
    card = page.locator(".card").first
    expect(card.locator(".unshown")).to_contain_text("cannot show HEIF")
    expect(card.locator(".box")).to_have_count(1)
    expect(card.locator(".face")).to_have_count(1)


def test_errors_are_sentences_and_names_are_not_markup(page: Page) -> None:
    name = "<img src=x onerror=document.title='hacked'>.jpg"
    drop(page, b"just text", name)
    wait_for(page)
    card = page.locator(".card").first
    expect(card.locator(".summary")).to_contain_text("not a photo in a format this service reads")
    expect(card.locator(".file-name")).to_have_text(name)
    assert "hacked" not in page.title()

    drop(page, plain(), "wall.jpg")
    expect(page.locator(".card")).to_have_count(2)
    wait_for(page)
    expect(card.locator(".summary")).to_contain_text("No face found")
    card.get_by_role("button", name="Remove").click()
    expect(page.locator(".card")).to_have_count(1)


def test_it_fits_on_a_phone(phone: Page, samples: dict[str, Path]) -> None:
    expect(phone.get_by_text("Take a photo")).to_be_visible()
    phone.locator("#choose").set_input_files([samples["obama.jpg"], samples["biden.jpg"]])
    expect(phone.locator(".card .face")).to_have_count(2)
    phone.locator(".box").first.tap()
    expect(phone.locator(".enrol input").first).to_be_focused()
    width = phone.evaluate("document.documentElement.scrollWidth")
    assert width <= 360


def test_the_bar_of_a_phone_has_the_key_on_a_line_of_its_own(phone: Page) -> None:
    """At 375 px "Forget the key" was three lines that lay over "ready"."""
    phone.set_viewport_size({"width": 375, "height": 740})
    phone.evaluate("document.getElementById('key-forget').hidden = false")
    forget, health = phone.locator("#key-forget"), phone.locator("#health")
    link = phone.locator(".bar nav a").last.bounding_box()
    box, ready = forget.bounding_box(), health.bounding_box()
    assert box is not None
    assert ready is not None
    assert link is not None
    assert box["height"] < 2 * link["height"]
    assert box["y"] >= ready["y"] + ready["height"] or box["x"] >= ready["x"] + ready["width"]
    assert phone.evaluate("document.documentElement.scrollWidth") <= 375


def test_a_name_that_nobody_has_is_said(page: Page) -> None:
    people = {"people": [{"name": f"Person {letter}", "photos": 1} for letter in "ABCDEFGHI"], "next": None}
    page.route("**/v1/people*", lambda route: route.fulfill(json=people))
    page.reload()
    page.get_by_label("Find a name").fill("nobody")
    expect(page.locator("#people-empty")).to_have_text("Nobody has such a name.")
    page.get_by_label("Find a name").fill("person a")
    expect(page.locator("#people-empty")).to_be_hidden()
    expect(page.locator("#people-list li:visible")).to_have_count(1)


def test_the_docs_page_shows_every_operation(page: Page, web: str) -> None:
    page.goto(f"{web}/docs")
    operations = sum(method != "parameters" for path in document()["paths"].values() for method in path)
    expect(page.locator(".opblock")).to_have_count(operations)
    page.get_by_text("Recognise one photo").click()
    expect(page.get_by_text("The line, without a line break at its end.")).to_be_visible()


def test_the_page_asks_for_a_key_and_sends_it(
    browser: Browser, guarded: str, system: Settings, person: str, samples: dict[str, Path]
) -> None:
    keys = Keys(Storage(system))
    admin, recognise = (keys.create(name="a browser's", role=role).text for role in ("admin", "recognise"))
    for page in opened(browser, guarded):
        field = page.get_by_label("API key")
        expect(field).to_be_focused()
        drop(page, samples["obama.jpg"].read_bytes(), "obama.jpg")
        card = page.locator(".card").first
        expect(card.locator(".summary")).to_contain_text("needs an API key")

        field.fill("fa_00000000_wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-why")).to_contain_text("not known")
        field.fill(admin)
        page.keyboard.press("Enter")
        # What was refused is sent again by itself.
        card.locator(".box").click()
        page.keyboard.type(person)
        page.keyboard.press("Enter")
        expect(card.locator(".enrol-status")).to_contain_text(f"Enrolled as {person}")
        row = page.locator("#people-list").get_by_role("button", name=person)
        expect(row.locator("img")).to_have_js_property("complete", True)

        page.reload()
        expect(field).to_be_hidden()
        row.click()
        photo = page.get_by_role("dialog").locator("img")
        expect(photo).not_to_have_js_property("naturalWidth", 0)
        page.keyboard.press("Escape")
        assert page.context.cookies() == []

        page.get_by_role("button", name="Forget the key").click()
        field.fill(recognise)
        page.keyboard.press("Enter")
        expect(page.locator("#people-empty")).to_contain_text("this needs 'enrol'")
        drop(page, samples["obama3.jpg"].read_bytes(), "obama3.jpg")
        expect(page.locator(".card").first.locator(".summary")).to_have_text(f"{person}.")


def test_the_docs_page_can_send_a_key(browser: Browser, guarded: str, system: Settings) -> None:
    key = Keys(Storage(system)).create(name="the docs'", role="enrol").text
    for page in opened(browser, guarded):
        page.goto(f"{guarded}/docs")
        page.get_by_role("button", name="Authorize").first.click()
        page.locator(".auth-container input").fill(key)
        page.locator(".auth-container button.authorize").click()
        page.locator(".auth-container button.btn-done").click()
        page.get_by_text("List everybody").click()
        page.get_by_role("button", name="Try it out").click()
        page.get_by_role("button", name="Execute").click()
        expect(page.locator(".live-responses-table td.response-col_status").last).to_contain_text("200")


def test_another_sites_page_cannot_use_the_service(browser: Browser, web: str, system: Settings) -> None:
    """Neither with a form nor with a script (whose answer it could not read anyway), each with a photo."""
    html = f"""
        <form id="form" method="post" enctype="multipart/form-data" action="{web}/">
            <input type="file" name="inputFile"><button>Win a prize</button>
        </form>
        <img src="{web}/v1/people">"""
    before = stored(system)
    context = browser.new_context()
    context.set_default_timeout(TIMEOUT_MS)
    page, statuses = context.new_page(), []
    page.on("response", lambda answer: statuses.append(answer.status) if answer.url.startswith(web) else None)
    with elsewhere(html) as site:
        page.goto(site)
        photo = base64.b64encode(plain()).decode()
        script = """async ([url, data]) => {
            const form = new FormData();
            const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
            form.append("inputFile", new Blob([bytes], { type: "image/jpeg" }), "a.jpg");
            await fetch(url, { method: "POST", body: form, mode: "no-cors" }).catch(() => {});
        }"""
        with page.expect_request(lambda request: request.method == "POST"):
            page.evaluate(script, [f"{web}/v1/recognitions", photo])
        page.locator("input").set_input_files({"name": "a.jpg", "mimeType": "image/jpeg", "buffer": plain()})
        page.get_by_role("button", name="Win a prize").click()
        expect(page.locator("body")).to_contain_text("cross_site")
    context.close()
    assert set(statuses) == {403}
    assert nothing_new(system, before)


def test_a_name_that_suddenly_means_this_machine_gets_nothing(browser: Browser, web: str) -> None:
    context = browser.new_context()
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    page.goto(web.replace("127.0.0.1", "evil.example"))
    expect(page.get_by_label("API key")).to_be_visible()
    assert page.evaluate("fetch('/v1/people').then((answer) => answer.status)") == 401
    context.close()
