"""Which AWS calls were made, counted on their way into the embedded AWS: a WSGI middleware.

`GET /faceapp/calls` answers them as JSON, with this process's CPU seconds; `DELETE /faceapp/calls` begins again at 0.
On AWS each of these calls is billed, so `make bench` holds the whole path to eight per photo.
"""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

PATH = "/faceapp/calls"
EMPTY = "ReceiveMessage (empty)"
"""A long poll that brought nothing: it belongs to no photo, so it has a name of its own."""


class CountCalls:
    """Counts per service and operation, and serves the counts."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._cpu_from_s = time.process_time()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == PATH:
            return self._serve(environ["REQUEST_METHOD"], start_response)
        service, operation = identify(environ)
        body = self._app(environ, start_response)
        if operation == "ReceiveMessage":
            body = [b"".join(body)]
            if b'"Messages"' not in body[0] and b"<Message>" not in body[0]:
                operation = EMPTY
        with self._lock:
            self._counts[service, operation] += 1
        return body

    def _serve(self, method: str, start_response: StartResponse) -> Iterable[bytes]:
        with self._lock:
            if method == "DELETE":
                self._reset()
            calls: dict[str, dict[str, int]] = {}
            for (service, operation), count in sorted(self._counts.items()):
                calls.setdefault(service, {})[operation] = count
            cpu_s = time.process_time() - self._cpu_from_s
        document = json.dumps({"calls": calls, "cpu_s": round(cpu_s, 3)}).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(document)))])
        return [document]


def identify(environ: WSGIEnvironment) -> tuple[str, str]:
    """The AWS service and operation that a request asks for."""
    credential = re.search(r"Credential=[^/]+/\d+/[^/]+/([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
    service = credential[1] if credential else "unsigned"
    if target := environ.get("HTTP_X_AMZ_TARGET"):
        return service, target.rpartition(".")[2]
    if environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded"):
        form = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(form)
        if action := re.search(rb"(?:^|&)Action=(\w+)", form):
            return service, action[1].decode()
    return service, _s3_operation(environ)


def _s3_operation(environ: WSGIEnvironment) -> str:
    """S3 says what it is asked in the method, the path and the names of the query's parameters."""
    method = environ["REQUEST_METHOD"].capitalize()
    query = dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True))
    if "/" in environ["PATH_INFO"].strip("/"):
        return "CopyObject" if "HTTP_X_AMZ_COPY_SOURCE" in environ else f"{method}Object"
    if "delete" in query:
        return "DeleteObjects"
    if method == "Get" and query.get("list-type") == "2":
        return "ListObjectsV2"
    return f"{method}Bucket"
