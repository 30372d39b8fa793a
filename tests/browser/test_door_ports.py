"""Every port that `faceapp up` opens, before a page of somebody else's in a real browser and behind a real nginx.

Rows S1, S3, S4 and S8: nothing is read or changed, and what the user does here is not in the way.
"""

from __future__ import annotations

import http.client
import json
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from faceapp.local import up
from faceapp.scaler import LEASE_KEY
from faceapp.security import credential
from tests.support.aws import session
from tests.support.programs import TIMEOUT_MS, chromium, needs
from tests.support.services import PATIENCE_S, free_port, wait_until
from tests.system.test_local_up import Running, running

pytestmark = [pytest.mark.system, pytest.mark.browser]

EVIL = "evil.example"
"""A name of somebody else's that means this machine in the tests' browser."""
PRIZE = "<!doctype html><title>Win a prize</title><body>"
FORGED = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"

ATTACK = """async ({ url, method, body, type, headers }) => {
    const outcomes = [];
    const plain = { method, body, credentials: "include", headers: type ? { "Content-Type": type } : {} };
    const marked = { ...plain, headers: { ...plain.headers, ...headers } };
    for (const options of [plain, { ...plain, mode: "no-cors" }, marked]) {
        outcomes.push(await fetch(url, options).then(
            async (answer) => answer.type === "opaque" ? "opaque" : `${answer.status} ${await answer.text()}`,
            () => "refused"));
    }
    const loaded = (element) => new Promise((done) => {
        element.onload = element.onerror = done;
        document.body.append(element);
    });
    if (method === "GET") {
        for (const tag of ["img", "script", "iframe"]) {
            await loaded(Object.assign(document.createElement(tag), { src: url }));
        }
    }
    if (method === "POST") {
        for (const enctype of ["application/x-www-form-urlencoded", "multipart/form-data", "text/plain"]) {
            const frame = Object.assign(document.createElement("iframe"), { name: `frame${Math.random()}` });
            document.body.append(frame);
            const form = Object.assign(document.createElement("form"), {
                method, enctype, action: url, target: frame.name });
            for (const pair of new URLSearchParams(body)) {
                form.append(Object.assign(document.createElement("input"), { name: pair[0], value: pair[1] }));
            }
            document.body.append(form);
            const sent = new Promise((done) => { frame.onload = done; });
            form.submit();
            await sent;
        }
    }
    return outcomes;
}"""


@dataclass(frozen=True)
class Target:
    """What a page tries."""

    port: int
    method: str
    path: str
    body: str | None = None
    type: str = ""

    def to_dict(self, host: str) -> dict[str, Any]:
        headers = {"Authorization": FORGED, "X-Amz-Target": "AmazonSQS.ListQueues", "X-Anything": "1"}
        where = {"url": f"http://{host}:{self.port}{self.path}", "method": self.method}
        return {**where, "body": self.body, "type": self.type, "headers": headers}


