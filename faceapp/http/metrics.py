"""`/metrics`: what the web tier did, for Prometheus.

Only to whom `FACEAPP_WEB_METRICS` lets in, since how much a service is used is nobody else's business. The default is
this machine itself (celery_sqs.door says what that is), where a scraper or its agent runs beside the web tier.
`private` takes peers in private networks (a scraper in the same VPC, and also whatever a load balancer passes on
without saying so), `any` asks nobody.

Each app has a registry of its own. With several web processes a scrape reaches any one of them and must tell of all:
each then keeps its numbers in files in a folder that the server made (PROMETHEUS_MULTIPROC_DIR, see server.py), and the
one that is asked adds them up. Labels take values from the code only, never a name, an id or what a client sent.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import flask
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector
from werkzeug.exceptions import Forbidden

from faceapp import __version__, tasks
from faceapp.config import Settings
from faceapp.errors import FaceappError
from faceapp.http.auth import reason_of
from faceapp.http.server import METRICS_FOLDER
from faceapp.schema import UNKNOWN, Enrolment, Recognition, Timings

ANSWER_BUCKETS_S = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)
"""From a warm worker's answer to what a whole burst waits; 120 is FACEAPP_SCALER_SLO_S, 300 FACEAPP_WEB_WAIT_S."""
STAGE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

blueprint = flask.Blueprint("metrics", __name__)


class _Processes(MultiProcessCollector):
    """The numbers of all processes of a folder.

    A process makes a file empty and fills it a moment later; one that is killed between them would leave every process
    without metrics for good (https://github.com/prometheus/client_python/issues/1199).
    """

    def collect(self) -> Any:
        files = [str(file) for file in Path(self._path).glob("*.db") if _size_bytes(file)]
        return self.merge(files, accumulate=True)  # type: ignore[no-untyped-call]


class Metrics:
    """The numbers of one app. Any thread may call any method."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._lock = threading.Lock()
        self._answers_seen: dict[str, int] = {}
        self._requests = Counter(
            "faceapp_web_requests",
            "Requests by endpoint, HTTP status and outcome: ok, pending (202), or the error's code.",
            ["endpoint", "status", "outcome"],
            registry=registry,
        )
        self._durations = Histogram(
            "faceapp_web_request_duration_seconds",
            "From a request's head to its answer, by endpoint and class of status (2xx).",
            ["endpoint", "status"],
            buckets=ANSWER_BUCKETS_S,
            registry=registry,
        )
        self._photos = Counter(
            "faceapp_web_photos",
            "Photos by outcome: named, unknown, no_face; enrolled, left_out (another photo of it was refused); "
            "accepted (nobody waits), pending (the wait was over first); or the error's code.",
            ["outcome"],
            registry=registry,
        )
        self._stages = Histogram(
            "faceapp_web_stage_duration_seconds",
            "A photo's stages: store, send and wait here, the others in the worker (total: all of those but queued).",
            ["stage"],
            buckets=STAGE_BUCKETS_S,
            registry=registry,
        )
        self._waiting = Gauge(
            "faceapp_web_waiting_requests",
            "Requests that wait for an answer from the workers.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._admitted = Gauge(
            "faceapp_web_admitted_requests",
            "Requests with photos that have a place: at most FACEAPP_WEB_WAITING a process, one more is overloaded.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._uploading = Gauge(
            "faceapp_web_upload_bytes",
            "Of requests' bodies, what came and is not in S3 yet: at most FACEAPP_WEB_UPLOAD_BYTES and one request.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._answers = Counter(
            "faceapp_web_answers",
            "Messages of the response queue: delivered, late (nobody waits any more: late or doubled), corrupt, "
            "and left to another process that reads the same queue.",
            ["outcome"],
            registry=registry,
        )
        self._processes = Gauge(
            "faceapp_web_processes", "Web processes.", registry=registry, multiprocess_mode="livesum"
        )
        self._build = Gauge(
            "faceapp_web_build_info", "1, for the version.", ["version"], registry=registry, multiprocess_mode="livemax"
        )
        self._processes.set(1)
        self._build.labels(__version__).set(1)
        # From the start, so that the first one shows as a rise.
        for outcome in ("delivered", "late", "corrupt"):
            self._answers.labels(outcome)
        for outcome in ("named", "unknown", "no_face", "enrolled", "accepted", "pending"):
            self._photos.labels(outcome)
        for stage in ("store", "send", "wait", *_stages(Timings())):
            self._stages.labels(stage)

    def request(self, endpoint: str, *, status: int, outcome: str, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(endpoint, str(status), outcome).inc()
        self._durations.labels(endpoint, f"{status // 100}xx").observe(seconds)

    def stage(self, name: str) -> AbstractContextManager[object]:
        """Measure a stage of our own: store or send."""
        return self._stages.labels(name).time()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Somebody waits for an answer."""
        with self._waiting.track_inprogress(), self.stage("wait"):
            yield
        self._catch_up()

    def admitted(self, change: int) -> None:
        """So many more requests have a place."""
        self._admitted.inc(change)

    def uploading(self, change_bytes: int) -> None:
        """So many more bytes of bodies are held."""
        self._uploading.inc(change_bytes)

    @contextmanager
    def counting(self, photos: int = 1) -> Iterator[None]:
        """Count photos that an error puts an end to."""
        try:
            yield
        except FaceappError as error:
            self.count(error.code, photos)
            raise

    def count(self, outcome: str, photos: int = 1) -> None:
        """Count photos with this outcome."""
        self._photos.labels(outcome).inc(photos)

    def result(self, recognition: Recognition | None) -> None:
        """Count a photo that was waited for; None: its result did not come in time."""
        if recognition is None:
            self.count("pending")
            return
        self.count(_outcome(recognition))
        if recognition.status == "done":
            for stage, seconds in _stages(recognition.timings).items():
                self._stages.labels(stage).observe(seconds)

    def enrolment(self, enrolment: Enrolment | None, *, photos: int) -> None:
        """Count the photos of an enrolment that was waited for; None: it was not done in time."""
        if enrolment is None:
            self.count("pending", photos)
        elif not enrolment.failures:
            self.count("enrolled", photos)
        else:
            # All or none: one refusal keeps the others out.
            for failure in enrolment.failures:
                self.count(failure.code)
            self.count("left_out", photos - len(enrolment.failures))

    def exposition(self) -> bytes:
        """Everything, in Prometheus's text format; of all web processes when there are several."""
        self._catch_up()
        registry = self._registry
        if folder := os.environ.get(METRICS_FOLDER):
            registry = CollectorRegistry()
            _Processes(registry, path=folder)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def _catch_up(self) -> None:
        """Bring the answers' numbers up to the response collector's, which counts them for this process."""
        counts = tasks.app.backend.collector.counts
        with self._lock:
            for outcome, count in list(counts.items()):
                self._answers.labels(outcome).inc(count - self._answers_seen.get(outcome, 0))
                self._answers_seen[outcome] = count


