"""The scaler's status as the web tier passes it on."""

from __future__ import annotations

import dataclasses
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from faceapp.config import Settings
from tests.support.services import PATIENCE_S
from tests.support.web import client_of

STATUS = {
    "policy": "depth",
    "wanted": 2,
    "reason": "2 photos",
    "counts": {"visible": 2, "in_flight": 0, "delayed": 0},
    "instances": {"booting": 2},
    "history": [[0.0, 2, 0, 2, 0, 0, 2]],
}


@contextmanager
def scaler(body: bytes, status: int = 200) -> Iterator[tuple[int, list[str]]]:
    """Something that answers on a scaler's port; yields the port and the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, asked
        server.shutdown()
        thread.join()


def ask(settings: Settings, port: int, times: int = 1) -> Any:
    client = client_of(dataclasses.replace(settings, scaler_port=port))
    answers = [client.get("/v1/scaler") for _ in range(times)]
    assert {answer.status_code for answer in answers} == {200}
    assert answers[-1].headers["Cache-Control"] == "no-store"
    return answers[-1].json


def test_the_status_is_passed_on(system: Settings, aws: str) -> None:
    with scaler(json.dumps(STATUS).encode()) as (port, asked):
        assert ask(system, port) == {"running": True, **STATUS}
        assert asked == ["/status"]


def test_many_pages_ask_the_scaler_once(system: Settings, aws: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faceapp.http.scaler.FRESH_S", PATIENCE_S)
    with scaler(json.dumps(STATUS).encode()) as (port, asked):
        ask(system, port, times=20)
        assert asked == ["/status"]


@pytest.mark.parametrize(("body", "status"), [(b"no json", 200), (b"{}", 500), (b"", 200)])
def test_a_scaler_that_answers_nonsense_is_not_running(system: Settings, aws: str, body: bytes, status: int) -> None:
    with scaler(body, status) as (port, _):
        assert ask(system, port) == {"running": False}


def test_without_a_scaler_the_page_still_works(system: Settings, aws: str) -> None:
    with scaler(b"") as (port, _):
        pass
    assert ask(system, port) == {"running": False}
