"""Flower over HTTP, with a real worker behind it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import boto3
import pytest

from celery_sqs.flower.app import BODY_BYTES
from faceapp.config import Settings
from faceapp.stack import data_tier as deployment
from tests.support import echo
from tests.support.aws import ACCESS, BEARER, KEY, WRONG_KEY
from tests.support.services import PATIENCE_S, REPOSITORY, celery_worker, environ, free_port, wait_until

WORKER = "celery@one"
SECRET = "a-secret-of-the-test"
VISIT = "Visit me at "
ECHO = "tests.echo"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class Flower:
    """A Flower that answers."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    headers: dict[str, str] = field(default_factory=lambda: {**BEARER})
    """The start's credential, and what else every request has."""

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, None, headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        """`body`: a form's fields, or a text that is sent as it is."""
        data = body if isinstance(body, str) else urlencode(body or {})
        return self.ask("POST", path, data.encode(), headers)

    def ask(self, method: str, path: str, data: bytes | None, headers: dict[str, str]) -> Answer:
        named = {name.replace("_", "-"): value for name, value in {**self.headers, **headers}.items()}
        request = urllib.request.Request(self.url + path, data=data, headers=named, method=method)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=240) as answer:
                return Answer(answer.status, dict(answer.headers), answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, dict(error.headers), error.read().decode())

    def workers(self) -> dict[str, dict[str, Any]]:
        """What the page of workers shows, by name."""
        return {each["hostname"]: each for each in self.get("/workers?json=1").json["data"]}

    def task(self, id: str) -> dict[str, Any]:
        answer = self.get(f"/api/task/info/{id}")
        return dict(answer.json) if answer.status == 200 else {}

    def send(self, name: str, *args: Any) -> str:
        answer = self.post(f"/api/task/async-apply/{name}", json.dumps({"args": args}))
        assert answer.status == 200, answer.text
        return str(answer.json["task-id"])

    def wait_for_state(self, id: str, state: str) -> dict[str, Any]:
        wait_until(lambda: self.task(id).get("state") == state, what=f"{state} of the task")
        return self.task(id)


def command(*options: str, app: str = "tests.support.echo") -> list[str]:
    return [sys.executable, "-m", "celery", "-A", app, "flower", *options]


@contextmanager
def flower(env: dict[str, str], log: Path, *options: str, app: str = "tests.support.echo") -> Iterator[Flower]:
    """Flower as a process that answers when the block begins."""
    port = free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(f"--port={port}", *options, app=app), cwd=REPOSITORY, env=env, stdout=output, stderr=output
        )
    try:
        wait_until(lambda: process.poll() is not None or VISIT in log.read_text(), what="Flower")
        assert process.poll() is None, log.read_text()
        yield Flower(f"http://127.0.0.1:{port}", process, log)
    finally:
        process.terminate()
        try:
            process.wait(240)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def deploy_echo() -> None:
    """The echo app's stack, with time enough for a task that hangs; other tests have its messages come back at once."""
    deployment.apply(echo.SETTINGS)
    sqs = boto3.client("sqs")
    url = sqs.get_queue_url(QueueName=echo.SETTINGS.request_queue)["QueueUrl"]
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "90"})


@pytest.fixture(scope="module")
def env(system: Settings, aws_endpoint: str) -> dict[str, str]:
    deploy_echo()
    return environ(aws_endpoint, system, AWS_SECRET_ACCESS_KEY=SECRET)


