"""The JSON API under /v1: recognitions and people."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import flask

from faceapp.errors import FaceappError, RecognitionExpired, RecognitionNotFound, RecognitionTimeout, by_code
from faceapp.http import auth, dispatch, slashes, uploads
from faceapp.http.dispatch import Ticket
from faceapp.http.problems import Problem
from faceapp.http.uploads import Refusal, Upload
from faceapp.people import names
from faceapp.schema import UNKNOWN, Face, Failure, PhotoFailure, Recognition
from faceapp.security.keys import ENROL

PENDING = "pending"
RETRY_AFTER_S = 2
PHOTO_FIELD = "photo"
PREFER_CHARACTERS = 1000

blueprint = slashes.Blueprint("api", __name__, url_prefix="/v1")


@blueprint.post("/recognitions")
def recognise() -> flask.Response:
    """Take one or many photos: 202 with what is pending, or 200 when all results came within `Prefer: wait=N`.

    What is wrong with one photo is an item with status `failed`; a problem only if no photo at all was accepted.
    """
    service, files = dispatch.current(), uploads.read(flask.request)
    wait_s = preferred_wait_s(flask.request.headers.getlist("Prefer"), most_s=service.settings.web_wait_s)
    accepted = [_accept(service, file, waits=wait_s > 0) for file in files]
    tickets = [each for each in accepted if isinstance(each, Ticket)]
    if not tickets:
        raise _refused([each for each in accepted if isinstance(each, Refusal)])
    deadline_s = min(time.monotonic() + wait_s, flask.g.began_s + service.settings.web_wait_s)
    items = [
        _failed(each) if isinstance(each, Refusal) else _item(each, service.wait(each, deadline_s) if wait_s else None)
        for each in accepted
    ]
    pending = any(item["status"] == PENDING for item in items)
    answer = flask.jsonify(recognitions=items)
    answer.status_code = 202 if pending else 200
    if wait_s:
        answer.headers["Preference-Applied"] = f"wait={wait_s:g}"
    if pending:
        answer.headers["Retry-After"] = str(RETRY_AFTER_S)
    if len(files) == 1:
        answer.headers["Location"] = items[0]["links"]["self"]
    return answer


@blueprint.get("/recognitions/<request_id>")
def recognition(request_id: str) -> flask.Response:
    """The result document; while there is none, `pending`, and not for ever."""
    service = dispatch.current()
    storage = service.storage
    result = storage.get_result(request_id)
    if result:
        return flask.jsonify(_item(Ticket(id=request_id, file_name=result.file_name), result))
    photo = storage.photo_exists(request_id)
    if photo is None:
        raise RecognitionNotFound
    if service.is_lost(photo):
        failure = Failure.of(RecognitionExpired())
        result = Recognition(id=request_id, status="failed", file_name=photo.file_name, failure=failure)
        return flask.jsonify(_item(Ticket(id=request_id, file_name=photo.file_name), result))
    answer = flask.jsonify(_item(Ticket(id=request_id, file_name=photo.file_name), None))
    answer.headers["Retry-After"] = str(RETRY_AFTER_S)
    return answer


@blueprint.delete("/recognitions/<request_id>")
def erase(request_id: str) -> tuple[str, int]:
    """Delete a photo and its result."""
    dispatch.current().erase(request_id)
    return "", 204


@blueprint.get("/people")
def people() -> flask.Response:
    """Everybody enrolled, by name."""
    return flask.jsonify(people=[_person(each.name, each.photos) for each in dispatch.current().people.list_people()])


@blueprint.put("/people/<path:name>")
def enrol(name: str) -> flask.Response:
    """Enrol one or many photos under a name, all or none; answers when a worker has done it, and what is like them."""
    service, name = dispatch.current(), names.clean(name)
    files = uploads.read(flask.request, (PHOTO_FIELD,))
    refusals = [file for file in files if isinstance(file, Refusal)]
    if refusals:
        raise _refused(refusals)
    known = service.people.is_enrolled(name)
    enrolment = service.enrol(
        name,
        [file for file in files if isinstance(file, Upload)],
        request_id=flask.g.own_id,
        wait_s=service.settings.web_wait_s,
    )
    if enrolment is None:
        raise RecognitionTimeout("The photos were accepted but not enrolled yet: that happens once a worker is free.")
    if enrolment.failures:
        raise _problem_of(enrolment.failures)
    answer = flask.jsonify(
        name=name,
        photos=[_photo(name, photo_id) for photo_id in enrolment.photos],
        notices=[{**asdict(each), "detail": each.detail} for each in enrolment.notices],
    )
    answer.status_code = 200 if known else 201
    answer.headers["Location"] = flask.url_for("api.person", name=name)
    return answer


@blueprint.get("/people/<path:name>")
def person(name: str) -> flask.Response:
    """One person and their photos."""
    name, photo_ids = dispatch.current().people.find(name)
    return flask.jsonify(name=name, photos=[_photo(name, photo_id) for photo_id in photo_ids])


@blueprint.delete("/people/<path:name>")
def forget(name: str) -> tuple[str, int]:
    """Forget a person: every photo and vector at once, results that name them within minutes."""
    dispatch.current().forget(name)
    return "", 204


@blueprint.get("/people/<name>/photos/<photo_id>")
def photo(name: str, photo_id: str) -> flask.Response:
    """A photo as it was enrolled."""
    found = dispatch.current().people.photo(name, photo_id)
    answer = flask.Response(found.data, mimetype=found.content_type)
    # The id is the content's hash; but the photo may be forgotten, so a cache has to ask.
    answer.set_etag(photo_id)
    answer.cache_control.no_cache = True
    answer.cache_control.private = True
    answer.make_conditional(flask.request)
    return answer


@blueprint.delete("/people/<name>/photos/<photo_id>")
def forget_photo(name: str, photo_id: str) -> tuple[str, int]:
    """Forget one photo of a person."""
    dispatch.current().people.forget_photo(name, photo_id)
    return "", 204


def preferred_wait_s(headers: Sequence[str], *, most_s: float) -> float:
    """Seconds that `Prefer: wait=N` (RFC 7240) asks for, at most `most_s`; 0 without, or with `respond-async`.

    Only the first PREFER_CHARACTERS are read.
    """
    preferences = [each.strip().lower() for each in ",".join(headers)[:PREFER_CHARACTERS].split(",")]
    if "respond-async" in preferences:
        return 0.0
    for preference in preferences:
        match = re.fullmatch(r'wait\s*=\s*"?(\d{1,9})"?(\s*;.*)?', preference)
        if match:
            return min(float(match[1]), most_s)
    return 0.0


def _accept(service: dispatch.Dispatch, file: Upload | Refusal, *, waits: bool) -> Ticket | Refusal:
    if isinstance(file, Refusal):
        return file
    try:
        return service.recognize(file, request_id=dispatch.new_id(), waits=waits)
    except FaceappError as error:
        return Refusal(file_name=file.file_name, error=error)


def _item(ticket: Ticket, result: Recognition | None) -> dict[str, Any]:
    links = {"links": {"self": flask.url_for("api.recognition", request_id=ticket.id)}}
    if result is None:
        return {"id": ticket.id, "status": PENDING, "file_name": ticket.file_name, **links}
    return {**_shown(result).to_dict(), "file_name": ticket.file_name, **links}


def _shown(result: Recognition) -> Recognition:
    """The result as far as who asks may see it: who else is enrolled is for those who may list the people."""
    if auth.may(ENROL):
        return result
    return replace(result, faces=tuple(map(_named_only, result.faces)))


def _named_only(face: Face) -> Face:
    """The face with whom it was recognised as, and with nobody who is merely near."""
    own = tuple(each for each in face.candidates if each.name == face.name)
    return replace(face, candidates=own, distance=None if face.name == UNKNOWN else face.distance)


def _failed(refusal: Refusal) -> dict[str, Any]:
    failure = {"code": refusal.error.code, "detail": refusal.error.detail}
    return {"id": None, "status": "failed", "file_name": refusal.file_name, "failure": failure, "links": {}}


def _refused(refusals: Sequence[Refusal]) -> Problem:
    """One problem for all of the files: the first one's error, and every one's under `errors`."""
    errors = [{"file_name": each.file_name, "code": each.error.code, "detail": each.error.detail} for each in refusals]
    return Problem(refusals[0].error, members={"errors": errors})


def _problem_of(failures: Sequence[PhotoFailure]) -> Problem:
    first = failures[0]
    return Problem(by_code(first.code)(first.detail), members={"errors": [asdict(each) for each in failures]})


def _person(name: str, photos: int) -> dict[str, Any]:
    return {"name": name, "photos": photos, "links": {"self": flask.url_for("api.person", name=name)}}


def _photo(name: str, photo_id: str) -> Mapping[str, Any]:
    return {"id": photo_id, "links": {"self": flask.url_for("api.photo", name=name, photo_id=photo_id)}}
