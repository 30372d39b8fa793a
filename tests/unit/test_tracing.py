"""When spans are made: what the standard's variables switch on and off."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from faceapp.errors import ConfigError
from faceapp.observability import tracing
from tests.support.services import REPOSITORY


def test_without_an_endpoint_nothing_of_opentelemetry_is_loaded() -> None:
    code = """
import sys
from faceapp import tasks, web
from faceapp.observability import tracing
tracing.load("x")
with tracing.span("a", kind="SERVER", parent=""):
    tracing.note({"a": 1})
    tracing.stages(0.0, {"a": 1.0})
    assert tracing.traceparent() == tracing.trace_id() == ""
web.create_app().test_client().get("/healthz")
sys.exit(any(name.startswith("opentelemetry") for name in sys.modules))
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=env, check=False).returncode == 0


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    tracing.enabled.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    tracing.enabled.cache_clear()


@pytest.mark.parametrize(
    ("given", "on"),
    [
        ({}, False),
        ({"ENDPOINT": ""}, False),
        ({"ENDPOINT": "http://127.0.0.1:9"}, True),
        ({"TRACES_ENDPOINT": "http://127.0.0.1:9"}, True),
    ],
)
def test_an_endpoint_switches_spans_on(variables: pytest.MonkeyPatch, given: dict[str, str], on: bool) -> None:
    for name, value in given.items():
        variables.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    assert tracing.enabled() is on


@pytest.mark.parametrize("name", ["OTEL_SDK_DISABLED=true", "OTEL_TRACES_EXPORTER=none"])
def test_the_standard_switches_spans_off(variables: pytest.MonkeyPatch, name: str) -> None:
    variables.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    variables.setenv(*name.split("="))
    assert not tracing.enabled()


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "OTEL_TRACES_EXPORTER=zipkin"])
def test_what_is_not_there_is_one_sentence(variables: pytest.MonkeyPatch, name: str) -> None:
    variables.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    variables.setenv(*name.split("="))
    with pytest.raises(ConfigError, match=name):
        tracing.enabled()
