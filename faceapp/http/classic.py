"""The classic contract: one photo to `POST /`, one line of text back."""

from __future__ import annotations

from typing import Any

import flask

from faceapp.errors import RecognitionTimeout
from faceapp.http import dispatch, uploads
from faceapp.http.problems import Problem
from faceapp.schema import Recognition

FIELDS = ("inputFile", "myfile", "file")

blueprint = flask.Blueprint("classic", __name__)


@blueprint.post("/")
def answer() -> flask.Response:
    """`<file name without extension>:<name>`; the request waits until there is an answer."""
    (file,) = uploads.read(flask.request, FIELDS, most=1)
    if isinstance(file, uploads.Refusal):
        raise file.error
    recognition = _recognise(file)
    if recognition.failure:
        raise Problem(recognition.failure.error(), members=_members(recognition.id))
    return flask.Response(f"{uploads.stem(file.file_name)}:{recognition.answer}", mimetype="text/plain")


def _recognise(upload: uploads.Upload) -> Recognition:
    service = dispatch.current()
    ticket = service.recognize(upload, request_id=flask.g.own_id, waits=True)
    recognition = service.wait(ticket, flask.g.began_s + service.settings.web_wait_s)
    if recognition is None:
        raise Problem(RecognitionTimeout(), members=_members(ticket.id))
    return recognition


def _members(request_id: str) -> dict[str, Any]:
    """What a problem says of a photo that was accepted."""
    return {"id": request_id, "links": {"self": flask.url_for("api.recognition", request_id=request_id)}}
