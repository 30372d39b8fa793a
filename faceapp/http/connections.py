"""Clients' connections under gunicorn: a slow one costs a bounded time, and one that is refused hears why.

gunicorn's sockets block for as long as a client likes. Here the worker hands its requests a `Client` instead: a socket
whose heads, bodies and answers have a time each, and which is closed in the right order when an answer goes out before
the request is read: closed at once, unread bytes make the kernel reset the connection, and the client loses the answer.
"""

from __future__ import annotations

import errno
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import flask
import gevent
from gevent.socket import wait_read
from gunicorn.http.body import ChunkedReader
from gunicorn.http.errors import LimitRequestHeaders
from gunicorn.workers.ggevent import GeventWorker

from faceapp.config import Settings

HEAD_S = 15.0
"""A request's head takes no longer, from when it could begin; nor longer than an upload may."""
HEAD_BYTES = 64 * 1024
"""A request's head with all of its fields; a field has at most 8 KiB, which gunicorn sees to."""
WINDOW_S = 15.0
LEAST_BYTES = 4 * 1024
"""A body of which fewer bytes come within WINDOW_S has stalled."""
PIECE_BYTES = 32 * 1024
"""What is read from a socket at once: gunicorn would read up to 1 MiB ahead, which nobody counts."""
LINGER_S = 10.0
"""After an answer to a request that was not read: how long what still comes is dropped."""
LINGER_PIECE_BYTES = 64 * 1024
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
ENDING = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}
"""Signals that tell a web process to end."""
RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class Client:
    """A client's socket as gunicorn uses it; what is not here is the socket's own."""

    def __init__(self, sock: Any, settings: Settings) -> None:
        self._sock = sock
        self._settings = settings
        self._request: Any = None
        self._deadline_s: float | None = None
        self._answered_by_s: float | None = None
        self._window_ends_s = 0.0
        self._window_bytes = 0
        self._head_bytes = 0
        self._expects = False
        self._unread_bytes = 0
        self.body_bytes = 0
        """What came after the request's head; not what came with it."""
        self.late = ""
        """Why the request's time was over before it was there."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def begin(self, request: Any) -> None:
        """A request's head is there; `request` is gunicorn's."""
        self._request, self._unread_bytes, self._answered_by_s = request, 0, None
        self._head_bytes = self.body_bytes = self._window_bytes = 0
        now_s = time.monotonic()
        self._deadline_s, self._window_ends_s = now_s + self._settings.web_upload_s, now_s + WINDOW_S
        # gunicorn would say "100 Continue" before we can say no; recv() does once somebody wants the body.
        self._expects, request._expected_100_continue = request._expected_100_continue, False

    def paused(self, seconds: float) -> None:
        """Nobody has read from it for so long: that is not the client's time."""
        if self._deadline_s is not None:
            self._deadline_s += seconds
        self._window_ends_s += seconds

    def end(self) -> None:
        """The request was answered."""
        # More requests may have come with it: others have their turn before those.
        gevent.sleep(0)
        self._request = self._deadline_s = self._answered_by_s = None
        self._expects = False
        if self._unread_bytes > 0:
            self._linger()

    def recv(self, size: int) -> bytes:
        """Some bytes of the request; none when it has ended or its time is over (see `late`)."""
        if self._expects:
            self._expects = False
            with self._within(self._settings.web_upload_s):
                self._sock.sendall(CONTINUE)
        if self._deadline_s is None:
            self._deadline_s = time.monotonic() + min(HEAD_S, self._settings.web_upload_s)
        return self._recv_head(size) if self._request is None else self._recv_body(size)

    def _recv_head(self, size: int) -> bytes:
        assert self._deadline_s is not None
        try:
            with self._within(self._deadline_s - time.monotonic()):
                data: bytes = self._sock.recv(size)
        except TimeoutError:
            self.late = "The request's head took too long."
            return b""
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES:
            raise LimitRequestHeaders(f"more than {HEAD_BYTES} bytes")
        return data

    def _recv_body(self, size: int) -> bytes:
        assert self._deadline_s is not None
        while self._keeps_up():
            left_s = min(self._deadline_s, self._window_ends_s) - time.monotonic()
            try:
                # By way of the event loop even if something is there already: a client that is faster than we are would
                # let nobody else have a turn. (gevent.sleep(0) comes back up to 50 times before it looks at sockets.)
                wait_read(self._sock.fileno(), timeout=max(left_s, 0.001))
                data: bytes = self._sock.recv(min(size, PIECE_BYTES))
            except TimeoutError:
                continue
            self._window_bytes += len(data)
            self.body_bytes += len(data)
            return data
        return b""

    def _keeps_up(self) -> bool:
        """Whether the client has time to send more; `late` says why not."""
        now_s = time.monotonic()
        if self._deadline_s is not None and now_s >= self._deadline_s:
            self.late = f"The upload took longer than {self._settings.web_upload_s:g} s."
        elif now_s >= self._window_ends_s:
            if self._window_bytes < LEAST_BYTES:
                self.late = f"The upload stalled: fewer than {LEAST_BYTES // 1024} KiB came within {WINDOW_S:g} s."
            self._window_ends_s, self._window_bytes = now_s + WINDOW_S, 0
        return not self.late

    def sendall(self, data: bytes) -> None:
        """Send all, or reset the connection when the client does not take its whole answer in time."""
        with self._taken():
            self._sock.sendall(data)

    @property
    def gone(self) -> bool:
        """Whether the client has closed the connection, or its sending half: it does not wait for an answer."""
        before_s = self._sock.gettimeout()
        try:
            self._sock.settimeout(0.0)
            return not self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self._sock.settimeout(before_s)

    def close_if_unread(self) -> None:
        """To be called before an answer: nobody knows where the next request starts if this one was not read."""
        reader, most_bytes = self._request.body.reader, self._settings.web_max_request_bytes
        if self.late or (isinstance(reader, ChunkedReader) and reader.parser is not None):
            self._unread_bytes = most_bytes
        elif not isinstance(reader, ChunkedReader):
            # What gunicorn has read ahead comes no more, and is no more than the body.
            self._unread_bytes = min(most_bytes, reader.length - reader.unreader.buf.getbuffer().nbytes)
        if self._unread_bytes > 0:
            self._request.force_close()

    def _linger(self) -> None:
        """Drop what the client still sends, within bounds: most look for an answer only when they have sent all."""
        deadline_s = time.monotonic() + LINGER_S
        try:
            self._sock.shutdown(socket.SHUT_WR)
            while self._unread_bytes > 0 and (left_s := deadline_s - time.monotonic()) > 0:
                self._sock.settimeout(left_s)
                gevent.sleep(0)
                data = self._sock.recv(LINGER_PIECE_BYTES)
                if not data:
                    return
                self._unread_bytes -= len(data)
        except OSError:
            return

    @contextmanager
    def _taken(self) -> Iterator[None]:
        if self._answered_by_s is None:
            self._answered_by_s = time.monotonic() + self._settings.web_upload_s
        try:
            with self._within(self._answered_by_s - time.monotonic()):
                yield
        except TimeoutError:
            # Else the kernel would go on trying to send what it holds.
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            raise BrokenPipeError(errno.EPIPE, "the client does not take its answer") from None

    @contextmanager
    def _within(self, seconds: float) -> Iterator[None]:
        before_s = self._sock.gettimeout()
        # Zero would mean not to wait at all, which is another error.
        self._sock.settimeout(max(seconds, 0.001))
        try:
            yield
        finally:
            self._sock.settimeout(before_s)


class GreenletWorker(GeventWorker):  # type: ignore[misc] # gunicorn is untyped
    """gunicorn's gevent worker for slow clients."""

    def init_signals(self) -> None:
        super().init_signals()
        # What came before there were handlers comes now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        super().handle(listener, Client(client, self.app.settings), addr)

    def handle_request(self, listener_name: Any, req: Any, sock: Client, addr: Any) -> Any:
        sock.begin(req)
        try:
            return super().handle_request(listener_name, req, sock, addr)
        finally:
            sock.end()


def current() -> Client | None:
    """The connection of the request that is handled here; None under any other server than ours."""
    client = flask.request.environ.get("gunicorn.socket") if flask.has_request_context() else None
    return client if isinstance(client, Client) else None
