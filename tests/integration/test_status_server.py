"""The scaler's port: who reads its numbers, and that nobody keeps its threads (row S8)."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator

import pytest

from celery_sqs.scaler import status_server
from celery_sqs.scaler.status import Status
from celery_sqs.scaler.status_server import CONNECTIONS, REQUEST_BYTES, StatusServer
from faceapp.config import Settings
from faceapp.config.aws import of as aws_of
from faceapp.http.scaler import ScalerStatus
from faceapp.scaler import options
from tests.support.services import PATIENCE_S, free_port, wait_until

ODD_LINES = [
    "garbage\r\nX-Forwarded-For: 127.0.0.1",
    "X-Forwarded-For : 127.0.0.1",
    ": 1\r\nX-Forwarded-For: 127.0.0.1",
    "X-One: 1\r\n X-Forwarded-For: 127.0.0.1",
    "X-One: 1\rX-Forwarded-For: 127.0.0.1",
    "X-One: 1\0",
]


def serving(host: str = "127.0.0.1") -> StatusServer:
    settings = Settings(prefix="nobody", scaler_host=host, scaler_port=free_port())
    server = StatusServer(options(settings), Status(options(settings), aws_of(settings)))
    server.start()
    return server


@pytest.fixture
def server() -> Iterator[StatusServer]:
    server = serving()
    yield server
    server.stop()


def ask(server: StatusServer, path: str = "/status", *, at: str = "127.0.0.1", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(at, server.port, timeout=PATIENCE_S)
    try:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def opened(server: StatusServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)


def at_work(server: StatusServer) -> int:
    return sum("process_request_thread" in each.name for each in threading.enumerate())


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "192.168.1.2:8001"},
        {"Origin": "http://evil.example"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-origin"},
        {"X_Forwarded_For": "127.0.0.1"},
        {"Cf_Ray": "1"},
    ],
)
def test_foreign_hosts_pages_and_proxies_read_nothing(server: StatusServer, headers: dict[str, str]) -> None:
    """S8."""
    for path in ("/status", "/metrics"):
        status, text = ask(server, path, **headers)
        assert (status, text.startswith("This is for programs of this machine. ")) == (403, True)


@pytest.mark.parametrize("odd", ODD_LINES)
def test_no_header_hides_behind_an_odd_line(server: StatusServer, odd: str) -> None:
    """S8: the standard library reads headers up to the first line that is none, and `X-Forwarded-For` came after."""
    with opened(server) as client:
        client.sendall(f"GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\n{odd}\r\n\r\n".encode())
        assert client.recv(1000).split()[1] in (b"400", b"403")


def test_programs_and_a_typed_address_read_it(server: StatusServer, aws: str) -> None:
    assert json.loads(ask(server)[1])["policy"] == "work"
    assert "faceapp_scaler_leader" in ask(server, "/metrics", Host=f"localhost:{server.port}")[1]
    assert ask(server, Sec_Fetch_Site="none", Sec_Fetch_Mode="navigate")[0] == 200
    assert ask(server, "/healthz", Host="anything")[0] == 200
    assert ask(server, "/nothing")[0] == 404


def test_on_another_address_it_answers_private_networks_and_still_no_page() -> None:
    server = serving("0.0.0.0")
    try:
        assert ask(server)[0] == 200
        for headers in ({"Host": "evil.example"}, {"Sec_Fetch_Site": "same-origin"}, {"Via": "1.1 proxy"}):
            assert ask(server, **headers)[0] == 403
    finally:
        server.stop()


def test_a_name_of_the_loopback_is_the_loopback() -> None:
    """The scaler took other names than localhost for a network, and the web tier was refused there."""
    server = serving("127.1")
    try:
        assert ask(server, Via="1.1 proxy")[0] == 403
        status = ScalerStatus(Settings(scaler_host="127.1", scaler_port=server.port)).get()
        assert status is not None
        assert status["policy"] == "work"
    finally:
        server.stop()


def test_an_error_of_ours_is_logged(server: StatusServer, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise RuntimeError("for a test")

    server._server.RequestHandlerClass.status.document = broken  # type: ignore[attr-defined]
    with pytest.raises(http.client.RemoteDisconnected):
        ask(server)
    wait_until(lambda: "RuntimeError: for a test" in caplog.text, what="the traceback in the log")


def test_a_silent_connection_ends(server: StatusServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """S8: it kept a thread for ever; one that dribbles is cut, too."""
    monkeypatch.setattr(status_server, "CONNECTION_S", 0.5)
    with opened(server) as silent, opened(server) as dribbling:
        dribbling.sendall(b"GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        for each in (silent, dribbling):
            # A reset, or an end without an answer.
            with contextlib.suppress(ConnectionResetError):
                assert each.recv(1) == b""


def test_many_connections_keep_no_more_threads_than_there_are_places(
    server: StatusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S8: those beyond are closed, and it answers again when the others are gone."""
    open_ones = [opened(server) for _ in range(3 * CONNECTIONS)]
    try:
        closed = [each for each in open_ones[CONNECTIONS:] if each.recv(1) == b""]
        assert len(closed) == 2 * CONNECTIONS
    finally:
        for each in open_ones:
            each.close()

    def answers() -> bool:
        try:
            return ask(server)[0] == 200
        except OSError:
            return False

    wait_until(answers, what="an answer")


def test_a_large_request_is_cut(server: StatusServer) -> None:
    """S8."""
    for start in (b"GET /status?", b"GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "):
        with opened(server) as connection:
            try:
                connection.sendall(start + b"a" * (2 * REQUEST_BYTES))
                assert connection.recv(1) == b""
            except (ConnectionResetError, BrokenPipeError):
                pass
    assert ask(server)[0] == 200
