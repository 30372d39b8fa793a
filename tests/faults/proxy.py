"""An HTTP proxy between the services and the embedded AWS that does to AWS's answers what a test asks for.

The services get its URL as AWS_ENDPOINT_URL. It passes on the Host header as it came, so that the queues' URLs, which
the embedded AWS makes of it, lead here too. Faults are switched on and off while it runs:

    with FaultProxy(endpoint) as proxy, proxy.fault(unavailable, service="s3") as hits:
        ...
"""

from __future__ import annotations

import http.client
import io
import json
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from faceapp.local import calls
from tests.support.services import PATIENCE_S

OWN_HEADERS = {"connection", "content-length", "date", "server", "transfer-encoding", "expect"}
"""Not passed on as they are: the proxy's own connection has others."""


class Hangup(Exception):
    """The client does not wait for the answer any more, or AWS does not give one."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the client gets; with `cut_after_bytes` only the first bytes of its body, and then the connection ends."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A request for AWS, and the way to pass it on."""

    service: str
    operation: str
    path: str
    session: str
    """The token of temporary credentials."""
    is_json: bool
    """Whether AWS's JSON protocol is spoken; else it is XML."""
    body: bytes
    forward: Callable[[], Answer]
    """Pass the request on. Raises Hangup."""


Fault = Callable[[Exchange], Answer | None]
"""What becomes of a request; None cuts the connection without an answer."""


@dataclass(eq=False)
class _Rule:
    fault: Fault
    service: str
    operations: frozenset[str]
    every: int
    hits: Counter[str] = field(default_factory=Counter)
    seen: int = 0

    def takes(self, exchange: Exchange) -> bool:
        if self.service not in ("", exchange.service):
            return False
        if self.operations and exchange.operation not in self.operations:
            return False
        self.seen += 1
        return self.seen % self.every == 0


