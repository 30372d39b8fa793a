"""The web tier as a process: gunicorn, sockets, signals, slots."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPResponse
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest

from faceapp.config import Settings
from faceapp.errors import LocalError
from faceapp.http import server
from tests.support.aws import BEARER
from tests.support.services import PATIENCE_S, celery_worker, environ, wait_until
from tests.support.web import BOUNDARY, SERVE, File, form, messages, nothing_new, plain, stored, web_server

FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}


def ask(url: str, method: str = "POST", path: str = "/", body: Any = None, **headers: str) -> tuple[HTTPResponse, str]:
    """One request over a connection of its own, as the classic clients make them."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=240)
    try:
        connection.request(method, path, body=body, headers=FORM | BEARER | {"Connection": "close"} | headers)
        answer = connection.getresponse()
        return answer, answer.read().decode()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def web(aws_endpoint: str, system: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The web tier with small limits, on the session's stack: its URL."""
    log = tmp_path_factory.mktemp("web") / "log"
    limits = {"FACEAPP_WEB_MAX_PHOTO_BYTES": "100000", "FACEAPP_WEB_MAX_REQUEST_BYTES": "1000000"}
    with web_server(aws_endpoint, system, log, **limits) as (url, _):
        yield url


def test_nothing_of_boto3_is_there_before_gevent_has_patched() -> None:
    """C4: the look at the region brought it in, and each call of S3 ended in a RecursionError."""
    code = """
import sys
from faceapp.http import server
server.serve = lambda _: print(*{"boto3", "botocore", "urllib3", "celery"} & {*sys.modules})
from faceapp.cli import main
main(["web"])
"""
    env = environ("http://127.0.0.1:9", Settings())
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.usefixtures("worker")
def test_many_first_requests_at_once_are_all_answered(web: str) -> None:
    lines: list[str] = []

    def send(n: int) -> None:
        lines.append(ask(web, body=form({"inputFile": File(plain(), f"{n}.jpg")}))[1])

    threads = [threading.Thread(target=send, args=[n]) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(lines) == sorted(f"{n}:no_face" for n in range(12))


def chunks(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), 10_000):
        yield data[start : start + 10_000]


@pytest.mark.usefixtures("worker")
def test_a_chunked_upload_is_taken(web: str) -> None:
    answer, text = ask(web, body=chunks(form({"inputFile": File(plain(), "chunked.jpg")})))
    assert (answer.status, text) == (200, "chunked:no_face")


@pytest.mark.parametrize("size_bytes", [150_000, 1_900_000], ids=["photo", "request"])
@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "chunked"])
def test_over_the_limit_is_413(web: str, system: Settings, size_bytes: int, chunked: bool) -> None:
    before = stored(system)
    body = form({"inputFile": File(plain() + bytes(size_bytes))})
    answer, text = ask(web, body=chunks(body) if chunked else body)
    assert answer.status == 413
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert '"upload_too_large"' in text
    assert nothing_new(system, before)


def test_a_body_that_ends_too_early_is_400(web: str) -> None:
    body = form({"inputFile": File(plain())})
    with socket.create_connection((urlsplit(web).hostname, urlsplit(web).port), timeout=240) as connection:
        head = "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        head += f"Content-Type: {FORM['Content-Type']}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body[:1000])
        connection.shutdown(socket.SHUT_WR)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 400
        assert b'"bad_request"' in answer.read()


def test_a_name_with_dots_and_encoded_slashes_is_refused(web: str) -> None:
    for path in ("/v1/people/..%2f..%2fetc", "/v1/people/%2e%2e", "/v1/people/a..b"):
        answer, text = ask(web, "GET", path)
        assert answer.status == 400
        assert '"name_invalid"' in text


@pytest.mark.parametrize("name", ["SCRIPT_NAME", "PATH_INFO", "X-Forwarded-Proto"])
@pytest.mark.parametrize("value", ["/v1", "//evil.example", "https"])
def test_no_header_says_which_path_a_request_is_of(web: str, name: str, value: str) -> None:
    """S1: gunicorn believed SCRIPT_NAME from the loopback: 500 in HTML, or links to another host."""
    answer, text = ask(web, "POST", "/v1/recognitions", form({"a": File(plain())}), **{name: value})
    assert answer.status == 202, text
    location = answer.getheader("Location", "")
    assert location.startswith("/v1/recognitions/")
    assert f'"self":"{location}"' in text


def test_a_taken_port_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = replace(Settings(), web_port=taken.getsockname()[1])
        with pytest.raises(LocalError, match=f"{settings.web_port}.*FACEAPP_WEB_PORT"):
            server.listen(settings)


@pytest.mark.parametrize(("taken", "free"), [([], 0), ([0, 1], 2), ([1, 2], 0), ([2, 0], 1)])
def test_a_new_process_gets_the_lowest_free_slot(taken: list[int], free: int) -> None:
    arbiter = SimpleNamespace(WORKERS={pid: SimpleNamespace(slot=slot) for pid, slot in enumerate(taken)})
    worker = SimpleNamespace()
    server.give_slot(arbiter, worker)
    assert worker.slot == free


def response_queues(settings: Settings) -> set[str]:
    urls = boto3.client("sqs").list_queues(QueueNamePrefix=settings.response_queue).get("QueueUrls", [])
    return {url.rsplit("/", 1)[1] for url in urls}


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.system
def test_a_restarted_process_takes_over_its_predecessors_queue(
    aws_endpoint: str, stack: Settings, tmp_path: Path
) -> None:
    body = form({"inputFile": File(plain(), "a.jpg")})
    with (
        celery_worker("faceapp.tasks", tmp_path / "worker", environ(aws_endpoint, stack), "--concurrency", "1"),
        web_server(aws_endpoint, stack, tmp_path / "web", FACEAPP_WEB_PROCESSES="2") as (url, process),
    ):
        names = {stack.response_queue, f"{stack.response_queue}-1"}

        def both_work() -> bool:
            assert ask(url, body=body)[1] == "a:no_face"
            return response_queues(stack) == names

        wait_until(both_work, timeout_s=240, what="an answer from each process")
        before = children(process.pid)
        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda: len(set(children(process.pid)) - set(before)) == 1, what="a new process")
        for _ in range(10):
            assert ask(url, body=body)[1] == "a:no_face"
        assert response_queues(stack) == names


