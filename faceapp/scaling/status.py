"""What the scaler sees, wants and did, for the page (`/status`), Prometheus (`/metrics`) and whoever looks."""

from __future__ import annotations

import json
import socket
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from faceapp.config import Settings
from faceapp.errors import ConfigError
from faceapp.scaling.policies.base import Counts

HISTORY_S = 900
SAMPLE_S = 3.0
DECISIONS = 50
PHASES = ("booting", "ready", "draining", "stopping", "stopped")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One tick's numbers."""

    time_s: float
    """Unix time."""
    leader: bool
    wanted: int
    reason: str
    counts: Counts | None
    instances: Mapping[str, int]
    """How many, by phase."""
    service_s: float
    boot_p50_s: float
    spent_s: float
    """Instance-seconds of today."""


class Status:
    """The last snapshot, the last quarter of an hour and the last decisions. Safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._last: Snapshot | None = None
        self._trouble = ""
        self._history: deque[list[float | None]] = deque(maxlen=int(HISTORY_S / SAMPLE_S) + 1)
        self._decisions: deque[dict[str, Any]] = deque(maxlen=DECISIONS)
        self._registry = CollectorRegistry()
        self._messages = self._gauge("messages", "Messages of the request queue.", "state")
        self._instances = self._gauge("instances", "Instances of the app tier.", "phase")
        self._wanted = self._gauge("instances_wanted", "Instances that the policy wants.")
        self._leader = self._gauge("leader", "Whether this scaler holds the lease.")
        self._service = self._gauge("service_seconds", "Seconds of an instance a message.")
        self._boot = self._gauge("boot_seconds", "Median of the last boots.")
        self._spent = self._gauge("instance_seconds_today", "Instance-seconds billed since midnight, UTC.")
        self._actions = Counter("faceapp_scaler_actions", "Instances acted on.", ["action"], registry=self._registry)

    def _gauge(self, name: str, doc: str, *labels: str) -> Gauge:
        return Gauge(f"faceapp_scaler_{name}", doc, labels, registry=self._registry)

    def update(self, snapshot: Snapshot) -> None:
        """Take in a tick."""
        counts, instances = snapshot.counts, snapshot.instances
        with self._lock:
            self._last, self._trouble = snapshot, ""
            if not self._history or abs(snapshot.time_s - (self._history[-1][0] or 0.0)) >= 0.9 * SAMPLE_S:
                self._history.append(
                    [
                        round(snapshot.time_s, 1),
                        counts.visible if counts else None,
                        counts.in_flight if counts else None,
                        *(instances.get(phase, 0) for phase in PHASES[:3]),
                        snapshot.wanted,
                    ]
                )
        for phase in PHASES:
            self._instances.labels(phase).set(instances.get(phase, 0))
        for state in ("visible", "in_flight", "delayed"):
            self._messages.labels(state).set(getattr(counts, state) if counts else float("nan"))
        self._wanted.set(snapshot.wanted)
        self._leader.set(snapshot.leader)
        self._service.set(snapshot.service_s)
        self._boot.set(snapshot.boot_p50_s)
        self._spent.set(snapshot.spent_s)

    def failed(self, sentence: str) -> None:
        """Note why a tick came to nothing; the next one that does not takes it back."""
        with self._lock:
            self._trouble = sentence

    def decided(self, time_s: float, line: str, actions: Mapping[str, int]) -> None:
        """Note a decision that did something."""
        with self._lock:
            self._decisions.append({"time": round(time_s, 1), "line": line, **actions})
        for action, count in actions.items():
            self._actions.labels(action).inc(count)

    def document(self) -> dict[str, Any]:
        """What `/status` answers."""
        with self._lock:
            last, trouble = self._last, self._trouble
            history, decisions = list(self._history), list(self._decisions)
        document: dict[str, Any] = {
            "policy": self._settings.scaler_policy,
            "mode": self._settings.scaler_mode,
            "max_instances": self._settings.scaler_max_instances,
            "leader": False,
            "wanted": 0,
            "reason": "has just started",
            "counts": None,
            "instances": dict.fromkeys(PHASES, 0),
            "service_s": self._settings.scaler_service_s,
            "boot_p50_s": self._settings.scaler_boot_s,
            "spent_s": 0,
            "trouble": trouble,
            "history": history,
            "decisions": decisions,
        }
        if last:
            counts = last.counts
            document |= {
                "leader": last.leader,
                "wanted": last.wanted,
                "reason": last.reason,
                "counts": counts
                and {"visible": counts.visible, "in_flight": counts.in_flight, "delayed": counts.delayed},
                "instances": {**dict.fromkeys(PHASES, 0), **last.instances},
                "service_s": round(last.service_s, 4),
                "boot_p50_s": round(last.boot_p50_s, 1),
                "spent_s": round(last.spent_s),
            }
        return document

    def metrics(self) -> bytes:
        """What `/metrics` answers."""
        return generate_latest(self._registry)


class StatusServer:
    """Serves a `Status` over HTTP in a thread, from `start` until `stop`."""

    def __init__(self, settings: Settings, status: Status) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/status":
                    self._answer(200, "application/json", json.dumps(status.document()).encode())
                elif path == "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, status.metrics())
                elif path == "/healthz":
                    self._answer(200, "text/plain", b"ok\n")
                else:
                    self._answer(404, "text/plain", b"There are /status, /metrics and /healthz.\n")

            def _answer(self, code: int, content_type: str, body: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """The page asks all the time: no line for that."""

        class Server(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in settings.scaler_host else socket.AF_INET
            daemon_threads = True

        host, port = settings.scaler_host, settings.scaler_port
        try:
            self._server = Server((host, port), Handler)
        except OSError as error:
            raise ConfigError(
                f"The scaler's status cannot be served on {host}:{port} ({error.strerror or error}): choose another "
                "with FACEAPP_SCALER_PORT."
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="status", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
