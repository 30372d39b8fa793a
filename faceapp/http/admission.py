"""How many requests with photos a process takes at once: one more is told to come back, and the others do not notice.

A request has its place from its head until its answer is made. The bytes of its body count from when they come in
until the photos are in S3; those that are no part of a photo count until they are dropped. While there is no room for
more it is not read any further, so that a thousand photos at once lie in their clients' sockets and not in this
process. What a client only announces takes no room.

Room that is taken in pieces could be held by many of whom none gets enough. So half of it is for all, and the other
half is for the oldest uploads that go on and whose whole bodies fit into it: those can always be finished.

What is refused is answered before it is read (see connections.py for how the client hears it). The numbers are a
process's own.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import flask
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import RequestEntityTooLarge

from celery_sqs.door import address_of
from faceapp.config import Settings
from faceapp.errors import BadRequest, Overloaded, UploadTimeout
from faceapp.http import connections, uploads
from faceapp.http.metrics import Metrics

SILENT_S = 1.0
"""An upload of which nothing came for longer leaves its turn to younger ones."""
LOOK_S = 0.5
"""How often those who wait look whether somebody has fallen silent."""
SHARE = 0.5
"""Of either half of the room: what one client's address may take while there is not enough for all. Not of the
loopback, where a proxy's clients come from."""
OVERHEAD = 1 / 8
"""A chunked body's chunks may take so much on top of what they carry, and SPARE_BYTES: about 50 bytes a chunk."""
SPARE_BYTES = 128 * 1024


class Admission:
    """The places of one process. Any thread may call any method."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._most = settings.web_waiting
        self._half_bytes = settings.web_upload_bytes // 2
        self._wall_bytes = settings.web_upload_bytes + settings.web_max_request_bytes
        self._metrics = metrics
        self._lock = threading.Lock()
        self._places: dict[Place, None] = {}
        """By age."""
        self._waiting: dict[Place, tuple[int, threading.Event]] = {}
        self._bytes = 0
        self._bytes_of: Counter[str] = Counter()
        """By client, but those behind a proxy."""
        self._look_s = 0.0

    def enter(self, *, peer: str = "", announced_bytes: int = 0) -> Place:
        """A place for a request of `peer`, empty for one of many behind a proxy. Raises Overloaded."""
        with self._lock:
            if len(self._places) >= self._most:
                raise Overloaded
            place = Place(self, peer=peer, announced_bytes=announced_bytes)
            self._places[place] = None
        self._metrics.admitted(1)
        return place

    def leave(self, place: Place) -> None:
        """Give a place back, and its room."""
        self.let_go(place)
        with self._lock:
            del self._places[place]
            # It may have been somebody's elder.
            self._let_in()
        self._metrics.admitted(-1)

    def hold(self, place: Place, size_bytes: int, *, timeout_s: float) -> float:
        """Wait until there is room for so many bytes, which have come: the seconds that it took. Raises Overloaded."""
        began_s = time.monotonic()
        room = threading.Event()
        with self._lock:
            place.came_s = began_s
            if not self._waiting and self._is_room_for_all(place, size_bytes):
                self._take(place, size_bytes)
                room.set()
            else:
                self._waiting[place] = size_bytes, room
                self._let_in()
        while not room.wait(min(LOOK_S, max(0.0, began_s + timeout_s - time.monotonic()))):
            with self._lock:
                now_s = time.monotonic()
                if now_s >= self._look_s:
                    self._look_s = now_s + LOOK_S
                    self._let_in()
                if not room.is_set() and now_s >= began_s + timeout_s:
                    del self._waiting[place]
                    raise Overloaded("As many uploads as this service can hold are coming in already: try again.")
        self._metrics.uploading(size_bytes)
        return time.monotonic() - began_s

    def give_back(self, place: Place, size_bytes: int) -> None:
        """Count so many of the place's bytes no longer; or more, when it is less than nothing."""
        with self._lock:
            place.dropped_bytes += size_bytes
            self._take(place, -size_bytes)
            self._let_in()
        self._metrics.uploading(-size_bytes)

    def let_go(self, place: Place) -> None:
        """Count the place's bytes no longer."""
        with self._lock:
            freed_bytes, place.came_s = place.bytes, float("-inf")
            self._take(place, -freed_bytes)
            self._let_in()
        self._metrics.uploading(-freed_bytes)

    def _let_in(self) -> None:
        if not self._waiting:
            return
        now_s, elders = time.monotonic(), list(self._elders())
        for place in sorted(self._waiting, key=lambda each: each.number):
            size_bytes, room = self._waiting[place]
            if self._may(place, size_bytes, elders):
                del self._waiting[place]
                place.came_s = now_s
                self._take(place, size_bytes)
                room.set()

    def _take(self, place: Place, size_bytes: int) -> None:
        place.bytes += size_bytes
        self._bytes += size_bytes
        if place.peer:
            self._bytes_of[place.peer] += size_bytes
            if not self._bytes_of[place.peer]:
                del self._bytes_of[place.peer]

    def _may(self, place: Place, size_bytes: int, elders: list[Place]) -> bool:
        if place in elders:
            # The eldest goes beyond the room, if it must, lest nobody could go on.
            most_bytes = self._wall_bytes if place is elders[0] else 2 * self._half_bytes
            return self._bytes + size_bytes <= most_bytes
        return self._is_room_for_all(place, size_bytes)

    def _is_room_for_all(self, place: Place, size_bytes: int) -> bool:
        within_share = not place.peer or self._bytes_of[place.peer] + size_bytes <= SHARE * self._half_bytes
        return within_share and self._bytes + size_bytes <= self._half_bytes

    def _elders(self) -> Iterator[Place]:
        """The oldest uploads that go on, as many as one half of the room has room for; the first whatever its size."""
        left_bytes, by_peer, now_s = self._half_bytes, Counter[str](), time.monotonic()
        for n, place in enumerate(each for each in self._places if each in self._waiting or each.goes_on(now_s)):
            need = max(place.announced_bytes - place.dropped_bytes, place.bytes)
            if n and need > left_bytes:
                return
            if n and place.peer and by_peer[place.peer] + need > SHARE * self._half_bytes:
                continue
            left_bytes -= need
            by_peer[place.peer] += need
            yield place


