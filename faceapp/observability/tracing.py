"""OpenTelemetry spans over web, SQS and worker, where OTEL_EXPORTER_OTLP_ENDPOINT says where they go.

The OTEL_* variables mean what they mean to OpenTelemetry's SDK; without an endpoint none of it is imported and every
function here does nothing. The published instrumentations of Flask, Celery and botocore are betas that would make spans
of every long poll and send names in paths: the spans that matter are made by hand. None carries photos or names.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Literal

from faceapp import __version__
from faceapp.errors import ConfigError, FaceappError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.trace import Tracer

logger = logging.getLogger(__name__)

Kind = Literal["INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"]
Attributes = Mapping[str, str | int | float | bool]

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
LAST_EXPORT_MS = 2000
"""A process that ends sends what it still has for so long, then drops it."""

_service = "faceapp"
_lock = threading.Lock()
_pid = 0
_provider: TracerProvider | None = None


@cache
def enabled() -> bool:
    """Whether an endpoint is configured. Raises ConfigError for an exporter or a protocol that is not there."""
    environ = {name: value.strip().lower() for name, value in os.environ.items() if name.startswith("OTEL_")}
    if environ.get("OTEL_SDK_DISABLED") == "true" or not any(environ.get(name) for name in ENDPOINTS):
        return False
    exporter = environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if exporter not in ("otlp", "none"):
        raise ConfigError(f"OTEL_TRACES_EXPORTER={exporter} cannot be used: it takes otlp or none")
    for name in PROTOCOLS:
        if environ.get(name, "http/protobuf") not in ("", "http/protobuf"):
            raise ConfigError(f"{name}={environ[name]} cannot be used: traces go over http/protobuf")
    return exporter == "otlp"


def load(service: str) -> None:
    """Import what spans need, for a process of `service` and those forked from it. Starts no thread."""
    global _service
    _service = service
    if enabled():
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace.export  # noqa: F401


def span(
    name: str, *, kind: Kind = "INTERNAL", parent: str | None = None, attributes: Attributes | None = None
) -> AbstractContextManager[None]:
    """A span around the block, below the current one; with `parent` below that W3C traceparent ("": below none)."""
    return _span(name, kind, parent, attributes) if enabled() else nullcontext()


def note(attributes: Attributes, *, failed: bool = False) -> None:
    """Add attributes to the current span; `failed` marks it as an error."""
    if enabled():
        from opentelemetry import trace

        current = trace.get_current_span()
        current.set_attributes(attributes)
        if failed:
            current.set_status(trace.StatusCode.ERROR)


def stages(began_s: float, seconds: Mapping[str, float]) -> None:
    """Spans below the current one for stages that are over: one after the other from `began_s` (of time.time)."""
    if enabled():
        tracer, start_ns = _tracer(), int(began_s * 1e9)
        for name, stage_s in seconds.items():
            end_ns = start_ns + int(stage_s * 1e9)
            tracer.start_span(name, start_time=start_ns).end(end_ns)
            start_ns = end_ns


def traceparent() -> str:
    """The current span as the W3C's header, to be sent along; empty without one.

    Its companion `tracestate` has no bound that a message of 1,024 bytes could hold, so it ends here.
    """
    if not enabled():
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent", "")


def trace_id() -> str:
    """The current trace's id in hexadecimal digits; empty without one."""
    return traceparent().partition("-")[2].partition("-")[0]


def close() -> None:
    """Send what this process still has, within seconds; there are no spans afterwards."""
    if _provider is not None and _pid == os.getpid():
        _provider.shutdown()


@contextmanager
def _span(name: str, kind: Kind, parent: str | None, attributes: Attributes | None) -> Iterator[None]:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = None if parent is None else TraceContextTextMapPropagator().extract({"traceparent": parent})
    with _tracer().start_as_current_span(
        name,
        context=context,
        kind=trace.SpanKind[kind],
        attributes=attributes,
        # An exception's sentence can have a name in it.
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield
        except Exception as error:
            current.set_attribute("error.type", error.code if isinstance(error, FaceappError) else type(error).__name__)
            current.set_status(trace.StatusCode.ERROR)
            raise


def _tracer() -> Tracer:
    """This process's tracer, made at its first span: a fork leaves the exporter's thread behind."""
    global _pid, _provider
    with _lock:
        if _provider is None or _pid != os.getpid():
            _provider, _pid = _make_provider(), os.getpid()
            atexit.register(close)
        return _provider.get_tracer("faceapp", __version__)


def _make_provider() -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

    class Exporter(OTLPSpanExporter):
        """OTLP over HTTP that says once that nobody takes the spans, and once that somebody does again."""

        answers = True

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            result = super().export(spans)
            taken = result is SpanExportResult.SUCCESS
            if taken and not self.answers:
                logger.info("traces are taken again")
            elif self.answers and not taken:
                logger.warning("traces are lost: what OTEL_EXPORTER_OTLP_ENDPOINT names does not take them")
            self.answers = taken
            return result

    class Processor(BatchSpanProcessor):
        """Batches in a thread of its own. The SDK's waits for 30 s at a process's end."""

        def shutdown(self) -> None:
            self._batch_processor.shutdown(timeout_millis=LAST_EXPORT_MS)

    # A line a batch while nobody answers, and a line a span when the queue is full.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    # The user's OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win.
    resource = Resource.create({"service.name": _service, "service.version": __version__})
    provider = TracerProvider(resource=resource.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(Processor(Exporter()))
    return provider