@pytest.fixture(scope="module")
def watched(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    """A Flower with one worker that came after it."""
    folder = tmp_path_factory.mktemp("flower")
    with (
        flower(env, folder / "flower", "--purge-offline-workers=1") as running,
        celery_worker("tests.support.echo", folder / "worker", env, "--hostname", WORKER, "--concurrency", "1"),
    ):
        wait_until(lambda: WORKER in running.workers(), what="the worker on the page")
        yield running


def run(env: dict[str, str], *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Flower that is expected to end by itself."""
    return subprocess.run(
        command(*options), cwd=REPOSITORY, env={**env, **more}, capture_output=True, text=True, timeout=PATIENCE_S
    )


@pytest.mark.parametrize(
    ("options", "more"),
    [
        (["--address=0.0.0.0"], {}),
        (["--address=::"], {}),
        (["--address="], {}),
        (["--address=no-such-host.invalid"], {}),
        ([], {"FACEAPP_FLOWER_HOST": "0.0.0.0"}),
        ([], {"FLOWER_ADDRESS": "0.0.0.0", "FLOWER_UNAUTHENTICATED_API": "true"}),
    ],
)
def test_it_does_not_start_open_to_others(env: dict[str, str], options: list[str], more: dict[str, str]) -> None:
    done = run(env, "--port=0", *options, **more)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: Flower on ")
    assert "FACEAPP_FLOWER_BASIC_AUTH=USER:PASSWORD" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("password", ["secret", ":secret", "me:"])
def test_it_does_not_start_with_a_password_that_nobody_could_give(env: dict[str, str], password: str) -> None:
    done = run(env, "--port=0", FLOWER_BASIC_AUTH=password)
    assert (done.returncode, done.stderr.splitlines()) == (
        2,
        ["Error: FACEAPP_FLOWER_BASIC_AUTH is no USER:PASSWORD: nobody could log in."],
    )


def test_a_port_that_is_taken_is_said_in_a_sentence(env: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = run(env, f"--port={port}")
    assert done.returncode == 1
    assert done.stderr == f"Error: Flower cannot listen on port {port} of 127.0.0.1: Address already in use.\n"


@pytest.mark.parametrize("how", ["setting", "option"])
def test_with_a_password_it_may_listen_anywhere_and_asks_for_it(env: dict[str, str], tmp_path: Path, how: str) -> None:
    """S14: the password need not be where 'ps' shows it; where it is, Flower warns."""
    options, more = {
        "setting": ([], {"FACEAPP_FLOWER_BASIC_AUTH": "me:secret"}),
        "option": (["--basic-auth=me:secret"], {}),
    }[how]
    with flower({**env, **more}, tmp_path / "log", "--address=0.0.0.0", *options) as protected:
        assert ("set FACEAPP_FLOWER_BASIC_AUTH" in protected.log.read_text()) is (how == "option")
        assert "secret" not in protected.log.read_text()
        assert (b"secret" in Path(f"/proc/{protected.process.pid}/cmdline").read_bytes()) is (how == "option")
        protected.headers = {}
        assert protected.get("/workers").status == 401
        assert protected.post(f"/api/worker/shutdown/{WORKER}").status == 401
        protected.headers = {"Authorization": "Basic bWU6c2VjcmV0"}
        assert protected.get("/workers", Host="flower.example.org").status == 200
        assert protected.get("/api/workers").status == 200
        assert protected.get("/broker").status == 200
        forged = protected.post(f"/api/worker/shutdown/{WORKER}", Sec_Fetch_Site="cross-site")
        assert forged.status == 403


def test_the_products_app_has_it_too_and_a_socket_file_is_its_owners(env: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "socket"
    with (tmp_path / "log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "faceapp", "flower", f"--unix-socket={file}"],
            cwd=REPOSITORY,
            env=env,
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: process.poll() is not None or file.exists(), what="the socket file")
        wait_until(lambda: file.stat().st_mode & 0o777 == 0o600, what="its mode")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(file))
            client.sendall(b"GET /healthcheck HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert client.makefile().read().endswith("OK")
    finally:
        process.terminate()
        assert process.wait(240) == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example.org"},
        {"Host": "127.0.0.1.example.org"},
        {"Host": "192.0.2.1:5555"},
        {"Origin": "https://evil.example.org"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "iframe"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "image"},
    ],
)
def test_no_page_from_elsewhere_may_use_it(watched: Flower, headers: dict[str, str]) -> None:
    for answer in (
        watched.get("/workers", **headers),
        watched.get("/api/workers", **headers),
        watched.get("/metrics", **headers),
        watched.get("/static/js/flower.js", **headers),
        watched.get("/nothing-here", **headers),
        watched.post(f"/api/worker/shutdown/{WORKER}", **headers),
        watched.ask("OPTIONS", "/api/workers", None, headers),
    ):
        assert answer.status == 403
        assert answer.text.startswith("This Flower asks for no password, so it answers this machine only. ")
        assert not [name for name in answer.headers if name.lower().startswith("access-control-")]
    assert watched.workers()[WORKER]["status"] is True


@pytest.mark.parametrize("path", ["/workers", "/api/workers", "/static/js/flower.js", "/nothing-here"])
def test_without_the_starts_credential_it_shows_nothing(watched: Flower, path: str) -> None:
    """S4: a tunnel that adds no header looks like a program of this machine."""
    for headers in ({}, {"Authorization": f"Bearer {WRONG_KEY}"}, {"Cookie": f"faceapp-flower={KEY}"}):
        stranger = Flower(watched.url, watched.process, watched.log, headers)
        answer = stranger.get(path)
        assert answer.status == 401
        assert "'faceapp up'" in answer.text
        assert stranger.post(f"/api/worker/shutdown/{WORKER}").status == 401
        assert stranger.post("/api/task/async-apply/faceapp.forget", "{}").status == 401
        assert stranger.get(f"/?key={WRONG_KEY}").status == 401
    assert watched.workers()[WORKER]["status"] is True


@pytest.mark.parametrize("size", ["Content-Length: 2000000", "Transfer-Encoding: chunked"])
def test_a_large_body_is_refused_before_it_is_read(watched: Flower, size: str) -> None:
    """Tornado read up to 100 MiB of each before the guard answered."""
    address = urlsplit(watched.url)
    with socket.create_connection((address.hostname, address.port), timeout=240) as client:
        client.sendall(f"POST /api/workers HTTP/1.1\r\nHost: localhost\r\n{size}\r\n\r\n".encode())
        if "chunked" in size:
            client.sendall(f"{BODY_BYTES + 1:x}\r\n".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "sent", ["", "GET / HTTP/1.1\r\nHost: loc", "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx"]
)
def test_a_request_that_does_not_end_is_cut(watched: Flower, sent: str) -> None:
    """It stayed open for ever."""
    address = urlsplit(watched.url)
    with socket.create_connection((address.hostname, address.port), timeout=240) as client:
        client.sendall(sent.encode())
        assert client.recv(100) == b""


def test_neither_keys_nor_what_cannot_be_read_are_logged(watched: Flower) -> None:
    """Tornado's lines had the text that it could not read, and addresses with a key in them."""
    address = urlsplit(watched.url)
    for head in ("GET /Secretname HTTP/x", f"GET /{KEY} HTTP/1.1\r\nSecretname", f"POST /?key={KEY} HTTP/1.1"):
        with socket.create_connection((address.hostname, address.port), timeout=240) as client:
            client.sendall(f"{head}\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            assert client.recv(100).startswith(b"HTTP/1.1 4")
    wait_until(lambda: "Malformed HTTP message" in watched.log.read_text(), what="the line")
    text = watched.log.read_text()
    assert "Malformed HTTP message: HTTPInput" in text
    assert "Secretname" not in text
    assert KEY not in text


def test_numbers_need_no_credential_on_this_machine(watched: Flower) -> None:
    program = Flower(watched.url, watched.process, watched.log, {})
    assert program.get("/metrics").status == 200
    assert program.get("/healthcheck").text == "OK"


@pytest.mark.parametrize("header", ["X-Forwarded-For", "X-Real-Ip", "Forwarded", "Cf-Connecting-Ip", "Tailscale-User"])
def test_nothing_comes_through_a_proxy(watched: Flower, header: str) -> None:
    """S4: not even with the credential, for nobody knows whose it is there; a password is for that."""
    for path in ("/workers", "/metrics", "/api/tasks", f"/?key={KEY}"):
        answer = watched.ask("GET", path, None, {header: "203.0.113.7"})
        assert answer.status == 403
        assert "It comes through a proxy or a tunnel." in answer.text


def test_the_link_gives_a_cookie_and_leaves_no_key_behind(watched: Flower) -> None:
    port = watched.url.rpartition(":")[2]
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=240)
    connection.request("GET", f"//evil.example/tasks?limit=5&key={KEY}")
    answer = connection.getresponse()
    answer.read()
    assert (answer.status, answer.headers["Location"]) == (303, "/evil.example/tasks?limit=5")
    cookie = answer.headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert KEY not in cookie
    connection.close()
    browser = Flower(watched.url, watched.process, watched.log, {"Cookie": cookie.partition(";")[0]})
    assert WORKER in browser.workers()
    assert KEY not in watched.log.read_text()


def test_a_form_of_another_page_is_not_a_link(watched: Flower) -> None:
    navigation = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert watched.get("/workers", **navigation).status == 200, "a link in somebody's mail"
    assert watched.post(f"/api/worker/shutdown/{WORKER}", Origin="null", **navigation).status == 403
    assert watched.post(f"/api/worker/shutdown/{WORKER}", **navigation).status == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:5555", "[::1]:5555", "127.0.0.2"])
def test_this_machine_has_several_names(watched: Flower, host: str) -> None:
    answer = watched.get("/api/workers", Host=host, Origin=f"http://{host}", Sec_Fetch_Site="same-origin")
    assert answer.status == 200
    assert answer.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    assert not [name for name in answer.headers if name.lower().startswith("access-control-")]


def test_a_task_lives_on_its_page_with_args_state_runtime_and_result(watched: Flower) -> None:
    id = watched.send(ECHO, "Grace <b>Hopper</b>")
    found = watched.wait_for_state(id, "SUCCESS")
    assert found["name"] == ECHO
    assert found["worker"] == WORKER
    assert found["args"] == "['Grace <b>Hopper</b>']"
    assert "Grace <b>Hopper</b>" in found["result"]
    assert found["runtime"] >= 0
    answer = watched.get(f"/api/task/result/{id}?timeout=240").json
    assert answer == {"task-id": id, "state": "SUCCESS", "result": "Grace <b>Hopper</b>"}
    assert watched.get(f"/api/task/result/{id}").json == answer, "as often as somebody asks"
    page = watched.get(f"/task/{id}").text
    assert "Grace &lt;b&gt;Hopper&lt;/b&gt;" in page
    assert "SUCCESS" in page
    assert id in watched.get("/api/tasks").json
    assert ECHO in watched.get("/api/task/types").json["task-types"]
    listed = watched.get(
        "/tasks/datatable?draw=1&start=0&length=10&search[value]=&order[0][column]=0&order[0][dir]=asc"
        "&columns[0][data]=name"
    ).json
    assert id in {each["uuid"] for each in listed["data"]}


def test_a_task_can_be_waited_for_and_sent_by_name(watched: Flower) -> None:
    answer = watched.post(f"/api/task/apply/{ECHO}", json.dumps({"args": [7], "timeout": 240}))
    assert (answer.status, answer.json["result"], answer.json["state"]) == (200, 7, "SUCCESS")
    id = watched.post(f"/api/task/send-task/{ECHO}", json.dumps({"args": [8]})).json["task-id"]
    assert watched.wait_for_state(id, "SUCCESS")["result"] == "8"
    assert watched.get(f"/api/task/result/{id}?timeout=240").json["result"] == 8
    other = echo.echo.delay(9)
    watched.wait_for_state(other.id, "SUCCESS")
    seen = watched.get(f"/api/task/result/{other.id}").json
    assert (seen["state"], seen["result"]) == ("SUCCESS", "9"), "what the events tell"
    assert other.get(timeout=240) == 9, "and the answer has come to whom it was for"
    assert watched.get("/api/task/result/nobody-knows").json["state"] == "PENDING"


def test_the_workers_page_has_pool_queues_stats_and_conf_and_no_secret(watched: Flower) -> None:
    answer = watched.get(f"/worker/{WORKER}")
    assert answer.status == 200
    for part in ("prefork", f"{echo.SETTINGS.prefix}-", "req-queue", "task_acks_late", ECHO):
        assert part in answer.text
    worker = watched.get(f"/api/workers?workername={WORKER}").json[WORKER]
    assert worker["stats"]["pool"]["max-concurrency"] == 1
    assert [each["name"] for each in worker["active_queues"]] == ["req-queue"]
    assert worker["conf"]["task_acks_late"] is True
    secrets = (SECRET, KEY, ACCESS["AWS_ACCESS_KEY_ID"])
    pages = ["/", "/workers", "/tasks", "/broker", f"/worker/{WORKER}", "/api/workers?refresh=1", "/metrics"]
    assert not [page for page in pages for secret in secrets if secret in watched.get(page).text]


def processes(watched: Flower) -> int:
    stats = watched.get(f"/api/workers?workername={WORKER}&refresh=1").json[WORKER]["stats"]
    return len(stats["pool"]["processes"])


def test_the_pool_grows_and_shrinks(watched: Flower) -> None:
    assert watched.post(f"/api/worker/pool/grow/{WORKER}", {"n": 1}).status == 200
    wait_until(lambda: processes(watched) == 2, what="two processes")
    assert watched.post(f"/api/worker/pool/shrink/{WORKER}", {"n": 1}).status == 200
    wait_until(lambda: processes(watched) == 1, what="one process")


def test_limits_can_be_set(watched: Flower) -> None:
    fields = {"workername": WORKER, "ratelimit": "1000/s"}
    assert watched.post(f"/api/task/rate-limit/{ECHO}", fields).json["message"] == "new rate limit set successfully"
    registered = watched.get(f"/api/workers?workername={WORKER}&refresh=1").json[WORKER]["registered"]
    assert f"{ECHO} [rate_limit=1000/s]" in registered
    fields = {"workername": WORKER, "soft": "30", "hard": "40"}
    assert watched.post(f"/api/task/timeout/{ECHO}", fields).json["message"] == "time limits set successfully"


def test_what_nobody_has_is_a_404(watched: Flower) -> None:
    assert watched.post("/api/worker/shutdown/celery@nobody").status == 404
    assert watched.get("/worker/celery@nobody").status == 404
    assert watched.get("/api/task/info/nothing").status == 404
    assert watched.post("/api/task/async-apply/tests.nothing", "{}").status == 404
    assert watched.post(f"/api/task/async-apply/{ECHO}", "no JSON").status == 400


def test_the_broker_page_shows_the_queues_and_dead_letters_stand_out(watched: Flower) -> None:
    sqs = boto3.client("sqs")
    dead = echo.SETTINGS.dead_letter_queue
    url = sqs.get_queue_url(QueueName=dead)["QueueUrl"]
    empty(sqs, url)  # of what other tests made
    page = watched.get("/broker").text
    for column in ("Visible", "In flight", "Delayed"):
        assert f"<th>{column}</th>" in page
    assert echo.SETTINGS.request_queue in page
    assert "table-danger" not in page
    sqs.send_message(QueueUrl=url, MessageBody="{}")
    try:
        wait_until(lambda: "table-danger" in watched.get("/broker").text, what="a dead letter that stands out")
        found = {each["name"]: each for each in watched.get("/api/queues/length").json["active_queues"]}
        assert found[dead]["messages_ready"] == found[dead]["messages"] == 1
        assert found[dead]["kind"] == "dead letters"
        assert found[echo.SETTINGS.request_queue]["kind"] == "requests"
        assert [each for each in found if each.startswith(echo.SETTINGS.response_queue)]
    finally:
        empty(sqs, url)


def empty(sqs: Any, url: str) -> None:
    """Delete a queue's messages; SQS purges once a minute at most."""
    while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
        for message in messages:
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])


