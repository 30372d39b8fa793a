"""The embedded AWS: moto's server on the loopback, as a process of its own (`python -m faceapp.local.aws --port N`).

It runs under gevent, in one thread: moto's SQS takes no locks, so with threads two receivers get the same message
(getmoto/moto#519), and a message that is sent while another is deleted can be lost. Greenlets change over only where
somebody waits, and a call has nowhere to wait but for a message. It is faster too, since nothing fights for the
interpreter.

It answers only who has its start's access key (aws_guard.py), which is derived from FACEAPP_LOCAL_KEY. Without one it
makes a key and prints it.

It keeps everything in memory. `faceapp.local.state` keeps the gallery for the next start.
"""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import sys
from collections.abc import Collection
from typing import Any

from celery_sqs.door import hides_headers
from faceapp.config import settings
from faceapp.errors import ConfigError
from faceapp.security.credential import aws_keys, fresh

LISTENING = "listening on "
HEAD_S = 15.0
"""For a request's first line, and for the rest of its head: a client that does not send it is cut."""


class SlowHead(OSError, ValueError):
    """The request's head took too long. pywsgi ends the connection for an OSError, or answers 400 for a ValueError."""


def main(arguments: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Says `listening on http://127.0.0.1:PORT` as soon as it does."""
    parser = argparse.ArgumentParser(prog="python -m faceapp.local.aws", description="AWS, embedded, on 127.0.0.1")
    parser.add_argument("--port", type=int, default=4566, help="0 takes a free one (default: %(default)s)")
    port = parser.parse_args(arguments).port
    try:
        given = settings().local_key
        keys = aws_keys(given) if given else fresh()
        told = "" if given else "".join(f"\nexport {name}={value}" for name, value in keys.items())
        serve(port=port, key_ids=[keys["AWS_ACCESS_KEY_ID"]], told=told)
    except ConfigError as error:
        sys.exit(error.detail)
    except OSError as error:
        sys.exit(f"The embedded AWS cannot listen on port {port}: {error.strerror or error}")


def serve(*, port: int, key_ids: Collection[str], told: str = "") -> None:
    """Serve those who name one of `key_ids`; `told` is said besides, once it listens."""
    # Before anything makes a lock or a socket.
    from gevent import monkey

    monkey.patch_all()

    import gevent
    from gevent.pywsgi import WSGIHandler, WSGIServer

    from celery_sqs.testing.hangups import CONNECTION, NoticeHangups
    from faceapp.local import fast_moto
    from faceapp.local.aws_guard import Guard, issued_by_sts
    from faceapp.local.calls import CountCalls

    class Handler(WSGIHandler):  # type: ignore[misc] # gevent has no type hints
        def log_error(self, msg: str, *args: Any) -> None:
            # pywsgi quotes requests, which have keys and people's names in them.
            error = sys.exc_info()[0]
            logging.getLogger("faceapp.local.aws").info("bad request: %s", error.__name__ if error else "unknown")

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
        NoticeHangups(Guard(CountCalls(fast_moto.make_app()), key_ids, is_issued=issued_by_sts)),
        handler_class=Handler,
        log=None,
        error_log=logging.getLogger("faceapp.local.aws"),
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, server.stop, 0)
    server.start()
    print(f"{LISTENING}http://127.0.0.1:{server.server_port}{told}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
