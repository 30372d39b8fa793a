"""An embedded AWS: moto's server on the loopback, as a process of its own (`python -m celery_sqs.testing.server`).

It runs under gevent, in one thread: moto's SQS takes no locks, so with threads two receivers get the same message
(getmoto/moto#519), and a message that is sent while another is deleted can be lost. Greenlets change over only where
somebody waits, and a call has nowhere to wait but for a message. It is faster too, since nothing fights for the
interpreter.

It keeps everything in memory, and asks nobody who they are.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from celery_sqs.door import hides_headers
from celery_sqs.testing.aws import LISTENING
from celery_sqs.testing.process import end_with_parent

LOGGER = "celery_sqs.testing.server"
HEAD_S = 15.0
"""For a request's first line, and for the rest of its head: a client that does not send it is cut."""


class SlowHead(OSError, ValueError):
    """The request's head took too long. pywsgi ends the connection for an OSError, or answers 400 for a ValueError."""


def main(arguments: list[str] | None = None) -> None:
    """Serve moto's services, for as long as the process that started this one lives."""
    parser = argparse.ArgumentParser(prog="python -m celery_sqs.testing.server", description="AWS for tests, embedded")
    parser.add_argument("--port", type=int, default=0, help="by default a free one")
    port = parser.parse_args(arguments).port
    end_with_parent()
    # Every test empties its queues, and SQS allows that once a minute.
    os.environ["MOTO_SQS_ENFORCE_STRICT_QUEUE_PURGE_BEHAVIOUR"] = "false"

    def make_app() -> Any:
        from celery_sqs.testing import fast_moto

        return fast_moto.make_app()

    serve(make_app, port=port)


def serve(make_app: Callable[[], Any], *, port: int, told: str = "") -> None:
    """Serve the WSGI application that `make_app` makes on the loopback, until SIGTERM or SIGINT.

    Says `listening on http://127.0.0.1:PORT` as soon as it does, and then `told`. It patches this process for gevent,
    so what imports sockets is for `make_app` to import. Raises OSError for a port that is taken.
    """
    # Before anything makes a lock or a socket.
    from gevent import monkey

    monkey.patch_all()

    import gevent
    from gevent.pywsgi import WSGIHandler, WSGIServer

    from celery_sqs.testing.hangups import CONNECTION, NoticeHangups

    logger = logging.getLogger(LOGGER)

    class Handler(WSGIHandler):
        def log_error(self, msg: str, *args: Any) -> None:
            # pywsgi quotes requests, which have keys and people's names in them.
            error = sys.exc_info()[0]
            logger.info("bad request: %s", error.__name__ if error else "unknown")

        def read_requestline(self) -> str:
            # A client keeps its connection idle between two requests for as long as it likes.
            if self.requestline is not None:
                self.rfile.peek(1)
            with gevent.Timeout(HEAD_S, SlowHead("The request took too long.")):
                line: str = super().read_requestline()
                return line

        def read_request(self, raw_requestline: str) -> bool:
            with gevent.Timeout(HEAD_S, SlowHead("The request's head took too long.")):
                super().read_request(raw_requestline)
            if hides_headers(self.headers):
                raise ValueError("A line of the request's head is no header.")
            return True

        def get_environ(self) -> dict[str, Any]:
            # The path before its escapes were decoded, which gevent leaves out (gevent/gevent#67): without it moto
            # decodes an object's key a second time.
            environ: dict[str, Any] = super().get_environ()
            return {**environ, "RAW_URI": self.path, CONNECTION: self.socket}

    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    # Connections inherit it. pywsgi sends an answer in two pieces, and the second would wait 40 ms for the client to
    # acknowledge the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = WSGIServer(
        listener,
        NoticeHangups(make_app()),
        handler_class=Handler,
        log=None,
        error_log=logger,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, server.stop, 0)
    server.start()
    print(f"{LISTENING}http://127.0.0.1:{server.server_port}{told}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
