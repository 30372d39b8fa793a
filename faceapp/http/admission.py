"""How many requests with photos a process takes at once: one more is told to come back, and the others do not notice.

A request has its place from its head until its answer is made. Its body is read when there is room for it, so that a
thousand photos at once lie in their clients' sockets and not in this process, and it counts until the photos are in S3.
What is refused is answered before it is read (see connections.py for how the client hears it). The numbers are a
process's own.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import flask
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import RequestEntityTooLarge

from faceapp.config import Settings
from faceapp.errors import BadRequest, Overloaded, UploadTimeout
from faceapp.http import connections, uploads
from faceapp.http.metrics import Metrics


class Admission:
    """The places of one process. Any thread may call any method."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._most = settings.web_waiting
        self._most_bytes = settings.web_upload_bytes
        self._metrics = metrics
        self._lock = threading.Lock()
        self._places = 0
        self._bytes = 0
        self._queue: deque[tuple[int, threading.Event]] = deque()

    def enter(self) -> Place:
        """A place. Raises Overloaded."""
        with self._lock:
            if self._places >= self._most:
                raise Overloaded
            self._places += 1
        self._metrics.admitted(1)
        return Place(self)

    def leave(self) -> None:
        """Give a place back."""
        with self._lock:
            self._places -= 1
        self._metrics.admitted(-1)

    def hold(self, size_bytes: int, *, timeout_s: float) -> None:
        """Wait until there is room for so many bytes, first come, first served. Raises Overloaded when there is none.

        A body that is larger than all the room there is comes in alone.
        """
        entry = (size_bytes, threading.Event())
        with self._lock:
            self._queue.append(entry)
            self._let_in()
        entry[1].wait(timeout_s)
        with self._lock:
            if not entry[1].is_set():
                self._queue.remove(entry)
                # It may have kept smaller ones from their room.
                self._let_in()
                raise Overloaded("As many uploads as this service can hold are coming in already: try again.")
        self._metrics.uploading(size_bytes)

    def let_go(self, size_bytes: int) -> None:
        """Count bytes no longer."""
        with self._lock:
            self._bytes -= size_bytes
            self._let_in()
        self._metrics.uploading(-size_bytes)

    def _let_in(self) -> None:
        while self._queue:
            size_bytes, there_is_room = self._queue[0]
            if self._bytes and self._bytes + size_bytes > self._most_bytes:
                return
            self._queue.popleft()
            self._bytes += size_bytes
            there_is_room.set()


class Place:
    """One request's place. For the one thread that handles the request."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._bytes = 0

    def hold(self, size_bytes: int, *, timeout_s: float) -> None:
        """Wait for room for the request's body. Raises Overloaded."""
        self._admission.hold(size_bytes, timeout_s=timeout_s)
        self._bytes = size_bytes

    def let_go(self) -> None:
        """Nothing of the request's body is in memory any more."""
        self._admission.let_go(self._bytes)
        self._bytes = 0

    def leave(self) -> None:
        """The answer is made."""
        self.let_go()
        self._admission.leave()


class Body:
    """A request's body (wsgi.input) that says when its time is over."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        """As a file's. Raises UploadTimeout, and BadRequest for chunks that are none."""
        try:
            data: bytes = self._stream.read(size)
        except OSError:
            _check_time()
            raise
        except ParseException as error:
            _check_time()
            raise BadRequest(f"The body's chunks cannot be read: {type(error).__name__}.") from None
        _check_time()
        return data


def register(app: flask.Flask, settings: Settings) -> None:
    """Admit `app`'s uploads; to be called after everything else that refuses requests by their head."""
    app.extensions["faceapp-admission"] = Admission(settings, app.extensions["faceapp-metrics"])
    app.before_request(_enter)
    app.after_request(_close_if_unread)
    app.teardown_request(_leave)


def body_is_stored() -> None:
    """The photos of the request that is handled here are in S3 and not in memory."""
    if place := flask.g.get("place"):
        place.let_go()


def _enter() -> None:
    request = flask.request
    # Flask answers OPTIONS under the same endpoint.
    if request.endpoint not in uploads.UPLOADS or request.method == "OPTIONS":
        return
    settings: Settings = flask.current_app.config["FACEAPP"]
    length, most = request.content_length, settings.web_max_request_bytes
    if length is not None and length > most:
        raise RequestEntityTooLarge
    # What cannot be used is refused before it takes a place, and before it is read.
    uploads.boundary_of(request)
    admission: Admission = flask.current_app.extensions["faceapp-admission"]
    place = flask.g.place = admission.enter()
    if length is None:
        # Room that is asked for in pieces could be held by many of whom none gets enough.
        length = most if "Transfer-Encoding" in request.headers else 0
    if length:
        place.hold(length, timeout_s=settings.web_upload_s)
        if client := connections.current():
            client.may_send()
    request.environ["wsgi.input"] = Body(request.environ["wsgi.input"])


def _close_if_unread(response: flask.Response) -> flask.Response:
    if client := connections.current():
        client.close_if_unread()
    return response


def _leave(_: BaseException | None = None) -> None:
    if place := flask.g.pop("place", None):
        place.leave()


def _check_time() -> None:
    client = connections.current()
    if client and client.late:
        settings: Settings = flask.current_app.config["FACEAPP"]
        raise UploadTimeout(f"The upload took longer than {settings.web_upload_s:g} s.")
