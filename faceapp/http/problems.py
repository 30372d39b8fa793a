"""Errors as RFC 9457 problem documents: the same shape for everything that can go wrong, and never a traceback."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import flask
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from faceapp.errors import FaceappError, Overloaded, UploadTooLarge

logger = logging.getLogger(__name__)

CONTENT_TYPE = "application/problem+json"
RETRY_AFTER_S = {503: 5, 504: 10}


class Problem(Exception):
    """An error with more to say than its code and sentence: members and headers to add to the problem document."""

    def __init__(
        self, error: FaceappError, *, members: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(error.detail)
        self.error = error
        self.members = members
        self.headers = headers or {}


def register(app: flask.Flask) -> None:
    """Answer every error of `app` with a problem document."""
    app.register_error_handler(FaceappError, _faceapp_error)
    app.register_error_handler(Problem, _problem)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected)


def document(status: int, code: str, detail: str, members: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The members of a problem document; `about:blank` as type says that the title is the status's."""
    flask.g.outcome = code
    return {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
        "instance": quote(flask.request.path),
        "request_id": flask.g.request_id,
        **(members or {}),
    }


def _answer(error: FaceappError, members: Mapping[str, Any] | None = None) -> flask.Response:
    # As many as there can be of them need no second line each: trail.py counts and tells every request.
    if error.status >= 500 and not isinstance(error, Overloaded):
        logger.error("%s %s: %s: %s", flask.g.request_id, flask.request.endpoint, error.code, error.detail)
    answer = flask.jsonify(document(error.status, error.code, error.detail, members))
    answer.status_code = error.status
    answer.content_type = CONTENT_TYPE
    if error.status in RETRY_AFTER_S:
        answer.retry_after = RETRY_AFTER_S[error.status]
    return answer


def _faceapp_error(error: FaceappError) -> flask.Response:
    return _answer(error)


def _problem(problem: Problem) -> flask.Response:
    answer = _answer(problem.error, problem.members)
    answer.headers.update(problem.headers)
    return answer


def _http_error(error: HTTPException) -> flask.Response:
    if isinstance(error, RequestEntityTooLarge):
        limit_mib = flask.current_app.config["FACEAPP"].web_max_request_bytes / 2**20
        return _answer(UploadTooLarge(f"The request is larger than this service takes: {limit_mib:.3g} MiB."))
    status = error.code or 500
    code = HTTPStatus(status).name.lower()
    answer = flask.Response(headers=error.get_headers())
    answer.data = flask.json.dumps(document(status, code, _sentence(error, status)))
    answer.status_code = status
    answer.content_type = CONTENT_TYPE
    return answer


def _sentence(error: HTTPException, status: int) -> str:
    method, path = flask.request.method, flask.request.path
    if status == HTTPStatus.NOT_FOUND:
        return f"There is nothing at {path}: /docs lists what there is."
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
        return f"{path} does not take {method}; it takes {allowed}."
    return error.description or HTTPStatus(status).phrase


def _unexpected(error: Exception) -> flask.Response:
    logger.error("%s %s failed", flask.g.request_id, flask.request.endpoint, exc_info=error)
    unknown = FaceappError("Something went wrong on our side. The log has it under this request id.")
    answer = flask.jsonify(document(500, unknown.code, unknown.detail))
    answer.status_code, answer.content_type = 500, CONTENT_TYPE
    return answer