class Place:
    """One request's place. For the one thread that handles the request; what is public is under Admission's lock."""

    _numbers = 0

    def __init__(self, admission: Admission, *, peer: str, announced_bytes: int) -> None:
        Place._numbers += 1
        self.number = Place._numbers
        self.peer = peer
        self.announced_bytes = announced_bytes
        self.bytes = 0
        self.dropped_bytes = 0
        self.came_s = float("-inf")
        """When bytes came last, or were let in; by time.monotonic."""
        self._admission = admission

    def goes_on(self, now_s: float) -> bool:
        """Whether bytes came just now, or all are there and on their way into S3."""
        return now_s - self.came_s <= SILENT_S or 0 < self.announced_bytes <= self.bytes + self.dropped_bytes

    def hold(self, size_bytes: int, *, timeout_s: float) -> float:
        """Wait for room for bytes that came: the seconds that it took. Raises Overloaded."""
        return self._admission.hold(self, size_bytes, timeout_s=timeout_s)

    def give_back(self, size_bytes: int) -> None:
        """So many bytes of those that came are not in memory any more."""
        self._admission.give_back(self, size_bytes)

    def let_go(self) -> None:
        """Nothing of the request's body is in memory any more."""
        self._admission.let_go(self)

    def leave(self) -> None:
        """The answer is made."""
        self._admission.leave(self)


class Body:
    """A request's body (wsgi.input): takes room for what comes, and says when its time is over."""

    def __init__(self, stream: Any, place: Place, *, timeout_s: float) -> None:
        self._stream = stream
        self._place = place
        self._timeout_s = timeout_s
        self._bytes = 0

    def read(self, size: int = -1) -> bytes:
        """As a file's. Raises UploadTimeout, Overloaded, and BadRequest for chunks that are none."""
        try:
            data: bytes = self._stream.read(size)
        except OSError:
            _check_time()
            raise
        except ParseException as error:
            _check_time()
            raise BadRequest(f"The body's chunks cannot be read: {type(error).__name__}.") from None
        _check_time()
        if data:
            self._bytes += len(data)
            self._take(len(data))
        return data

    def _take(self, size_bytes: int) -> None:
        waited_s = self._place.hold(size_bytes, timeout_s=self._timeout_s)
        if client := connections.current():
            client.paused(waited_s)
            if client.body_bytes > self._bytes * (1 + OVERHEAD) + SPARE_BYTES:
                raise BadRequest("The body comes in chunks of a few bytes: send chunks of some kilobytes.")


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
    peer = address_of(request.remote_addr)
    place = flask.g.place = admission.enter(
        peer="" if peer is None or peer.is_loopback else str(peer),
        announced_bytes=settings.web_max_photo_bytes if length is None else length,
    )
    request.environ["wsgi.input"] = Body(request.environ["wsgi.input"], place, timeout_s=settings.web_upload_s)


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
        raise UploadTimeout(client.late)