def targets(system: Running) -> list[Target]:
    """Things worth doing, at each port."""
    form = "application/x-www-form-urlencoded"
    web, aws = system.settings.web_port, system.settings.aws_port
    scaler, flower = system.settings.scaler_port, system.settings.flower_port
    worker = "/api/worker/shutdown/celery@app-tier-instance-1"
    forget = json.dumps({"args": ["obama"]})
    bucket = system.settings.gallery_bucket
    return [
        Target(web, "GET", "/v1/people"),
        Target(web, "GET", "/v1/scaler"),
        Target(web, "GET", "/metrics"),
        Target(web, "POST", "/", "inputFile=x", form),
        Target(web, "POST", "/v1/recognitions", "photo=x", form),
        Target(web, "PUT", "/v1/people/mallory", "photo=x", form),
        Target(web, "DELETE", "/v1/people/obama"),
        Target(aws, "GET", "/"),
        Target(aws, "GET", f"/{bucket}?list-type=2"),
        Target(aws, "GET", f"/{bucket}/version?X-Amz-Credential=test%2F20260101%2Fus-east-1%2Fs3%2Faws4_request"),
        Target(aws, "GET", f"/{bucket}/version?AWSAccessKeyId=test&Signature=x&Expires=9999999999"),
        Target(aws, "PUT", f"/{bucket}/keys/keys.json", "{}", "text/plain"),
        Target(aws, "DELETE", f"/{bucket}/version"),
        Target(aws, "POST", "/", "Action=RunInstances&Version=2016-11-15&ImageId=x&MinCount=1&MaxCount=1", form),
        Target(aws, "POST", f"/{bucket}", "key=mallory&file=x", form),
        Target(aws, "POST", "/moto-api/reset", "", "text/plain"),
        Target(aws, "GET", "/moto-api/data.json"),
        Target(aws, "POST", "/v1/createcomputeenvironment", "{}", "text/plain"),
        Target(aws, "GET", "/faceapp/calls"),
        Target(aws, "DELETE", "/faceapp/calls"),
        Target(scaler, "GET", "/status"),
        Target(scaler, "GET", "/metrics"),
        Target(flower, "GET", "/workers"),
        Target(flower, "GET", "/api/workers"),
        Target(flower, "GET", "/api/tasks"),
        Target(flower, "GET", "/metrics"),
        Target(flower, "POST", worker, "", form),
        Target(flower, "POST", "/api/task/async-apply/faceapp.forget", forget, "text/plain"),
    ]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One that does not yet ask its user before a page may use this machine: what is here has to hold without."""
    with chromium("--disable-features=LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests") as browser:
        yield browser


@pytest.fixture(scope="module")
def system(samples: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A `faceapp up` with one person."""
    folder = tmp_path_factory.mktemp("up")
    (folder / "people" / "obama").mkdir(parents=True)
    shutil.copy(samples["obama.jpg"], folder / "people" / "obama")
    with running(folder, "--people", folder / "people") as found:
        yield found


@pytest.fixture
def user(browser: Browser, system: Running) -> Iterator[BrowserContext]:
    """Somebody who has the page and Flower open, by their links."""
    context = browser.new_context()
    context.set_default_timeout(TIMEOUT_MS)
    page, flower = context.new_page(), context.new_page()
    page.goto(link(system, "page"))
    expect(page.locator("#people-list")).to_contain_text("obama")
    flower.goto(link(system, "Flower"))
    expect(flower.locator("#workers-table")).to_be_visible()
    yield context
    context.close()


def link(system: Running, name: str) -> str:
    """An address as it was printed."""
    [line] = [each for each in system.output.splitlines() if each.split()[:1] == [name]]
    return line.split()[1]


def everything(system: Running) -> dict[str, Any]:
    """What could be changed, once nothing is under way."""
    made = session(credential.aws_keys(system.key))

    def client(service: str) -> Any:
        return made.client(service, endpoint_url=up.endpoint(system.settings))

    s3, ec2 = client("s3"), client("ec2")
    buckets = [each["Name"] for each in s3.list_buckets()["Buckets"]]
    return {
        "people": system.client.people(),
        "objects": {
            bucket: [
                (each["Key"], each["ETag"])
                for each in s3.list_objects_v2(Bucket=bucket).get("Contents", ())
                if each["Key"] != LEASE_KEY  # the scaler renews it
            ]
            for bucket in buckets
        },
        "instances": sum(len(each["Instances"]) for each in ec2.describe_instances()["Reservations"]),
        "stacks": len(client("cloudformation").describe_stacks()["Stacks"]),
    }


@contextmanager
def site() -> Iterator[int]:
    """The port of another web server of this machine's, with an empty page."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(PRIZE.encode())

        def log_message(self, *_: object) -> None:
            """Nothing of it is of interest."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def watched(context: BrowserContext) -> tuple[Page, list[tuple[str, str, int]]]:
    """A new page, and every answer that it gets: method, address, status."""
    page, answers = context.new_page(), list[tuple[str, str, int]]()
    page.on("response", lambda answer: answers.append((answer.request.method, answer.url, answer.status)))
    return page, answers


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", EVIL])
def test_a_page_of_another_site_gets_nothing_from_any_port(user: BrowserContext, system: Running, host: str) -> None:
    """S1, S4, S8: fetch with and without CORS, preflights, forms, images, scripts and frames."""
    before = everything(system)
    page, answers = watched(user)
    with site() as port:
        page.goto(f"http://{host}:{port}/")
        answers.clear()
        for target in targets(system):
            outcomes = page.evaluate(ATTACK, target.to_dict("127.0.0.1"))
            assert outcomes[0] == outcomes[2] == "refused", target
            assert outcomes[1] in ("opaque", "refused"), target
    assert len({urlport(url) for _, url, _ in answers}) == 4
    assert [each for each in answers if each[2] not in (401, 403)] == []
    assert everything(system) == before


