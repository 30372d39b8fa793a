"""What a request leaves behind: its id in the answer and in every log line, a line of its own, and a span."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack

import flask

from faceapp.http import dispatch
from faceapp.observability import logs, tracing

logger = logging.getLogger(__name__)

TOLD = ("api", "classic")
"""Blueprints whose requests are told of; of the others (probes, the page and what it asks for) only at DEBUG."""


def register(app: flask.Flask) -> None:
    """Follow every request of `app`; to be called before anything else looks at its requests."""
    app.before_request(_begin)
    app.after_request(_answered)
    app.teardown_request(_end)


def _begin() -> None:
    # Keys and tasks are named by us, never by a client: this id is ours whatever the request's id is.
    flask.g.own_id = dispatch.new_id()
    chosen = flask.request.headers.get("X-Request-ID", "")
    flask.g.request_id = chosen if logs.is_request_id(chosen) else flask.g.own_id
    flask.g.began_s = time.monotonic()
    logs.bind(request_id=flask.g.request_id)
    flask.g.trail = ExitStack()
    if flask.request.blueprint in TOLD:
        span = tracing.span(
            f"{flask.request.method} {route()}",
            kind="SERVER",
            parent=flask.request.headers.get("traceparent", ""),
            attributes={
                "http.request.method": flask.request.method,
                "http.route": route(),
                "faceapp.request_id": flask.g.request_id,
            },
        )
        flask.g.trail.enter_context(span)
        if trace_id := tracing.trace_id():
            logs.bind(trace_id=trace_id)


def _answered(response: flask.Response) -> flask.Response:
    response.headers["X-Request-ID"] = flask.g.request_id
    seconds, status = time.monotonic() - flask.g.began_s, response.status_code
    outcome = flask.g.get("outcome", "pending" if status == 202 else "ok")
    tracing.note({"http.response.status_code": status, "faceapp.outcome": outcome}, failed=status >= 500)
    told = flask.request.blueprint in TOLD or status >= 500
    logger.log(
        logging.INFO if told else logging.DEBUG,
        "%s %s: %d %s, %.3f s",
        flask.request.method,
        route(),
        status,
        outcome,
        seconds,
        extra={
            "fields": {
                "method": flask.request.method,
                "route": route(),
                "status": status,
                "outcome": outcome,
                "seconds": round(seconds, 3),
            }
        },
    )
    return response


def _end(_: BaseException | None = None) -> None:
    if trail := flask.g.pop("trail", None):
        trail.close()
    logs.unbind()


def route() -> str:
    """The pattern that the request's path fits: the path itself can have a person's name in it."""
    rule = flask.request.url_rule
    return rule.rule if rule else "(no such path)"
