"""The web tier: `create_app()` is its WSGI application. It loads no model and keeps nothing on disk."""

from __future__ import annotations

import flask
from flask import Flask

from faceapp.config import Settings
from faceapp.config import settings as environment_settings
from faceapp.http import (
    admission,
    api,
    auth,
    classic,
    dispatch,
    health,
    metrics,
    openapi,
    page,
    problems,
    scaler,
    trail,
    uploads,
)

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def create_app(settings: Settings | None = None) -> Flask:
    """The application for `settings` (default: the environment's).

    The queues are always the environment's, since this process's Celery app is made from it.
    """
    settings = settings or environment_settings()
    app = Flask(__name__, static_folder=None)
    # Werkzeug would send `//people` to `/people` on whatever host the request names, before its key is looked at.
    app.url_map.merge_slashes = False
    app.request_class = uploads.Request
    app.config.update(
        FACEAPP=settings,
        MAX_CONTENT_LENGTH=settings.web_max_request_bytes,
    )
    app.json.sort_keys = False  # type: ignore[attr-defined]
    service = app.extensions["faceapp"] = dispatch.Dispatch(settings, metrics.register(app))
    app.extensions["faceapp-scaler"] = scaler.ScalerStatus(settings)
    trail.register(app)
    app.after_request(_finish)
    problems.register(app)
    auth.register(app, service.storage)
    admission.register(app, settings)
    for module in (page, classic, api, scaler, health, openapi):
        app.register_blueprint(module.blueprint)
    return app


def _finish(response: flask.Response) -> flask.Response:
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    return response
