"""Large objects go into the embedded S3 beside the calls of others: a WSGI middleware.

The embedded AWS does one thing at a time, and moto writes an object to disk and hashes it in one go: 80 ms for 19 MiB,
in which nobody else gets an answer. Both are done here instead, in threads, while the body comes in; moto is handed
what came of it. Whether an object may be written is decided after that, without a pause up to its being there, as
before.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING, Any

from moto.s3.models import FakeKey
from moto.utilities.utils import md5_hash

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LARGE_BYTES = 1024 * 1024
PIECE_BYTES = 256 * 1024
"""Half a millisecond to receive."""


@dataclass(frozen=True)
class Body:
    """A request's body: where it lies, its length in bytes and its MD5 in hexadecimal."""

    file: SpooledTemporaryFile[bytes]
    size: int
    md5: str


_body: ContextVar[Body | None] = ContextVar("body", default=None)


class TakeLargeBodies:
    """Receives the bodies of S3's large PUT requests for `app`."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        size = _size(environ)
        if size < LARGE_BYTES:
            return self._app(environ, start_response)
        body = _take(environ["wsgi.input"], size)
        if body is None:
            start_response("400 Bad Request", [("Content-Length", "0"), ("Connection", "close")])
            return []
        environ["wsgi.input"] = body.file
        _body.set(body)
        try:
            return self._app(environ, start_response)
        finally:
            _body.set(None)


def _size(environ: WSGIEnvironment) -> int:
    """How long an object is that comes as it is; 0 for everything else."""
    raw = environ["REQUEST_METHOD"] == "PUT" and environ.get("CONTENT_LENGTH", "").isdecimal()
    encoded = environ.get("HTTP_X_AMZ_CONTENT_SHA256", "").startswith("STREAMING")
    return int(environ["CONTENT_LENGTH"]) if raw and not encoded else 0


def _take(stream: Any, size: int) -> Body | None:
    """The body; None if its client left before the end of it."""
    import gevent

    threads = gevent.get_hub().threadpool
    # moto's own, and with it what moto does when the object is gone.
    file: SpooledTemporaryFile[bytes] = SpooledTemporaryFile(max_size=1)  # noqa: SIM115 - it is the object's
    digest, left = md5_hash(), size

    def keep(piece: bytes) -> None:
        digest.update(piece)
        file.write(piece)

    while left:
        try:
            piece = stream.read(min(left, PIECE_BYTES))
        except OSError:
            piece = b""
        if not piece:
            file.close()
            return None
        left -= len(piece)
        threads.apply(keep, (piece,))
    file.seek(0)
    return Body(file, size, digest.hexdigest())


def mend() -> None:
    """Have moto's objects take over what was received, in this process."""
    original: property = vars(FakeKey)["value"]

    def take_over(key: FakeKey, value: bytes) -> None:
        body = _body.get()
        if body is None or body.size != len(value):
            original.__set__(key, value)
            return
        key._value_buffer.close()
        key._value_buffer, key.contentsize, key._etag = body.file, body.size, key._etag or body.md5

    setattr(FakeKey, "value", original.setter(take_over))  # noqa: B010 - mypy forbids =