def _size_bytes(file: Path) -> int:
    """Zero for one that is gone."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def register(app: flask.Flask) -> Metrics:
    """Count what `app` answers, and serve the numbers. `flask.g` has when a request began and its problem's code."""
    metrics = app.extensions["faceapp-metrics"] = Metrics()
    app.after_request(_count)
    app.register_blueprint(blueprint)
    return metrics


def current() -> Metrics:
    """The numbers of the app that handles this request."""
    metrics: Metrics = flask.current_app.extensions["faceapp-metrics"]
    return metrics


@blueprint.get("/metrics")
def exposition() -> flask.Response:
    """The numbers in Prometheus's text format; 403 for strangers."""
    settings: Settings = flask.current_app.config["FACEAPP"]
    if not may_read(settings.web_metrics, flask.request):
        raise Forbidden(f"/metrics is not for this address: FACEAPP_WEB_METRICS is {settings.web_metrics!r}.")
    answer = flask.Response(current().exposition(), content_type=CONTENT_TYPE_LATEST)
    answer.cache_control.no_store = True
    return answer


def may_read(readers: str, request: flask.Request) -> bool:
    """Whether a request may read the numbers; `readers` is the setting's value."""
    if readers in ("off", "any"):
        return readers == "any"
    return reason_of(request, pages=False, network=readers == "private") is None


def _count(response: flask.Response) -> flask.Response:
    current().request(
        flask.request.endpoint or "none",
        status=response.status_code,
        outcome=flask.g.get("outcome", "pending" if response.status_code == 202 else "ok"),
        seconds=time.monotonic() - flask.g.began_s,
    )
    return response


def _outcome(recognition: Recognition) -> str:
    if recognition.failure:
        return recognition.failure.code
    if not recognition.faces:
        return "no_face"
    return "unknown" if recognition.answer == UNKNOWN else "named"


def _stages(timings: Timings) -> dict[str, float]:
    return {name.removesuffix("_s"): seconds for name, seconds in asdict(timings).items()}
