"""Spans over OTLP/HTTP from real processes, taken by a real receiver that reads the protobuf."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from faceapp.config import Settings
from tests.support.services import REPOSITORY, celery_worker, environ, wait_until
from tests.support.web import web_server
from tests.system.test_logs import posted

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STAGES = ["fetch", "decode", "detect", "align", "embed", "search"]


class Receiver:
    """Takes what exporters post to /v1/traces."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/v1/traces":
                    receiver.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            attributes = {each.key: each.value.string_value for each in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [(attributes["service.name"], span) for span in scope.spans]

    def named(self, name: str) -> list[Span]:
        return [span for _, span in self.spans if span.name == name]

    def tree(self) -> set[tuple[str, str, str]]:
        """Service, name and parent's name of every span."""
        names = {span.span_id: span.name for _, span in self.spans}
        names |= {b"": "", bytes.fromhex(CALLER): "the caller"}
        return {(service, span.name, names.get(span.parent_span_id, "?")) for service, span in self.spans}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    threading.Thread(target=made.server.serve_forever, daemon=True).start()
    yield made
    made.server.shutdown()
    made.server.server_close()


@contextmanager
def system(
    aws_endpoint: str, stack: Settings, folder: Path, endpoint: str, **more: str
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A web tier and a worker with their spans going to `endpoint`: the web tier's URL and the worker."""
    more = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50", **more}
    env = environ(aws_endpoint, stack, **more)
    with (
        celery_worker("faceapp.tasks", folder / "worker", env, "--concurrency", "1") as worker,
        web_server(aws_endpoint, stack, folder / "web", **more) as (url, _),
    ):
        yield url, worker


@pytest.mark.system
def test_one_trace_goes_from_the_client_through_web_and_worker(
    aws_endpoint: str, stack: Settings, tmp_path: Path, samples: dict[str, Path], receiver: Receiver
) -> None:
    photo = samples["obama.jpg"].read_bytes()
    with system(aws_endpoint, stack, tmp_path, receiver.url) as (url, _):
        answer = posted(url, photo, **{"traceparent": f"00-{TRACE}-{CALLER}-01", "X-Request-ID": "mine"})
        assert answer == (200, "mine", "holiday:unknown")
        wait_until(lambda: receiver.named("POST /") and receiver.named("process faceapp.recognize"), what="the spans")
    web, worker = "faceapp-web", "faceapp-worker"
    assert receiver.tree() == {
        (web, "POST /", "the caller"),
        (web, "store photo", "POST /"),
        (web, "publish faceapp.recognize", "POST /"),
        (web, "wait for the answer", "POST /"),
        (worker, "process faceapp.recognize", "publish faceapp.recognize"),
        *((worker, stage, "process faceapp.recognize") for stage in STAGES),
        (worker, "store result", "process faceapp.recognize"),
        (worker, "reply", "process faceapp.recognize"),
    }
    assert {span.trace_id.hex() for _, span in receiver.spans} == {TRACE}
    [server] = receiver.named("POST /")
    [consumer] = receiver.named("process faceapp.recognize")
    assert (server.kind, consumer.kind) == (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CONSUMER)
    attributes = {each.key: each.value for each in server.attributes}
    assert attributes["http.response.status_code"].int_value == 200
    assert attributes["faceapp.request_id"].string_value == "mine"
    starts = [span.start_time_unix_nano for stage in STAGES for span in receiver.named(stage)]
    assert starts == sorted(starts)
    assert consumer.start_time_unix_nano <= starts[0]


@pytest.mark.system
def test_spans_carry_no_names_and_the_last_ones_come_at_the_end(
    aws_endpoint: str, stack: Settings, tmp_path: Path, samples: dict[str, Path], receiver: Receiver
) -> None:
    photo = samples["obama.jpg"].read_bytes()
    # Nothing is sent before the processes end.
    with system(aws_endpoint, stack, tmp_path, receiver.url, OTEL_BSP_SCHEDULE_DELAY="600000") as (url, _):
        assert posted(url, photo, "/v1/people/somebody", "PUT")[0] == 201
        assert posted(url, photo)[2] == "holiday:somebody"
        assert posted(url, b"no photo")[0] == 415
        assert receiver.spans == []
    assert len(receiver.named("POST /")) == 2
    assert len(receiver.named("process faceapp.recognize")) == 1
    assert len(receiver.named("process faceapp.enrol")) == 1
    assert not any("somebody" in str(span) for _, span in receiver.spans)
    assert len({span.trace_id for _, span in receiver.spans}) == 3


@pytest.mark.system
def test_nobody_who_takes_the_spans_costs_one_line(
    aws_endpoint: str, stack: Settings, tmp_path: Path, samples: dict[str, Path]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
    timeout = {"OTEL_EXPORTER_OTLP_TIMEOUT": "0.2"}
    with system(aws_endpoint, stack, tmp_path, nobody, **timeout) as (url, _):
        photo = samples["obama.jpg"].read_bytes()
        logs = [tmp_path / "web", tmp_path / "worker"]

        def warned() -> bool:
            assert posted(url, photo)[2] == "holiday:unknown"
            return all("traces are lost" in log.read_text() for log in logs)

        wait_until(warned, what="the warnings")
        for _ in range(10):
            assert posted(url, photo)[2] == "holiday:unknown"
    for log in logs:
        text = log.read_text()
        assert text.count("traces are lost") == 1
        assert "opentelemetry" not in text


def test_a_worker_that_was_forked_sends_spans_of_its_own(receiver: Receiver) -> None:
    code = """
import os, threading
from faceapp.observability import tracing
tracing.load("parent")
assert threading.active_count() == 1 == len(os.listdir("/proc/self/task"))
if os.fork() == 0:
    with tracing.span("child"):
        pass
    tracing.close()
    os._exit(0)
os.wait()
with tracing.span("parent"):
    pass
"""
    env = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_SERVICE_NAME": "mine"}
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=env, check=True)
    assert receiver.tree() == {("mine", "child", ""), ("mine", "parent", "")}