class FaultProxy:
    """Serves in threads of this process while the `with` block runs; any thread may switch faults."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream)
        self._lock = threading.Lock()
        self._rules: list[_Rule] = []
        self._open: set[socket.socket] = set()
        self._server: _Server | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> FaultProxy:
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _listen(self) -> None:
        self._server = _Server(("127.0.0.1", self._port), type("Handler", (_Handler,), {"proxy": self}))
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="fault proxy", daemon=True).start()

    def _close(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        self.cut_all()

    def cut_all(self) -> None:
        """End every open connection, those with a request under way included."""
        with self._lock:
            connections = list(self._open)
        for each in connections:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Nobody listens while the block runs."""
        self._close()
        try:
            yield
        finally:
            self._listen()

    @contextmanager
    def fault(
        self, fault: Fault, *, service: str = "", operations: tuple[str, ...] = (), every: int = 1
    ) -> Iterator[Counter[str]]:
        """Treat every `every`-th matching request with `fault` while the block runs; counts those by operation."""
        rule = _Rule(fault, service, frozenset(operations), every)
        with self._lock:
            self._rules.append(rule)
        try:
            yield rule.hits
        finally:
            with self._lock:
                self._rules.remove(rule)

    def answer(self, exchange: Exchange) -> Answer | None:
        with self._lock:
            rule = next((each for each in self._rules if each.takes(exchange)), None)
            if rule:
                rule.hits[exchange.operation] += 1
        return rule.fault(exchange) if rule else exchange.forward()

    def connected(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)

    def disconnected(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)

    def dial(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(str(self._upstream.hostname), self._upstream.port, timeout=PATIENCE_S)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


class _Server(ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client, with one of its own to the embedded AWS."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    proxy: FaultProxy

    def setup(self) -> None:
        super().setup()
        self.proxy.connected(self.connection)
        self._upstream: http.client.HTTPConnection | None = None

    def finish(self) -> None:
        self.proxy.disconnected(self.connection)
        if self._upstream:
            self._upstream.close()
        with suppress(OSError):
            super().finish()

    def log_message(self, *_: Any) -> None:
        """Not to stderr."""

    def handle_expect_100(self) -> bool:
        going_on = super().handle_expect_100()
        self.wfile.flush()
        return going_on

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            answer = self.proxy.answer(self._exchange(body))
        except Hangup:
            answer = None
        if answer is None:
            self.close_connection = True
            # Now, though a copy of the socket is still open in the buffers.
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._send(answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass

    def _exchange(self, body: bytes) -> Exchange:
        path, _, query = self.path.partition("?")
        environ = {
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_LENGTH": str(len(body)),
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "wsgi.input": io.BytesIO(body),
            **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in self.headers.items()},
        }
        service, operation = calls.identify(environ)
        return Exchange(
            service=service,
            operation=operation,
            path=path,
            session=self.headers.get("X-Amz-Security-Token", ""),
            is_json="X-Amz-Target" in self.headers,
            body=body,
            forward=lambda: self._forward(body),
        )

    def _forward(self, body: bytes) -> Answer:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in OWN_HEADERS}
        headers["Content-Length"] = str(len(body))
        try:
            if self._upstream is None or self._upstream.sock is None:
                self._upstream = self.proxy.dial()
            self._upstream.request(self.command, self.path, body, headers)
            # Whoever does not wait any more must not be handed a message, as the embedded AWS sees to it.
            ready, _, _ = select.select([self.connection, self._upstream.sock], [], [], PATIENCE_S)
            if self._upstream.sock not in ready:
                raise Hangup
            answer = self._upstream.getresponse()
            data = answer.read()
        except (Hangup, OSError, http.client.HTTPException) as error:
            if self._upstream:
                self._upstream.close()
            raise Hangup from error
        return Answer(status=answer.status, body=data, headers=dict(answer.getheaders()))

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        length = str(len(answer.body))
        for name, value in answer.headers.items():
            if name.lower() not in OWN_HEADERS:
                self.send_header(name, value)
            elif name.lower() == "content-length" and self.command == "HEAD":
                length = value
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(answer.body[: answer.cut_after_bytes])
        self.wfile.flush()
        if answer.cut_after_bytes is not None:
            self.close_connection = True


# What can be done to a request.


def refused(exchange: Exchange, status: int, code: str, message: str) -> Answer:
    """An error as the service that was asked says it."""
    if exchange.is_json:
        body = json.dumps({"__type": f"com.amazonaws.{exchange.service}#{code}", "message": message}).encode()
        headers = {"Content-Type": "application/x-amz-json-1.0", "x-amzn-query-error": f"{code};Sender"}
        return Answer(status=status, body=body, headers=headers)
    error = f"<Code>{code}</Code><Message>{message}</Message>"
    if exchange.service == "s3":
        text = f"<Error>{error}<RequestId>0</RequestId></Error>"
    elif exchange.service == "ec2":
        text = f"<Response><Errors><Error>{error}</Error></Errors><RequestID>0</RequestID></Response>"
    else:
        text = f"<ErrorResponse><Error>{error}</Error><RequestId>0</RequestId></ErrorResponse>"
    return Answer(status=status, body=text.encode(), headers={"Content-Type": "text/xml"})


def unavailable(exchange: Exchange) -> Answer:
    return refused(exchange, 503, "ServiceUnavailable", "Please try again.")


def throttled(*, per_s: float) -> Fault:
    """So many requests a second pass, the others are refused as each service does it."""
    lock, allowed, from_s = threading.Lock(), per_s, time.monotonic()

    def fault(exchange: Exchange) -> Answer:
        nonlocal allowed, from_s
        with lock:
            now_s = time.monotonic()
            allowed, from_s = min(per_s, allowed + (now_s - from_s) * per_s), now_s
            passes = allowed >= 1
            allowed -= passes
        if passes:
            return exchange.forward()
        if exchange.service == "s3":
            return refused(exchange, 503, "SlowDown", "Please reduce your request rate.")
        if exchange.service == "ec2":
            return refused(exchange, 503, "RequestLimitExceeded", "Request limit exceeded.")
        return refused(exchange, 403 if exchange.service == "sqs" else 400, "RequestThrottled", "Request is throttled.")

    return fault


def slow(seconds: float) -> Fault:
    """Every answer comes so much later."""

    def fault(exchange: Exchange) -> Answer:
        time.sleep(seconds)
        return exchange.forward()

    return fault


def cut_before(exchange: Exchange) -> None:
    """The connection ends, and AWS has not seen the request."""


def cut_after(exchange: Exchange) -> None:
    """AWS does what it is asked, and the connection ends before the answer: the nasty one."""
    exchange.forward()


def cut_within(exchange: Exchange) -> Answer | None:
    """AWS does what it is asked, and the connection ends in the middle of the answer."""
    answer = exchange.forward()
    return replace(answer, cut_after_bytes=len(answer.body) // 2) if answer.body else None


def expired(is_expired: Callable[[str], bool]) -> Fault:
    """Requests that are signed with an access key that has expired are refused, all others pass."""

    def fault(exchange: Exchange) -> Answer:
        if not is_expired(exchange.session):
            return exchange.forward()
        status = 400 if exchange.service == "s3" else 403
        return refused(exchange, status, "ExpiredToken", "The security token included in the request is expired")

    return fault


@contextmanager
def lasting(seconds: float) -> Iterator[None]:
    """What is around the block goes on for so long, whatever the block needs of it."""
    until_s = time.monotonic() + seconds
    yield
    time.sleep(max(0.0, until_s - time.monotonic()))


class Twice:
    """Every message that is handed out is handed out once more, at the next receive from its queue."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._again: dict[str, Answer] = {}
        self.count = 0

    def __call__(self, exchange: Exchange) -> Answer:
        queue = str(json.loads(exchange.body)["QueueUrl"])
        with self._lock:
            if again := self._again.pop(queue, None):
                self.count += len(json.loads(again.body)["Messages"])
                return again
        answer = exchange.forward()
        if b'"Messages"' in answer.body:
            with self._lock:
                self._again[queue] = answer
        return answer


def not_deleted(exchange: Exchange) -> Answer:
    """SQS says that the messages are deleted, and they are not: they come again."""
    entries = json.loads(exchange.body).get("Entries", ())
    document = {"Successful": [{"Id": each["Id"]} for each in entries], "Failed": []} if entries else {}
    return Answer(
        status=200, body=json.dumps(document).encode(), headers={"Content-Type": "application/x-amz-json-1.0"}
    )