def test_a_name_that_suddenly_means_this_machine_gets_nothing(user: BrowserContext, system: Running) -> None:
    """S1, S4, S8: DNS rebinding, against each port. The page has the origin that it asks, so it sees what it gets."""
    before = everything(system)
    for target in targets(system):
        page, answers = watched(user)
        origin = f"http://{EVIL}:{target.port}/"
        # The page came from the other machine, before the name was given another address.
        page.route(origin + "prize", lambda route: route.fulfill(content_type="text/html", body=PRIZE))
        page.goto(origin + "prize")
        answers.clear()
        for outcome in page.evaluate(ATTACK, target.to_dict(EVIL)):
            # A refusal that comes before the body was sent may end the connection.
            unsent = target.method != "GET" and outcome == "refused"
            assert unsent or outcome[:3] in ("401", "403"), (target, outcome)
            assert "obama" not in outcome.replace(target.path, "")
        assert {status for _, _, status in answers} <= {401, 403}, target
        page.close()
    assert everything(system) == before


def urlport(url: str) -> str:
    return url.split("/")[2].rpartition(":")[2]


# What the user does here.


def test_the_page_and_the_apis_page_take_the_key_from_their_links(browser: Browser, system: Running) -> None:
    context = browser.new_context()
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    page.goto(system.client.url)
    expect(page.locator("#key-form")).to_be_visible()
    expect(page.locator("#people-empty")).to_contain_text("'faceapp up' prints an address")
    page.goto(link(system, "page"))
    expect(page.locator("#people-list")).to_contain_text("obama")
    expect(page.locator("#key-form")).to_be_hidden()
    expect(page).to_have_url(f"{system.client.url}/")
    page.reload()
    expect(page.locator("#people-list")).to_contain_text("obama")
    assert context.cookies() == []

    docs = context.new_page()
    docs.goto(link(system, "API"))
    docs.get_by_text("List everybody").click()
    expect(docs).not_to_have_url(link(system, "API"))
    docs.get_by_role("button", name="Try it out").click()
    docs.get_by_role("button", name="Execute").click()
    expect(docs.locator(".live-responses-table td.response-col_status").last).to_contain_text("200")
    context.close()


def test_flower_by_its_link(browser: Browser, system: Running) -> None:
    context = browser.new_context()
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    refused = page.goto(up.flower_url(system.settings))
    assert refused is not None
    assert refused.status == 401
    page.goto(link(system, "Flower"))
    expect(page).to_have_url(f"{up.flower_url(system.settings)}/")
    page.get_by_role("link", name="Broker", exact=True).click()
    expect(page.locator("#queue-table")).to_contain_text(system.settings.request_queue)
    context.close()


def typed(line: str) -> str:
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curl_as_it_is_printed(system: Running, samples: dict[str, Path]) -> None:
    needs("curl")
    folder, url = system.log.parent / "faceapp" / system.settings.prefix, system.client.url
    photo = samples["obama3.jpg"]
    printed = [line for line in system.output.splitlines() if "curl" in line]
    assert f"curl -F inputFile=@{photo} {url}" in printed[0]
    assert f"curl -K {shlex.quote(str(folder / credential.CURL))} {url}/v1/people" in printed[1]
    assert typed(f"curl -sS -F inputFile=@{shlex.quote(str(photo))} {url}") == "obama3:obama"
    people = json.loads(typed(printed[1].replace("curl ", "curl -sS ", 1)))
    assert [each["name"] for each in people["people"]] == ["obama"]