def test_metrics_tell_of_workers_and_tasks(watched: Flower) -> None:
    watched.wait_for_state(watched.send(ECHO, 1), "SUCCESS")
    metrics = watched.get("/metrics").text
    assert f'flower_worker_online{{worker="{WORKER}"}} 1.0' in metrics
    assert f'flower_events_total{{task="{ECHO}",type="task-succeeded",worker="{WORKER}"}}' in metrics


def event_queues() -> list[str]:
    prefix = f"{echo.SETTINGS.prefix}-celeryev"
    return [
        str(url).rpartition("/")[2]
        for url in boto3.client("sqs").list_queues(QueueNamePrefix=prefix).get("QueueUrls", ())
    ]


def test_two_flowers_each_get_every_event_and_leave_no_queue(
    watched: Flower, env: dict[str, str], tmp_path: Path
) -> None:
    before = set(event_queues())
    with flower(env, tmp_path / "log") as second:
        wait_until(lambda: WORKER in second.workers(), what="the heartbeat that it asked for")
        port = second.url.rpartition(":")[2]
        [own] = set(event_queues()) - before
        assert own.endswith(f"-{port}")
        ids = [second.send(ECHO, n) for n in range(5)]
        for each in (watched, second):
            for id in ids:
                each.wait_for_state(id, "SUCCESS")
    assert second.process.returncode == 0
    wait_until(lambda: set(event_queues()) == before, what="the end of its queue")


