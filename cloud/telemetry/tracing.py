"""Spans for OpenTelemetry, where it is configured; nothing at all where it is not.

`coda serve --otlp URL` sends them to a collector. The requests' own spans carry route, method and status.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from device_runtime import __version__
from device_runtime.errors import EngineUnavailable

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

_tracer: Any = None
"""The one of this process; OpenTelemetry's own is global too. None: not configured."""


def configure(url: str) -> None:
    """Send spans to an OTLP/HTTP collector, such as http://127.0.0.1:4318/v1/traces.

    Raises:
        EngineUnavailable: the extra is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise EngineUnavailable(
            f"--otlp needs the otel extra ({error.name} is missing): pip install 'coda-loop[otel]'"
        ) from None
    use(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))


def use(processor: SpanProcessor | None) -> None:
    """Hand spans to this processor; None: make none."""
    global _tracer
    if processor is None:
        _tracer = None
        return
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    provider = TracerProvider(resource=Resource({"service.name": "coda", "service.version": __version__}))
    provider.add_span_processor(processor)
    _tracer = provider.get_tracer("coda")


@contextmanager
def span(name: str, **facts: str | int | float) -> Iterator[None]:
    """A part of the work on a request; facts become its attributes."""
    if _tracer is None:
        yield
        return
    with _tracer.start_as_current_span(name, attributes=facts):
        yield


@contextmanager
def request_span(method: str, headers: Mapping[str, str]) -> Iterator[dict[str, str | int]]:
    """A request's own span. What is put into the dict that it gives becomes attributes at its end.

    headers: names in lower case; `traceparent` ties the span to the caller's.
    """
    facts: dict[str, str | int] = {}
    if _tracer is None:
        yield facts
        return
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract(dict(headers))
    with _tracer.start_as_current_span(method, context=context, kind=SpanKind.SERVER) as made:
        try:
            yield facts
        finally:
            made.update_name(f"{method} {facts.get('http.route', '')}".strip())
            made.set_attributes(facts)
