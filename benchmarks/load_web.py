"""The web tier of the peers of `benchmarks.load`: the classic contract around any way to a worker and back."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import flask

from faceapp.config import settings
from faceapp.schema import Recognition
from faceapp.storage import Storage

REDIS_URL = "BENCH_REDIS_URL"
"""The variable that names the Redis of the peer that uses one."""
STORED_AT_ONCE = 64
"""Photos; as many as our web tier stores (faceapp.http.dispatch), since more would only wait for S3."""


def peer_app(recognise: Callable[[str], dict[str, Any]]) -> flask.Flask:
    """`POST /`: the photo into S3, `recognise` its id into a Recognition's document, `<stem>:<name>` back."""
    app = flask.Flask(__name__)
    storage, gate = Storage(settings()), threading.BoundedSemaphore(STORED_AT_ONCE)

    @app.get("/healthz")
    def healthz() -> str:
        return "ok"

    @app.post("/")
    def answer() -> flask.Response:
        upload = flask.request.files["inputFile"]
        request_id, name = uuid.uuid4().hex, upload.filename or ""
        with gate:
            storage.put_photo(request_id, upload.read(), file_name=name, content_type="image/jpeg")
        # No copy of the photo while the request waits, as with ours.
        upload.close()
        found = Recognition.from_dict(recognise(request_id))
        text = f"{PurePosixPath(name).stem}:{found.answer}"
        return flask.Response(text, mimetype="text/plain", headers={"X-Request-ID": request_id})

    return app
