"""What the scaler sees and wants, for the page: its status, passed on.

The scaler listens on the loopback of the machine that the web tier runs on, where no browser reaches it.
"""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.request
from typing import Any

import flask

from faceapp.config import Settings
from faceapp.http import slashes

TIMEOUT_S = 2.0
FRESH_S = 1.0
"""Every open page asks every few seconds; the scaler is asked once in this time."""

blueprint = slashes.Blueprint("scaler", __name__)


class ScalerStatus:
    """The scaler's status, asked for when it is wanted and kept for a moment. Any thread may call."""

    def __init__(self, settings: Settings) -> None:
        self._host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.scaler_host, settings.scaler_host)
        self._port = settings.scaler_port
        self._lock = threading.Lock()
        self._asked_s = float("-inf")
        self._status: dict[str, Any] | None = None

    def get(self) -> dict[str, Any] | None:
        """The status document; None when the scaler does not answer."""
        with self._lock:
            if time.monotonic() - self._asked_s > FRESH_S:
                self._status = self._ask()
                self._asked_s = time.monotonic()
            return self._status

    def _ask(self) -> dict[str, Any] | None:
        try:
            # A proxy of the environment's would look for the loopback somewhere else.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            # By its number: on the loopback the scaler answers to no other name.
            host = f"[{self._host}]" if ":" in self._host else socket.gethostbyname(self._host)
            with opener.open(f"http://{host}:{self._port}/status", timeout=TIMEOUT_S) as answer:
                status: dict[str, Any] = json.load(answer)
                return status
        except (OSError, ValueError):
            return None


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
