"""More than the web tier takes, and clients that are slower than it waits for: real processes, real sockets."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import re
import select
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from faceapp.config import Settings
from faceapp.errors import ConfigError, FaceappError, Overloaded, StorageUnavailable
from faceapp.http import connections
from faceapp.http.admission import Admission, Place
from faceapp.http.dispatch import _Readiness
from faceapp.http.metrics import Metrics
from faceapp.stack import data_tier as deployment
from tests.support.aws import BEARER, KEY
from tests.support.services import PATIENCE_S, celery_worker, environ, wait_until
from tests.support.web import BOUNDARY, File, form, plain, web_server

PLACES = 5
UPLOAD_BYTES = 200_000
FORM = f"multipart/form-data; boundary={BOUNDARY.decode()}"
BODY = form({"inputFile": File(plain(), "one.jpg")})


@dataclass(frozen=True)
class Web:
    """A web process under test."""

    port: int
    process: psutil.Process

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def ask(self, method: str = "GET", path: str = "/", body: Any = None, **headers: str) -> tuple[int, str]:
        """One request over a connection of its own: status and text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request(method, path, body=body, headers={"Content-Type": FORM} | BEARER | headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def gauge(self, name: str) -> float:
        found = re.search(rf"^faceapp_web_{name} (\S+)$", self.ask(path="/metrics")[1], re.MULTILINE)
        assert found
        return float(found[1])

    def idle(self) -> bool:
        return self.gauge("admitted_requests") == self.gauge("upload_bytes") == self.gauge("waiting_requests") == 0

    def files(self) -> int:
        return sum(child.num_fds() for child in self.process.children())


@pytest.fixture(scope="module")
def own_stack(aws_endpoint: str, system: Settings) -> Settings:
    """A stack without any worker: requests wait."""
    settings = replace(system, prefix=f"o{uuid.uuid4().hex[:8]}")
    deployment.apply(settings)
    return settings


@contextmanager
def serving(endpoint: str, settings: Settings, log: Path, **environment: str) -> Iterator[Web]:
    small = {
        "FACEAPP_WEB_WAITING": str(PLACES),
        "FACEAPP_WEB_CONNECTIONS": "16",
        "FACEAPP_WEB_UPLOAD_BYTES": str(UPLOAD_BYTES),
        "FACEAPP_WEB_MAX_REQUEST_BYTES": "20000000",
    }
    with web_server(endpoint, settings, log, **(small | environment)) as (url, process):
        port = urlsplit(url).port
        assert port
        yield Web(port, psutil.Process(process.pid))


@pytest.fixture(scope="module")
def web(aws_endpoint: str, own_stack: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """A process with five places."""
    with serving(aws_endpoint, own_stack, tmp_path_factory.mktemp("web") / "log") as web:
        yield web


@pytest.fixture(scope="module")
def hasty(aws_endpoint: str, own_stack: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """The same, and no client may take longer than three seconds for anything."""
    log = tmp_path_factory.mktemp("hasty") / "log"
    with serving(aws_endpoint, own_stack, log, FACEAPP_WEB_UPLOAD_S="3") as web:
        yield web


def head(length: int | str = len(BODY), *more: str, path: str = "/", method: str = "POST") -> bytes:
    size = f"Content-Length: {length}" if isinstance(length, int) else f"Transfer-Encoding: {length}"
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Content-Type: {FORM}",
        size,
        f"Authorization: Bearer {KEY}",
        *more,
    ]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


class _Bytewise:
    """A socket whose file reads no further than it is asked to."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(socket.SocketIO(self._connection, "r"), buffer_size=1)


def answer_on(connection: socket.socket) -> tuple[http.client.HTTPResponse, str]:
    # What comes after it stays in the connection, which reading it as a file would take in as well.
    answer = http.client.HTTPResponse(_Bytewise(connection))  # type: ignore[arg-type]
    answer.begin()
    return answer, answer.read().decode()


def is_overloaded(connection: socket.socket) -> None:
    """The next answer is the refusal; then the connection ends, or is in step for another request."""
    answer, text = answer_on(connection)
    assert (answer.status, json.loads(text)["code"]) == (503, "overloaded")
    assert int(answer.headers["Retry-After"]) > 0
    if answer.headers["Connection"] == "close":
        assert connection.recv(1) == b""
    else:
        connection.sendall(head(0, path="/healthz", method="GET"))
        assert answer_on(connection)[0].status == 200


@contextmanager
def full(web: Web, body: bytes = BODY) -> Iterator[list[socket.socket]]:
    """All places are taken by requests that wait for their answers; at the end the clients give up."""
    wait_until(web.idle, what="free places")
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(web.connect()) for _ in range(PLACES)]
        for connection in connections:
            connection.sendall(head(len(body)) + body)
        wait_until(lambda: web.gauge("waiting_requests") == PLACES, what="five that wait")
        yield connections
    wait_until(web.idle, what="free places")


def test_one_too_many_is_refused_at_once_and_the_others_are_answered(
    web: Web, aws_endpoint: str, own_stack: Settings, tmp_path: Path
) -> None:
    with full(web) as connections:
        for method, path in [("POST", "/"), ("POST", "/v1/recognitions"), ("PUT", "/v1/people/Somebody")]:
            with web.connect() as sixth:
                sixth.sendall(head(path=path, method=method) + BODY)
                is_overloaded(sixth)
        assert web.ask(path="/healthz")[0] == web.ask(path="/readyz")[0] == web.ask()[0] == 200
        assert web.ask("OPTIONS")[0] == 200
        env = environ(aws_endpoint, own_stack)
        with celery_worker("faceapp.tasks", tmp_path / "worker", env, "--concurrency", "1"):
            lines = [answer_on(connection)[1] for connection in connections]
            assert lines == ["one:no_face"] * PLACES
            # On the same connections, in the places that are free again.
            for connection in connections:
                connection.sendall(head() + BODY)
            lines = [answer_on(connection)[1] for connection in connections]
            assert lines == ["one:no_face"] * PLACES


def test_a_place_is_taken_by_the_head(web: Web) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(PLACES):
            stack.enter_context(web.connect()).sendall(head())
        wait_until(lambda: web.gauge("admitted_requests") == PLACES, what="five places taken")
        with web.connect() as sixth:
            sixth.sendall(head())
            is_overloaded(sixth)
    wait_until(web.idle, what="free places")


def test_a_waiting_request_holds_no_photo(web: Web) -> None:
    with full(web):
        assert (web.gauge("admitted_requests"), web.gauge("upload_bytes")) == (PLACES, 0)


@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "chunked"])
def test_a_refused_client_hears_it_though_it_sends_all_first(web: Web, chunked: bool) -> None:
    data = bytes(8_000_000)
    with full(web), web.connect() as connection:
        if chunked:
            connection.sendall(head("chunked") + chunk(data) + chunk(b""))
        else:
            connection.sendall(head(len(data)) + data)
        is_overloaded(connection)


def test_a_refused_client_that_sends_without_end_is_cut(web: Web) -> None:
    with full(web), web.connect() as connection:
        connection.sendall(head("chunked"))
        piece = chunk(bytes(1_000_000))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):  # noqa: PT012 # one of many is the first to fail
            for _ in range(2000):
                connection.sendall(piece)


def test_who_asks_first_is_refused_before_sending(web: Web) -> None:
    with web.connect() as connection:
        connection.sendall(head(len(BODY), "Expect: 100-continue", path="/v1/recognitions"))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert answer_on(connection)[0].status == 202
    with full(web), web.connect() as connection:
        connection.sendall(head(len(BODY), "Expect: 100-continue"))
        is_overloaded(connection)


@pytest.mark.parametrize("start", [head(15_000_000), head("chunked"), head("chunked") + chunk(b"x")])
def test_what_is_only_announced_keeps_no_other_upload_waiting(web: Web, start: bytes) -> None:
    """S9: silent clients that announce more than all the room there is, or do not say how much."""
    large = form({"file": File(plain() + bytes(3 * UPLOAD_BYTES))})
    with contextlib.ExitStack() as stack:
        for _ in range(PLACES - 1):
            stack.enter_context(web.connect()).sendall(start)
        wait_until(lambda: web.gauge("admitted_requests") == PLACES - 1, what="four places taken")
        assert web.ask("POST", "/v1/recognitions", large)[0] == 202
        assert web.gauge("admitted_requests") == PLACES - 1
        assert web.gauge("upload_bytes") <= PLACES
    wait_until(web.idle, what="free places")


def test_what_is_dropped_keeps_no_other_upload_waiting(web: Web) -> None:
    """S2: a form that goes on and has sent more than all room, but nothing of a file."""
    photo = form({"file": File(plain() + bytes(UPLOAD_BYTES // 2))})
    with web.connect() as connection:
        connection.sendall(head(15_000_000) + b"\r\n--" * UPLOAD_BYTES)
        wait_until(lambda: web.gauge("admitted_requests") == 1 and web.gauge("upload_bytes") == 0, what="nothing held")
        assert web.ask("POST", "/v1/recognitions", photo)[0] == 202
    wait_until(web.idle, what="free places")


def test_chunks_of_a_byte_are_refused(web: Web) -> None:
    """S2: each costs as much as one of many kilobytes."""
    with web.connect() as connection:
        sender = threading.Thread(target=send_all, args=[connection, head("chunked") + chunk(b"x") * 1_000_000])
        sender.start()
        answer, text = answer_on(connection)
        assert (answer.status, json.loads(text)["code"]) == (400, "bad_request")
        assert "chunks of a few bytes" in text
        connection.shutdown(socket.SHUT_RDWR)
        sender.join()
    wait_until(web.idle, what="free places")


def send_all(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(data)


def test_a_head_without_end_is_refused(web: Web) -> None:
    """S2: a head has 64 KiB in all."""
    with web.connect() as connection:
        fields = b"".join(b"X-A%d: %s\r\n" % (n, b"x" * 8000) for n in range(9))
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + fields)
        assert connection.recv(100).startswith(b"HTTP/1.1 431 ")


def test_many_requests_in_one_piece_let_others_have_their_turn(web: Web) -> None:
    with web.connect() as connection:
        connection.sendall(head(0, path="/healthz", method="GET") * 1000)
        assert web.ask(path="/healthz")[0] == 200
        for _ in range(1000):
            assert answer_on(connection)[0].status == 200


@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "chunked"])
def test_an_upload_that_is_larger_than_all_room_comes_alone(web: Web, chunked: bool) -> None:
    large = form({"file": File(plain() + bytes(2 * UPLOAD_BYTES))})
    assert web.ask("POST", "/v1/recognitions", iter([large]) if chunked else large)[0] == 202
    assert web.idle()


def test_more_uploads_than_there_is_room_for_are_all_answered(web: Web) -> None:
    large = form({"file": File(plain() + bytes(150_000))})
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(web.connect()) for _ in range(PLACES)]
        senders = [
            threading.Thread(target=each.sendall, args=[head(len(large), path="/v1/recognitions") + large])
            for each in connections
        ]
        for sender in senders:
            sender.start()
        assert [answer_on(each)[0].status for each in connections] == [202] * PLACES
        for sender in senders:
            sender.join()
    wait_until(web.idle, what="free places")


def refused(web: Web) -> None:
    """Everything that ends early."""
    with web.connect() as connection:
        connection.sendall(head(2**40))
        assert answer_on(connection)[0].status == 413
    assert web.ask("POST", body=b"no form")[0] == 400
    assert web.ask("POST", body=form({"file": File(b"no photo")}))[0] == 415
    assert web.ask("PUT", "/v1/people/..", body=BODY)[0] == 400
    assert web.ask("HEAD")[0] == web.ask("OPTIONS")[0] == 200
    assert web.ask("DELETE")[0] == 405
    for sent in (b"", BODY[:1000]):
        with web.connect() as connection:
            connection.sendall(head() + sent)
    for sent in (b"zz\r\n", b"10\r\nabc"):
        with web.connect() as connection:
            connection.sendall(head("chunked") + sent)


def test_nothing_is_left_of_those_who_failed_or_gave_up(web: Web) -> None:
    def all_of_it() -> None:
        refused(web)
        with full(web):
            pass

    all_of_it()
    # Connections to S3 and SQS stay open.
    before = web.files()
    all_of_it()
    wait_until(lambda: web.idle() and web.files() <= before, what="closed files")


def test_a_connection_is_in_step_after_a_request_that_was_read(web: Web) -> None:
    with web.connect() as connection:
        connection.sendall(head() + BODY.replace(b"inputFile", b"otherFile") + head(0, path="/healthz", method="GET"))
        assert answer_on(connection)[0].status == 400
        answer, text = answer_on(connection)
        assert (answer.status, json.loads(text)["status"]) == (200, "ok")


@pytest.mark.parametrize("body", [b"zz\r\n", b"3\r\nabcXX", b"5\r\nab"], ids=["no size", "too long", "cut off"])
def test_chunks_that_are_none_are_400(web: Web, body: bytes) -> None:
    with web.connect() as connection:
        connection.sendall(head("chunked") + body)
        connection.shutdown(socket.SHUT_WR)
        assert answer_on(connection)[0].status == 400
    wait_until(web.idle, what="free places")


def trickle(connection: socket.socket, piece: bytes) -> None:
    """Send a piece every tenth of a second until something comes back."""
    with contextlib.suppress(OSError):
        while not select.select([connection], [], [], 0.1)[0]:
            connection.sendall(piece)


@pytest.mark.parametrize("piece", [b"", b"x"], ids=["silent", "a byte now and then"])
@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "chunked"])
def test_a_slow_upload_is_408(hasty: Web, piece: bytes, chunked: bool) -> None:
    with hasty.connect() as connection:
        connection.sendall(head("chunked") + chunk(BODY[:200]) if chunked else head() + BODY[:200])
        trickle(connection, chunk(piece) if chunked and piece else piece)
        answer, text = answer_on(connection)
        assert (answer.status, json.loads(text)["code"]) == (408, "upload_timeout")
        assert answer.headers["Connection"] == "close"
    wait_until(hasty.idle, what="free places")


@pytest.mark.parametrize(
    ("sent", "piece"),
    [(b"GET / HTTP/1.1\r\n", b"X-A: b\r\n"), (b"GET / HTTP/1.1\r\n", b""), (b"G", b"")],
    ids=["a line now and then", "a line", "a byte"],
)
def test_a_slow_head_ends_the_connection(hasty: Web, sent: bytes, piece: bytes) -> None:
    with hasty.connect() as connection:
        connection.sendall(sent)
        trickle(connection, piece)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""


def wait_until_cut(connection: socket.socket, *, piece_bytes: int = 0) -> None:
    """Read nothing, or `piece_bytes` ten times a second, until the server has reset the connection."""
    poller = select.poll()
    poller.register(connection, 0)

    def is_cut() -> bool:
        cut = bool(poller.poll(100))
        if piece_bytes and not cut:
            connection.recv(piece_bytes)
        return cut

    with pytest.raises(ConnectionResetError):  # noqa: PT012 # what had been sent comes first
        wait_until(is_cut, what="the reset")
        while connection.recv(1_000_000):
            pass


def test_a_client_that_does_not_take_its_answers_is_cut(hasty: Web) -> None:
    """T2: waits for the reset itself, whenever it comes."""
    assert hasty.ask(path="/docs/swagger-ui-bundle.js")[0] == 200
    before = hasty.files()
    with hasty.connect() as connection:
        # More than all buffers on the way hold.
        connection.sendall(head(0, path="/docs/swagger-ui-bundle.js", method="GET") * 30)
        wait_until_cut(connection)
        wait_until(lambda: hasty.files() <= before, what="the end of the connection")


def test_a_client_that_takes_an_answer_by_pieces_is_cut(hasty: Web) -> None:
    """T2: the same of a client that takes a little now and then."""
    with hasty.connect() as connection:
        connection.sendall(head(0, path="/docs/swagger-ui-bundle.js", method="GET") * 30)
        wait_until_cut(connection, piece_bytes=20_000)
    assert hasty.ask(path="/healthz")[0] == 200


def test_slow_clients_hold_up_nobody(hasty: Web) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(hasty.connect()).sendall(b"POST / HTT")
        assert hasty.ask(path="/healthz")[0] == 200


def test_as_many_waiting_as_connections_is_no_setting() -> None:
    with pytest.raises(ConfigError, match=r"FACEAPP_WEB_WAITING=1100.*less than FACEAPP_WEB_CONNECTIONS"):
        Settings.from_environ({"FACEAPP_WEB_WAITING": "1100"})


@pytest.fixture
def admission(system: Settings) -> Admission:
    return Admission(replace(system, web_waiting=2, web_upload_bytes=100), Metrics())


def test_places_are_given_back(admission: Admission) -> None:
    first, _ = admission.enter(), admission.enter()
    with pytest.raises(Overloaded):
        admission.enter()
    first.leave()
    admission.enter()


def is_refused(place: Place, size_bytes: int) -> bool:
    """Whether there is no room for so many bytes now."""
    try:
        place.hold(size_bytes, timeout_s=0)
    except Overloaded:
        return True
    return False


def test_half_of_the_room_is_for_all_and_the_other_for_the_oldest(system: Settings) -> None:
    """S9: room is taken as bytes come; who came first can always be finished, whatever the younger ones hold."""
    admission = Admission(replace(system, web_waiting=9, web_upload_bytes=100), Metrics())
    first, second, third = (admission.enter(announced_bytes=40) for _ in range(3))
    silent = admission.enter(announced_bytes=1000)
    for place in (first, second, third):
        assert not is_refused(place, 15)
    assert not is_refused(third, 5)
    # The half of all is full, and in the other there is room for one whole body.
    assert is_refused(third, 5)
    assert is_refused(second, 25)
    assert not is_refused(first, 25)
    first.leave()
    assert not is_refused(second, 25)
    second.leave()
    assert not is_refused(third, 20)
    third.leave()
    silent.leave()
    assert not admission._bytes


def test_the_oldest_may_be_larger_than_all_room(admission: Admission) -> None:
    first, second = admission.enter(announced_bytes=1000), admission.enter(announced_bytes=1000)
    assert not is_refused(first, 1)
    assert not is_refused(first, 999)
    assert is_refused(second, 1)
    first.let_go()
    assert not is_refused(second, 1000)


def test_who_falls_silent_keeps_nobody_waiting(admission: Admission, monkeypatch: pytest.MonkeyPatch) -> None:
    """S9: its bytes stay, its turn does not."""
    first, second = admission.enter(announced_bytes=1000), admission.enter(announced_bytes=1000)
    assert not is_refused(first, 500)
    assert is_refused(second, 1)
    monkeypatch.setattr("faceapp.http.admission.SILENT_S", 0)
    assert second.hold(500, timeout_s=PATIENCE_S) < PATIENCE_S
    first.leave()
    assert not is_refused(second, 500)


def test_one_client_leaves_room_for_others(system: Settings) -> None:
    """S9: of what is not enough for all, one address has a share; not one proxy, behind which there may be many."""
    admission = Admission(replace(system, web_waiting=9, web_upload_bytes=100), Metrics())
    oldest = admission.enter(peer="192.0.2.1", announced_bytes=100)
    greedy, modest = (admission.enter(peer=f"192.0.2.{n}", announced_bytes=100) for n in (1, 2))
    behind_proxy = admission.enter(announced_bytes=100)
    assert not is_refused(oldest, 1)
    assert not is_refused(greedy, 20)
    assert is_refused(greedy, 10)
    assert not is_refused(modest, 10)
    assert not is_refused(behind_proxy, 19)
    assert is_refused(modest, 1)
    for place in (oldest, greedy, modest, behind_proxy):
        place.leave()
    assert not admission._bytes_of
    assert not admission._bytes


def test_room_goes_to_who_came_first(admission: Admission) -> None:
    first, second = admission.enter(announced_bytes=60), admission.enter(announced_bytes=60)
    assert not is_refused(second, 50)
    assert not is_refused(first, 50)
    order: list[str] = []

    def wait(name: str, place: Place) -> threading.Thread:
        def run() -> None:
            place.hold(10, timeout_s=PATIENCE_S)
            order.append(name)

        thread = threading.Thread(target=run)
        thread.start()
        wait_until(lambda: place in admission._waiting or name in order, what="one more that waits")
        return thread

    threads = [wait("second", second), wait("first", first)]
    threads[1].join()
    assert order == ["first"]
    first.leave()
    threads[0].join()
    assert order == ["first", "second"]


def test_an_upload_that_stalls_is_cut(system: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """S9: with a least rate; the time in which it was not read does not count."""
    monkeypatch.setattr(connections, "WINDOW_S", 2.0)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        client = connections.Client(ours, system)
        client.begin(SimpleNamespace(_expected_100_continue=False))
        theirs.sendall(bytes(connections.LEAST_BYTES))
        assert client.recv(100_000) == bytes(connections.LEAST_BYTES)
        client.paused(2.0)
        theirs.sendall(b"x")
        assert client.recv(1) == b"x"
        assert not client.late
        theirs.sendall(b"x" * 10)
        while client.recv(1):
            pass
        assert "stalled" in client.late


def test_many_who_ask_at_once_share_one_answer() -> None:
    asked: list[None] = []
    gate = threading.Event()

    def ask() -> None:
        asked.append(None)
        gate.wait(PATIENCE_S)
        raise StorageUnavailable("S3 is away.")

    readiness, said = _Readiness(ask), list[str]()

    def check(_: int) -> Callable[[], None]:
        def run() -> None:
            try:
                readiness.check()
            except FaceappError as error:
                said.append(f"{error.code}: {error.detail}")

        return run

    threads = [threading.Thread(target=check(n)) for n in range(20)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert said == ["storage_unavailable: S3 is away."] * 20
    assert len(asked) == 1
