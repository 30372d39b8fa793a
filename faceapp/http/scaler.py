"""What the scaler sees and wants, for the page: its status, passed on.

The scaler listens on the loopback of the machine that the web tier runs on, where no browser reaches it.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import flask

from celery_sqs.scaler import client
from faceapp.config import Settings
from faceapp.http import slashes

FRESH_S = 1.0
"""Every open page asks every few seconds; the scaler is asked once in this time."""

blueprint = slashes.Blueprint("scaler", __name__)


class ScalerStatus:
    """The scaler's status, asked for when it is wanted and kept for a moment. Any thread may call."""

    def __init__(self, settings: Settings) -> None:
        self._host, self._port = settings.scaler_host, settings.scaler_port
        self._lock = threading.Lock()
        self._asked_s = float("-inf")
        self._status: dict[str, Any] | None = None

    def get(self) -> dict[str, Any] | None:
        """The status document; None when the scaler does not answer."""
        with self._lock:
            if time.monotonic() - self._asked_s > FRESH_S:
                self._status = client.ask(self._host, self._port)
                self._asked_s = time.monotonic()
            return self._status


@blueprint.get("/v1/scaler")
def status() -> flask.Response:
    """Queue depth, instances by phase, what the scaler wants and why, and the last quarter of an hour of it.

    A scaler that does not answer is `running: false`, not an error: photos are taken and kept without it.
    """
    scaler: ScalerStatus = flask.current_app.extensions["faceapp-scaler"]
    status = scaler.get()
    answer = flask.jsonify({"running": status is not None, **(status or {})})
    answer.cache_control.no_store = True
    return answer
