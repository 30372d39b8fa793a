"""The scaler's status over HTTP: `/status` for the page, `/metrics` for Prometheus, `/healthz`. Numbers, only to read.

On the loopback it answers this machine (celery_sqs.door), on another address (`status_host`) private networks, too,
where Prometheus may run; pages of browsers never. A connection has one request, and a time and a size for it: nobody
keeps the scaler's memory or threads.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST

from celery_sqs.door import hides_headers, is_loopback_address, reason_against
from celery_sqs.errors import ConfigurationError, PortTaken
from celery_sqs.scaler.options import ScalerOptions
from celery_sqs.scaler.status import Status

logger = logging.getLogger(__name__)

CONNECTIONS = 16
"""Served at once; more are closed unanswered."""
CONNECTION_S = 10.0
"""From a connection's beginning to its end, whatever its client does."""
REQUEST_BYTES = 16 * 1024
"""The largest head of a request; none has a body."""


class _Bounded:
    """A request's head, as far as it may go."""

    def __init__(self, file: Any) -> None:
        self._file, self._left = file, REQUEST_BYTES

    def readline(self, size: int) -> bytes:
        line: bytes = self._file.readline(min(size, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise ConnectionAbortedError("the head of a request is too large")
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Handler(BaseHTTPRequestHandler):
    status: Status
    network: bool

    def setup(self) -> None:
        super().setup()
        self.rfile = _Bounded(self.rfile)  # type: ignore[assignment]

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if hides_headers(self.headers):
            self._answer(400, "text/plain", b"A line of the request's head is no header.\n")
            return False
        return True

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        reason = reason_against(
            peer=self.client_address[0],
            version=self.request_version,
            headers=self.headers.items(),
            pages=False,
            network=self.network,
        )
        if reason and path != "/healthz":
            self._answer(403, "text/plain", f"This is for programs of this machine. {reason.value}\n".encode())
        elif path == "/status":
            self._answer(200, "application/json", json.dumps(self.status.document()).encode())
        elif path == "/metrics":
            self._answer(200, CONTENT_TYPE_LATEST, self.status.metrics())
        elif path == "/healthz":
            self._answer(200, "text/plain", b"ok\n")
        else:
            self._answer(404, "text/plain", b"There are /status, /metrics and /healthz.\n")

    def _answer(self, code: int, content_type: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """The page asks all the time: no line for that."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *arguments: Any) -> None:
        self._places = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        end = threading.Timer(CONNECTION_S, _cut, [request])
        end.daemon = True
        end.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            end.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away or was cut: no line for that."""
        if not isinstance(sys.exc_info()[1], OSError):
            logger.exception("the scaler's status was not told")


def _cut(connection: socket.socket) -> None:
    """End a connection under whoever reads or writes it."""
    with contextlib.suppress(OSError):  # it has ended
        connection.shutdown(socket.SHUT_RDWR)


class StatusServer:
    """Serves a `Status` over HTTP in a thread, from `start` until `stop`."""

    def __init__(self, options: ScalerOptions, status: Status) -> None:
        """Raises PortTaken, or ConfigurationError for a host that is not this machine's."""
        host, port = options.status_host, options.status_port
        handler = type("Handler", (_Handler,), {"status": status, "network": not is_loopback_address(host)})
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        server = type("Server", (_Server,), {"address_family": family})
        try:
            self._server: HTTPServer = server((host, port), handler)
        except OSError as error:
            kind = PortTaken if error.errno == errno.EADDRINUSE else ConfigurationError
            raise kind(f"The scaler's status cannot be served on {host}:{port} ({error.strerror or error}).") from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="status", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
