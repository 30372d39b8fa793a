"""The page to try it, and its files."""

from __future__ import annotations

import flask

from faceapp import __version__
from faceapp.http import dispatch

blueprint = flask.Blueprint("page", __name__, template_folder="templates", static_folder="static")


@blueprint.get("/")
def index() -> str:
    """The page: it speaks to the API under /v1 and to nothing else."""
    return flask.render_template("index.html", settings=dispatch.current().settings, version=__version__)
