"""Flower's pages in a real browser: what a user sees and presses, and what a page from elsewhere cannot."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from faceapp.config import Settings
from tests.support import echo
from tests.support.aws import KEY
from tests.support.programs import TIMEOUT_MS, chromium
from tests.support.services import celery_worker, environ, wait_until
from tests.system.test_flower import ECHO, WORKER, Flower, deploy_echo, flower

pytestmark = pytest.mark.browser

STRANGER = "stranger.example.org"

ATTACK = """<!doctype html><title>elsewhere</title><body><iframe name="frame" src="{url}/workers"></iframe><script>
const shutdown = "{url}/api/worker/shutdown/{worker}";
async function attack() {{
    const tried = [];
    for (const options of [{{method: "POST"}}, {{method: "POST", mode: "no-cors"}}]) {{
        tried.push(await fetch(shutdown, options).then((answer) => answer.type, () => "refused"));
    }}
    tried.push(await fetch("{url}/api/workers").then(() => "read", () => "refused"));
    const form = document.createElement("form");
    form.method = "post"; form.action = shutdown; form.target = "frame";
    document.body.append(form);
    form.submit();
    return tried;
}}
</script>"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(f"--host-resolver-rules=MAP {STRANGER} 127.0.0.1") as browser:
        yield browser


@pytest.fixture(scope="module")
def env(system: Settings, aws_endpoint: str) -> dict[str, str]:
    deploy_echo()
    return environ(aws_endpoint, system)


@pytest.fixture(scope="module")
def watched(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    folder = tmp_path_factory.mktemp("flower")
    with (
        flower(env, folder / "flower", "--purge-offline-workers=1") as running,
        celery_worker("tests.support.echo", folder / "worker", env, "--hostname", WORKER, "--concurrency", "1"),
    ):
        wait_until(lambda: WORKER in running.workers(), what="the worker on the page")
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of its own; an error in a script fails the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.set_default_timeout(TIMEOUT_MS)
    page, troubles = context.new_page(), []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    yield page
    context.close()
    assert troubles == []


def test_a_task_is_seen_on_the_pages(page: Page, watched: Flower) -> None:
    page.goto(f"{watched.url}/?key={KEY}")
    expect(page.locator("#workers-table")).to_contain_text(WORKER)
    expect(page.locator("#workers-online")).to_have_text("1")
    id = watched.send(ECHO, "seen")
    watched.wait_for_state(id, "SUCCESS")
    expect(page.locator("#workers-succeeded")).not_to_have_text("0")
    page.get_by_role("link", name="Tasks", exact=True).click()
    page.locator(f"a[href$='/task/{id}']").first.click()
    expect(page.locator("body")).to_contain_text("SUCCESS")
    expect(page.locator("body")).to_contain_text("'seen'")


def test_the_workers_page_shows_its_tabs_and_its_buttons_work(page: Page, watched: Flower) -> None:
    page.goto(f"{watched.url}/?key={KEY}")
    page.get_by_role("link", name=f"Worker {WORKER}").click()
    expect(page.locator("#workername")).to_have_text(WORKER)
    page.locator("#worker-pool-grow").click()
    expect(page.locator(".toast")).to_contain_text("Growing")
    page.locator("#worker-pool-shrink").click()
    expect(page.locator(".toast").last).to_contain_text("Shrinking")
    page.get_by_role("tab", name="Queues").click()
    expect(page.locator("#tab-queues")).to_contain_text("req-queue")
    page.get_by_role("tab", name="Config").click()
    expect(page.locator("#tab-config")).to_contain_text("task_acks_late")


def test_the_broker_page_lists_the_queues(page: Page, watched: Flower) -> None:
    page.goto(f"{watched.url}/?key={KEY}")
    page.get_by_role("link", name="Broker", exact=True).click()
    table = page.locator("#queue-table")
    expect(table).to_contain_text(echo.SETTINGS.request_queue)
    expect(table).to_contain_text("dead letters")
    expect(table.locator("th")).to_have_text(["Queue", "For", "Visible", "In flight", "Delayed"])


def test_a_task_is_terminated_and_a_worker_shut_down_from_the_page(
    page: Page, watched: Flower, env: dict[str, str], tmp_path: Path
) -> None:
    name, queue = "celery@hangs", {"queue": "req-queue"}
    assert watched.post(f"/api/worker/queue/cancel-consumer/{WORKER}", queue).status == 200
    try:
        with celery_worker(
            "tests.support.echo", tmp_path / "log", {**env, "ECHO_HANGS": "1"}, "--hostname", name, "--concurrency", "1"
        ) as process:
            page.goto(f"{watched.url}/?key={KEY}")
            row = page.locator("#workers-table tr", has_text=name)
            expect(row).to_be_visible()
            id = watched.send(ECHO, "hangs")
            watched.wait_for_state(id, "STARTED")
            expect(page.locator("#workers-active")).to_have_text("1")
            page.goto(f"{watched.url}/task/{id}")
            page.locator("#task-terminate").click()
            expect(page.locator(".toast")).to_contain_text("Revoked")
            watched.wait_for_state(id, "REVOKED")
            page.goto(f"{watched.url}/worker/{name}")
            page.locator("#worker-group").click()
            page.locator("#worker-shutdown").click()
            expect(page.locator(".toast")).to_contain_text("Shutting down")
            assert process.wait(240) == 0
            page.goto(f"{watched.url}/?key={KEY}")
            expect(row).to_have_count(0)
            expect(page.locator("#workers-online")).to_have_text("1")
    finally:
        assert watched.post(f"/api/worker/queue/add-consumer/{WORKER}", queue).status == 200


def test_another_page_can_neither_press_nor_read_nor_frame(page: Page, watched: Flower) -> None:
    with serving(ATTACK.format(url=watched.url, worker=WORKER)) as elsewhere:
        page.goto(elsewhere)
        with page.expect_response(lambda answer: answer.request.resource_type == "document") as submitted:
            tried = page.evaluate("attack()")
        assert submitted.value.request.method == "POST"
        assert submitted.value.status == 403
    assert tried == ["refused", "opaque", "refused"]
    watched.wait_for_state(watched.send(ECHO, "still there"), "SUCCESS")


def test_another_name_for_this_address_opens_nothing(page: Page, watched: Flower) -> None:
    port = watched.url.rpartition(":")[2]
    answer = page.goto(f"http://{STRANGER}:{port}/workers")
    assert answer is not None
    assert answer.status == 403
    expect(page.locator("body")).to_contain_text("only 127.0.0.1, [::1] and localhost")


@contextmanager
def serving(document: str) -> Iterator[str]:
    """A web server of somebody else's, whose only page is `document`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=UTF-8")
            self.end_headers()
            self.wfile.write(document.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
