"""Traces, where they are configured."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cloud.telemetry import tracing


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.use(SimpleSpanProcessor(exporter))
    yield exporter
    tracing.use(None)


CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_request_is_a_span_under_the_callers_and_its_parts_are_under_it(spans):
    with tracing.request_span("POST", {"traceparent": CALLER}) as facts, tracing.span("match", candidates=3):
        facts |= {"http.route": "/v1/match", "http.response.status_code": 200}
    part, whole = spans.get_finished_spans()
    assert (whole.name, whole.attributes["http.response.status_code"]) == ("POST /v1/match", 200)
    assert f"{whole.parent.trace_id:032x}" == CALLER.split("-")[1]
    assert part.parent.span_id == whole.context.span_id and part.attributes["candidates"] == 3


def test_a_span_of_a_failed_request_says_so(spans):
    with pytest.raises(RuntimeError), tracing.request_span("GET", {}):
        raise RuntimeError("broken")
    (whole,) = spans.get_finished_spans()
    assert whole.name == "GET" and not whole.status.is_ok


def test_without_configuration_nothing_is_traced(spans):
    tracing.use(None)
    with tracing.request_span("GET", {}) as facts, tracing.span("part"):
        facts["x"] = 1
    assert spans.get_finished_spans() == ()
