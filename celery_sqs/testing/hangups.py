"""Whether the client of the embedded AWS still waits for its answer.

A worker that stops or is killed leaves a long poll behind. A message handed to that would be gone for its whole
visibility timeout, and have used up one of its tries.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

CONNECTION = "celery_sqs.connection"
"""Where a request's environment has its client's socket."""

_connection: ContextVar[Any] = ContextVar("connection", default=None)


class NoticeHangups:
    """WSGI middleware: while `app` works on a request, `has_hung_up` is about its client."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        _connection.set(environ.get(CONNECTION))
        return self._app(environ, start_response)


def has_hung_up() -> bool:
    """Whether the client whose request this greenlet works on has closed its connection."""
    connection = _connection.get()
    if connection is None:
        return False
    try:
        # The socket beneath gevent's, which never waits.
        return not connection._sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
