"""Whether the process lives, and whether it can do its work."""

from __future__ import annotations

import flask

from faceapp import __version__
from faceapp.http import dispatch

blueprint = flask.Blueprint("health", __name__)


@blueprint.get("/healthz")
def healthz() -> flask.Response:
    """This process answers; it asks nobody."""
    return flask.jsonify(status="ok", version=__version__)


@blueprint.get("/readyz")
def readyz() -> flask.Response:
    """S3 and SQS answered just now; 503 names the one that did not."""
    dispatch.current().ready()
    return flask.jsonify(status="ready")