def test_nothing_of_sqs_is_a_sentence_on_the_page(env: dict[str, str], tmp_path: Path) -> None:
    with flower({**env, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, tmp_path / "log") as blind:
        page = blind.get("/broker")
        assert page.status == 200
        assert 'role="alert">SQS does not answer: ' in page.text
        answer = blind.get("/api/queues/length")
        assert answer.status == 503
        assert answer.text.startswith("SQS does not answer: ")
        assert blind.get("/workers").status == 200
        assert "Traceback" not in blind.log.read_text()


def test_a_worker_comes_is_told_to_leave_and_vanishes(watched: Flower, env: dict[str, str], tmp_path: Path) -> None:
    name = "celery@two"
    with celery_worker(
        "tests.support.echo", tmp_path / "log", env, "--hostname", name, "--concurrency", "1"
    ) as process:
        wait_until(lambda: watched.workers().get(name, {}).get("status"), what="the worker on the page")
        assert name in watched.get("/api/workers").json, "nobody has opened its page yet"
        answer = watched.post(f"/api/worker/shutdown/{name}")
        assert (answer.status, answer.json["message"]) == (200, "Shutting down!")
        assert process.wait(240) == 0
        wait_until(lambda: name not in watched.workers(), what="its end on the page")
        wait_until(lambda: name not in watched.get("/api/workers").json, what="its end in the API")
        watched.get("/metrics")
        assert name not in watched.get("/metrics").text
    assert watched.workers()[WORKER]["status"] is True


def test_a_killed_worker_vanishes_when_its_heart_has_stopped(
    watched: Flower, env: dict[str, str], tmp_path: Path
) -> None:
    name = "celery@killed"
    options = ("--hostname", name, "--concurrency", "1", "--heartbeat-interval", "1")
    with celery_worker("tests.support.echo", tmp_path / "log", env, *options) as process:
        wait_until(lambda: watched.workers().get(name, {}).get("status"), what="the worker on the page")
        os.killpg(process.pid, signal.SIGKILL)
        wait_until(lambda: name not in watched.workers(), what="its end on the page")
        wait_until(lambda: watched.workers()[WORKER]["status"], what="the other's life")


def test_events_lost_and_doubled_change_nothing_but_numbers(env: dict[str, str], tmp_path: Path) -> None:
    name = f"celery@{uuid.uuid4().hex[:8]}"
    with (
        flower(env, tmp_path / "log") as running,
        echo.app.connection_for_write() as connection,
        echo.app.events.Dispatcher(connection, hostname=name, buffer_while_offline=False) as worker,
    ):
        whole, lost, late = (uuid.uuid4().hex for _ in range(3))

        def told(kind: str, id: str, times: int = 1, **more: Any) -> None:
            for _ in range(times):
                worker.send(kind, uuid=id, **more)

        def comes() -> bool:
            told("task-received", whole, name=ECHO, args="()", kwargs="{}")
            return bool(running.task(whole))

        wait_until(comes, what="the first event")
        told("task-started", whole, times=3)
        told("task-succeeded", whole, times=3, result="'once'", runtime=0.5)
        told("task-succeeded", lost, result="'heard only of its end'", runtime=0.5)
        told("task-succeeded", late, result="'done'", runtime=0.5)
        told("task-started", late)
        told("task-received", late, name=ECHO, args="()", kwargs="{}")

        for id in (whole, lost, late):
            running.wait_for_state(id, "SUCCESS")
        wait_until(lambda: running.task(late)["name"] == ECHO, what="what was late")
        assert {running.task(id)["state"] for id in (whole, lost, late)} == {"SUCCESS"}
        assert running.task(whole)["result"] == "'once'"
        assert name in running.get("/metrics").text
        for page in ("/", "/tasks", f"/task/{lost}", "/broker"):
            assert running.get(page).status == 200
        assert "Traceback" not in running.log.read_text()


def test_what_a_worker_tells_after_its_goodbye_does_not_bring_it_back(env: dict[str, str], tmp_path: Path) -> None:
    name = f"celery@{uuid.uuid4().hex[:8]}"
    beat = {"freq": 30.0, "active": 0, "processed": 0, "loadavg": (0, 0, 0), "sw_ident": "py-celery"}
    with (
        flower(env, tmp_path / "log") as running,
        echo.app.connection_for_write() as connection,
        echo.app.events.Dispatcher(connection, hostname=name, buffer_while_offline=False) as worker,
    ):
        wait_until(lambda: len(event_queues()) > 0, what="the queue of events")

        def comes() -> bool:
            worker.send("worker-online", **beat)
            return bool(running.workers().get(name, {}).get("status"))

        wait_until(comes, what="the worker on the page")
        id = uuid.uuid4().hex
        worker.send("task-received", uuid=id, name=ECHO, args="()", kwargs="{}")
        running.wait_for_state(id, "RECEIVED")
        worker.send("task-started", uuid=id)
        running.wait_for_state(id, "STARTED")
        worker.send("worker-heartbeat", freq=5, sw_ident="asked")
        wait_until(lambda: running.workers()[name]["sw_ident"] == "asked", what="the heartbeat")
        assert running.workers()[name]["freq"] == 30, "what it promises when somebody asks for a heartbeat"
        assert running.workers()[name]["active"] == 1
        worker.send("worker-offline", **{**beat, "active": 1})
        wait_until(lambda: not running.workers()[name]["status"], what="the goodbye")
        for _ in range(2):  # SQS delivers twice, now and then
            worker.send("task-succeeded", uuid=id, result="1", runtime=0.1)
        running.wait_for_state(id, "SUCCESS")
        assert (running.workers()[name]["status"], running.workers()[name]["active"]) == (False, 0)
        worker.send("worker-online", **beat)
        wait_until(lambda: running.workers()[name]["status"], what="the worker again")


def test_tasks_are_revoked_while_they_wait_and_while_they_run(
    watched: Flower, env: dict[str, str], tmp_path: Path
) -> None:
    queue = {"queue": "req-queue"}
    assert watched.post(f"/api/worker/queue/cancel-consumer/{WORKER}", queue).status == 200
    name, log = "celery@hangs", tmp_path / "log"
    try:
        with celery_worker(
            "tests.support.echo", log, {**env, "ECHO_HANGS": "1"}, "--hostname", name, "--concurrency", "1"
        ) as process:
            running = watched.send(ECHO, "runs")
            watched.wait_for_state(running, "STARTED")
            assert watched.workers()[name]["active"] == 1
            waiting = watched.send(ECHO, "waits")
            watched.wait_for_state(waiting, "RECEIVED")
            assert watched.post(f"/api/task/revoke/{waiting}").json["message"] == f"Revoked '{waiting}'"
            assert watched.post(f"/api/task/revoke/{running}?terminate=true&signal=SIGKILL").status == 200
            watched.wait_for_state(running, "REVOKED")
            watched.wait_for_state(waiting, "REVOKED")
            assert watched.workers()[name]["active"] == 0
            assert log.read_text().count("hanging") == 1, "what waited never ran"
            assert watched.post(f"/api/worker/shutdown/{name}").status == 200
            assert process.wait(240) == 0
    finally:
        assert watched.post(f"/api/worker/queue/add-consumer/{WORKER}", queue).status == 200
    watched.wait_for_state(watched.send(ECHO, "again"), "SUCCESS")
    assert {watched.task(id)["state"] for id in (running, waiting)} == {"REVOKED"}, "none comes back"
