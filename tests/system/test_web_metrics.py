"""What a web tier of several processes tells Prometheus."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faceapp.config import Settings
from tests.integration.test_web_metrics import ask, parsed, value
from tests.support.services import celery_worker, environ, wait_until
from tests.support.web import File, form, messages, plain, web_server


@pytest.fixture
def two_processes(aws_endpoint: str, stack: Settings, tmp_path: Path) -> Iterator[tuple[str, Any, Path]]:
    """A web tier of two processes, with a folder for what it makes on disk."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    processes = {"FACEAPP_WEB_PROCESSES": "2", "FACEAPP_WEB_WAIT_S": "30", "TMPDIR": str(folder)}
    with web_server(aws_endpoint, stack, tmp_path / "web", **processes) as (url, process):
        yield url, process, folder


@pytest.mark.system
def test_a_scrape_tells_of_all_processes(
    two_processes: tuple[str, Any, Path], aws_endpoint: str, stack: Settings, tmp_path: Path
) -> None:
    url, process, folder = two_processes
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def told(name: str, *labels: str) -> float:
        status, text = ask(url)
        assert status == 200, text
        return value(parsed(text), name, *labels)

    wait_until(lambda: told("processes") == 2, what="both processes in one scrape")
    # As a process leaves it that is killed while it starts.
    (next(folder.glob("faceapp-web-metrics-*")) / "counter_1.db").touch()
    requests = 40
    for _ in range(requests):
        assert ask(url, path="/healthz")[0] == 200
    # Whichever process answers tells of all forty.
    assert {told("requests_total", "health.healthz", "ok") for _ in range(10)} == {requests}

    photo = form({"photo": File(plain())})
    assert ask(url, "POST", "/v1/recognitions", photo, Prefer="wait=1")[0] == 202
    assert told("photos_total", "pending") == 1
    assert told("requests_total", "api.recognise", "pending") == 1
    waiting = [
        threading.Thread(target=ask, args=(url, "POST", "/", form({"inputFile": File(plain(), f"{n}.jpg")})))
        for n in range(6)
    ]
    for each in waiting:
        each.start()
    wait_until(lambda: messages(stack) == 7, what="six more tasks")
    wait_until(lambda: told("waiting_requests") == 6, what="six waiting requests")
    with celery_worker("faceapp.tasks", tmp_path / "worker", environ(aws_endpoint, stack), "--concurrency", "1"):
        for each in waiting:
            each.join()
    assert told("waiting_requests") == 0
    assert told("photos_total", "no_face") == 6
    assert told("stage_duration_seconds_count", "detect") == 6
    assert told("answers_total", "delivered") == 6
    assert told("request_duration_seconds_count", "classic.answer") == 6

    before = path.read_text().split()
    os.kill(int(before[0]), signal.SIGKILL)
    wait_until(lambda: len(set(path.read_text().split()) - set(before)) == 1, what="a new process")
    wait_until(lambda: told("processes") == 2, what="the new process in place of the killed one")
    assert told("requests_total", "health.healthz", "ok") == requests, "a killed process took its counts with it"
    process.send_signal(signal.SIGTERM)
    assert process.wait(240) == 0
    assert not [each for each in folder.iterdir() if "metrics" in each.name]