def test_programs_of_this_machine(system: Running) -> None:
    """boto3 with the printed environment, and Prometheus."""
    folder = system.log.parent / "faceapp" / system.settings.prefix
    code = "import boto3; print(len(boto3.client('s3').list_buckets()['Buckets']))"
    [source] = [line for line in system.output.splitlines() if "source" in line]
    line = source.partition("celery: ")[2].removesuffix(")")
    assert typed(f"{line} && {shlex.quote(sys.executable)} -c {shlex.quote(code)}") == "3\n"
    for port, path in (
        (system.settings.web_port, "/metrics"),
        (system.settings.scaler_port, "/metrics"),
        (system.settings.scaler_port, "/status"),
        (system.settings.flower_port, "/metrics"),
    ):
        assert ask(port, "GET", path)[0] == 200
    for file in credential.FILES:
        assert (folder / file).stat().st_mode & 0o777 == 0o600
    for log in (folder / "logs").iterdir():
        assert system.key not in log.read_text(errors="replace")
        assert credential.aws_keys(system.key)["AWS_ACCESS_KEY_ID"] not in log.read_text(errors="replace")


def ask(port: int, method: str, path: str, host: str = "127.0.0.1", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()


# Behind nginx.


NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/errors;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        listen [::1]:{port};
        location / {{ proxy_pass http://127.0.0.1:{behind}; {more} }}
    }}
}}
"""
PLAIN, KEPT_ALIVE = "", 'proxy_http_version 1.1; proxy_set_header Connection "";'
FORWARDED = f"{KEPT_ALIVE} proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $remote_addr;"


@contextmanager
def nginx(folder: Path, behind: int, more: str) -> Iterator[int]:
    """An nginx in front of a port; its own port."""
    program = needs("nginx")
    folder.mkdir()
    port = free_port()
    (folder / "conf").write_text(NGINX.format(folder=folder, port=port, behind=behind, more=more))
    process = subprocess.Popen([program, "-e", str(folder / "errors"), "-c", str(folder / "conf")])
    try:

        def answers() -> bool:
            try:
                return bool(ask(port, "GET", "/")[0])
            except OSError:
                return False

        wait_until(lambda: process.poll() is not None or answers(), what="nginx")
        assert process.poll() is None, (folder / "errors").read_text()
        yield port
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@pytest.mark.parametrize("more", [PLAIN, KEPT_ALIVE, FORWARDED], ids=["plain", "kept alive", "forwarded"])
def test_behind_nginx_nobody_is_of_this_machine(system: Running, tmp_path: Path, more: str) -> None:
    """S3, S4: also behind one that says nothing of itself, which nothing tells from a program here."""
    before = everything(system)
    with nginx(tmp_path / "web", system.settings.web_port, more) as port:
        for host in ("127.0.0.1", "::1"):
            for method, path in (("GET", "/v1/people"), ("DELETE", "/v1/people/obama"), ("GET", "/v1/scaler")):
                assert ask(port, method, path, host)[0] == 401
            # The classic line is all that a silent one opens.
            assert ask(port, "POST", "/", host)[0] == (400 if more == KEPT_ALIVE else 401)
            key = {"Authorization": f"Bearer {system.key}"}
            assert ask(port, "GET", "/v1/people", host, **key)[0] == 200
    with nginx(tmp_path / "aws", system.settings.aws_port, more) as port:
        assert ask(port, "GET", "/")[0] == 403
        assert ask(port, "DELETE", f"/{system.settings.gallery_bucket}/version", Authorization=FORGED)[0] == 403
    with nginx(tmp_path / "flower", system.settings.flower_port, more) as port:
        assert ask(port, "GET", "/workers")[0] in (401, 403)
        assert ask(port, "POST", "/api/task/async-apply/faceapp.forget")[0] in (401, 403)
    with nginx(tmp_path / "scaler", system.settings.scaler_port, more) as port:
        assert ask(port, "GET", "/status")[0] == (200 if more == KEPT_ALIVE else 403)
    assert everything(system) == before
