"""Asking a scaler for its status."""

from __future__ import annotations

import json
import socket
import urllib.request
from typing import Any

TIMEOUT_S = 2.0
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where one that listens on all of them is asked."""


def ask(host: str, port: int, *, timeout_s: float = TIMEOUT_S) -> dict[str, Any] | None:
    """The status document of the scaler that listens there; None when it does not answer."""
    try:
        # A proxy of the environment's would look for the loopback somewhere else.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        host = EVERY_ADDRESS.get(host, host)
        # By its number: on the loopback the scaler answers to no other name.
        host = f"[{host}]" if ":" in host else socket.gethostbyname(host)
        with opener.open(f"http://{host}:{port}/status", timeout=timeout_s) as answer:
            status: dict[str, Any] = json.load(answer)
            return status
    except (OSError, ValueError):
        return None