@pytest.mark.system
def test_waiting_requests_are_answered_after_sigterm(aws_endpoint: str, stack: Settings, tmp_path: Path) -> None:
    answers, log = [], tmp_path / "web"
    with web_server(aws_endpoint, stack, log) as (url, process):
        body = form({"inputFile": File(plain(), "late.jpg")})
        request = threading.Thread(target=lambda: answers.append(ask(url, body=body)[1]))
        request.start()
        wait_until(lambda: messages(stack) == 1, what="the request's task")
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: "Handling signal: term" in log.read_text(), what="the signal")
        with celery_worker("faceapp.tasks", tmp_path / "worker", environ(aws_endpoint, stack), "--concurrency", "1"):
            request.join(PATIENCE_S)
        assert answers == ["late:no_face"]
        assert process.wait(240) == 0


HANGING = """
import os, sys
from dataclasses import replace
import flask
from faceapp.observability import logs
from faceapp.config import settings
from faceapp.http import server

app = flask.Flask("hanging")

@app.get("/pid")
def pid():
    return str(os.getpid())

@app.get("/hang")
def hang():
    while True:
        pass

# Both have to run out here, and a process that is only short of the machine has to beat within the first: so it
# imports nothing when it starts, since Celery and boto3 take longer than that where others keep the cores busy.
server.HANG_S = 6
server.JUMP_S = 4
server.Server.load = lambda _: app
server.take_slot = lambda _: None
logs.configure(settings(), service="faceapp-web")
server.serve(replace(settings(), web_port=0, web_processes=int(sys.argv[1])))
"""

SLOW_TO_START = (
    """
import time
from faceapp.http import connections

def patch(self, patch=connections.GreenletWorker.patch):
    print("it starts now", flush=True)
    time.sleep(2)
    patch(self)

connections.GreenletWorker.patch = patch
"""
    + SERVE
)


@contextmanager
def hanging_server(
    endpoint: str, settings: Settings, log: Path, processes: int
) -> Iterator[tuple[str, int, list[int]]]:
    """A server of ours whose processes hang when they are asked to: its URL, its process, and theirs."""
    with web_server(endpoint, settings, log, script=HANGING, arguments=[str(processes)]) as (url, process):
        wait_until(lambda: len(children(process.pid)) == processes, what="the processes")
        wait_until(lambda: ask(url, "GET", "/pid")[0].status == 200, what="an answer")
        yield url, process.pid, children(process.pid)


def kill_all(pids: list[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)


@pytest.mark.system
def test_a_process_that_is_told_to_end_while_it_starts_hears_it(
    aws_endpoint: str, system: Settings, tmp_path: Path
) -> None:
    """Under gunicorn alone it keeps the handlers that it was forked with, and the server waits for it."""
    with web_server(aws_endpoint, system, tmp_path / "web", script=SLOW_TO_START) as (_, process):
        wait_until(lambda: "starts now" in (tmp_path / "web").read_text(), what="a process that starts")
        process.terminate()
        # Without the signal it would wait for `graceful_timeout`, which is longer.
        assert process.wait(system.web_wait_s / 2) == 0


@pytest.mark.system
def test_a_process_that_was_stopped_goes_on_and_one_that_hangs_is_replaced(
    aws_endpoint: str, system: Settings, tmp_path: Path
) -> None:
    """R7: one is stopped for longer than the other needs to be found hanging; the first answers when it goes on."""
    with hanging_server(aws_endpoint, system, tmp_path / "web", processes=2) as (url, arbiter, pids):
        stopped, hangs = pids
        os.kill(stopped, signal.SIGSTOP)
        with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as connection:
            connection.sendall(b"GET /hang HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            wait_until(lambda: hangs not in children(arbiter), timeout_s=240, what="the end of the one that hangs")
        assert "WORKER TIMEOUT" in (tmp_path / "web").read_text()
        assert stopped in children(arbiter)
        os.kill(stopped, signal.SIGCONT)
        wait_until(lambda: ask(url, "GET", "/pid")[1] == str(stopped), timeout_s=240, what="its answer")


@pytest.mark.system
def test_a_server_that_was_stopped_with_its_processes_replaces_none(
    aws_endpoint: str, system: Settings, tmp_path: Path
) -> None:
    """R7: as a laptop's sleep, Ctrl-Z or a frozen container stop it, with the arbiter, which goes on first."""
    with hanging_server(aws_endpoint, system, tmp_path / "web", processes=1) as (url, arbiter, pids):
        (heartbeat,) = (each for each in Path(f"/proc/{pids[0]}/fd").iterdir() if "wgunicorn-" in os.readlink(each))
        kill_all([arbiter, *pids], signal.SIGSTOP)
        wait_until(lambda: time.monotonic() - heartbeat.stat().st_mtime > 8, what="an old heartbeat")
        kill_all([arbiter, *pids], signal.SIGCONT)
        wait_until(lambda: time.monotonic() - heartbeat.stat().st_mtime < 1, what="a new heartbeat")
        assert ask(url, "GET", "/pid")[1] == str(pids[0])
        assert "WORKER TIMEOUT" not in (tmp_path / "web").read_text()
