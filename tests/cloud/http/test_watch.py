"""What operators see, and who else does not."""

from __future__ import annotations

import base64
import re
import time

import numpy as np
import pytest

from cloud.telemetry import RecallSampler
from device_runtime.errors import StoreError
from device_runtime.messages import PhaseOverhead, RoundReport, to_json
from device_runtime.wire import encode_contribution
from tests.cloud.http.conftest import query, some_samples


def value(text: str, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    assert found, series
    return float(found[1])


def scrape(peer) -> str:
    reply = peer.send("GET", "/metrics")
    assert reply.status == 200 and reply.kind.startswith("text/plain; version=0.0.4")
    return reply.body.decode()


def settled(peer, series: str, expected: float) -> None:
    """A request is counted after its answer has gone out."""
    deadline = time.monotonic() + 5
    while value(scrape(peer), series) != expected:
        assert time.monotonic() < deadline, (series, value(scrape(peer), series))
        time.sleep(0.01)


def test_metrics_say_what_happened(peer):
    assert peer.signed("POST", "/v1/match", body := query(limit=10)).status == 200
    peer.signed("POST", "/v1/match", query(limit=5000))
    peer.signed("POST", "/v1/match", b"nonsense").problem(400)
    peer.send("GET", "/v1/bundle").problem(401)
    mine = encode_contribution(some_samples([1, 2, 3]))
    assert peer.signed("POST", "/v1/contributions", mine).status == 204
    cost = PhaseOverhead(
        phase="tune", cpu_user_s=0.3, cpu_system_s=0.1, wall_s=1, peak_mib=80, peak_source="phase", bytes_stored=0,
        bytes_up=600, bytes_down=5000,
    )  # fmt: skip
    sent = RoundReport(
        round="r1", bundle=3, engine="onnx", outcome="activated", local=9, candidates=5, kept=1, verdict=None,
        phases=[cost],
    )  # fmt: skip
    for _ in range(2):
        assert peer.signed("POST", "/v1/reports", to_json(sent)).status == 204
    settled(peer, 'coda_http_requests_total{route="/v1/reports",status="2xx"}', 2)
    text, kind = scrape(peer), 'device_class="other, unknown"'
    assert value(text, 'coda_http_requests_total{route="/v1/match",status="2xx"}') == 2
    assert value(text, 'coda_http_requests_total{route="/v1/match",status="4xx"}') == 1
    assert value(text, 'coda_refused_total{reason="not authenticated"}') == 1
    assert value(text, 'coda_http_received_bytes_total{route="/v1/contributions"}') == len(mine)
    assert value(text, 'coda_http_received_bytes_total{route="/v1/match"}') >= len(body)
    assert value(text, "coda_match_seconds_count") == 2
    assert value(text, "coda_match_candidates_total") == 10 + 60
    assert value(text, "coda_match_short_total") == 1
    assert value(text, 'coda_contributed_samples_total{label="positive"}') == 3
    assert value(text, "coda_pool_samples") == 63 and value(text, "coda_pool_segments") == 4
    assert value(text, 'coda_devices{seen="ever"}') == value(text, 'coda_devices{seen="within a day"}') == 1
    assert value(text, "coda_contributors_today") == 1 and value(text, "coda_busiest_contributor_samples_today") == 3
    assert value(text, f'coda_rounds_total{{outcome="activated",{kind}}}') == 1, "a report that is repeated counts once"
    assert value(text, f'coda_round_cpu_seconds_bucket{{{kind},le="0.5"}}') == 1
    assert value(text, f"coda_round_down_bytes_sum{{{kind}}}") == 5000
    assert value(text, "coda_release_version") == 3
    assert peer.device not in text and peer.device[:8] not in text


def test_recall_is_sampled_against_exact_search(peer):
    peer.signed("POST", "/v1/match", query(limit=10))
    settled(peer, "coda_match_recall_count", 1)
    settled(peer, 'coda_match_recall_bucket{le="0.999"}', 0)  # all were found: beyond that bound


def test_a_store_that_misses_half_is_found_out_and_the_next_look_is_put_off(services):
    def half(queries, exclude):
        found = services.store.search(queries, 50, exclude).positions
        return np.where(np.arange(50) % 2, -1, found)

    told, now = [], [100.0]
    sampler = RecallSampler(services.pool, half, 50, told.append, clock=lambda: now[0])
    queries = services.pool.segments[0].embeddings[:4]
    sampler.offer(queries, exclude=0).join(10)
    assert len(told) == 1 and 0.45 <= told[0] <= 0.55
    assert sampler.offer(queries, exclude=0) is None, "it takes a hundredth of a core at most"
    now[0] += 3600
    sampler.offer(queries, exclude=0).join(10)
    assert len(told) == 2


def basic(token: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{token}".encode()).decode()


@pytest.mark.parametrize("page", ["/metrics", "/dashboard"])
def test_from_elsewhere_it_takes_the_token(serve, page):
    peer = serve(watch_token="s3cret")
    assert peer.send("GET", page).status == 200, "from this machine itself"
    proxied = {"X_Forwarded_For": "198.51.100.7"}
    reply = peer.send("GET", page, **proxied)
    reply.problem(401)
    assert reply.headers["WWW-Authenticate"].startswith("Basic")
    peer.send("GET", page, Host="coda.example").problem(401)
    for wrong in ("Bearer wrong", basic("wrong"), "Basic ****", "Bearer", "Bearer ", basic("")):
        peer.send("GET", page, Authorization=wrong, **proxied).problem(401)
    for right in ("Bearer s3cret", basic("s3cret")):
        assert peer.send("GET", page, Authorization=right, **proxied).status == 200
    closed = serve(watch_token="")
    for nothing in ("Bearer ", basic("")):
        closed.send("GET", page, Authorization=nothing, **proxied).problem(401)


def test_figures_are_told_while_the_database_is_down(peer, monkeypatch):
    def refuse(*_):
        raise StoreError("down")

    for name in ("contributors_today", "rounds"):
        monkeypatch.setattr(peer.services.catalog, name, refuse)
    text = scrape(peer)
    assert value(text, "coda_catalog_up") == 0 and value(text, "coda_pool_samples") == 60
    assert "coda_devices" not in text
    page = peer.send("GET", "/dashboard").body.decode()
    assert "database does not answer" in page


def test_the_root_leads_to_the_dashboard_which_fetches_nothing(peer):
    reply = peer.send("GET", "/")
    assert (reply.status, reply.headers["Location"]) == (307, "/dashboard")
    reply = peer.send("GET", "/dashboard")
    page = reply.body.decode()
    assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
    assert not re.search(r"<script|https?://(?!www\.w3\.org)|src=|@import|url\(", page)
    assert peer.device not in page


def test_traces_have_the_parts_of_a_match(peer):
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from cloud.telemetry import tracing

    exporter = InMemorySpanExporter()
    tracing.use(SimpleSpanProcessor(exporter))
    try:
        assert peer.signed("POST", "/v1/match", query()).status == 200
        deadline = time.monotonic() + 5
        while len(exporter.get_finished_spans()) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        tracing.use(None)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert {"match", "encode", "POST /v1/match"} == set(spans)
    assert spans["match"].parent.span_id == spans["POST /v1/match"].context.span_id
