"""The metrics that the server exports. `deploy/grafana` draws them; a test checks that the two agree."""

from __future__ import annotations

from cloud.catalog.records import DEVICE_CLASSES, OUTCOMES
from cloud.telemetry.metrics import Family

ROUTES: tuple[str, ...] = (
    "/v1/devices", "/v1/keys", "/v1/bundle", "/v1/blobs/{sha256}", "/v1/match", "/v1/contributions", "/v1/reports",
    "/v1/stale/{device}/{bundle}/{profile}", "/v1/metadata/{role}/{version}", "/v1/evaluation", "/healthz", "other",
)  # fmt: skip
STATUSES: tuple[str, ...] = ("2xx", "3xx", "4xx", "5xx")
REFUSALS = ("not authenticated", "revoked", "device rate", "total rate", "busy", "too slow")
QUOTAS = ("device quota", "total quota", "too large", "unusable")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.045, 0.06, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0)
_SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.999)
_BYTES = tuple(float(1 << power) for power in range(9, 27))

_ROUTE: dict[str, tuple[str, ...]] = {"route": ROUTES}
_CLASS: dict[str, tuple[str, ...]] = {"device_class": DEVICE_CLASSES}
FAMILIES = (
    Family("coda_http_requests_total", "counter", "Requests answered.", _ROUTE | {"status": STATUSES}),
    Family("coda_http_request_seconds", "histogram", "From a request's head to its answer's end.", _ROUTE, _SECONDS),
    Family("coda_http_received_bytes_total", "counter", "Bytes of requests' bodies.", _ROUTE),
    Family("coda_http_sent_bytes_total", "counter", "Bytes of answers' bodies.", _ROUTE),
    Family("coda_refused_total", "counter", "Requests turned away, by why.", {"reason": REFUSALS}),
    Family("coda_match_seconds", "histogram", "Search, gathering and encoding of an answer.", {}, _SECONDS),
    Family("coda_match_candidates_total", "counter", "Samples sent as candidates."),
    Family("coda_match_short_total", "counter", "Matches with fewer candidates than asked for."),
    Family(
        "coda_match_recall",
        "histogram",
        "Share of the exact nearest samples that matching found, of sampled queries.",
        {},
        (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999),
    ),
    Family("coda_rounds_total", "counter", "Rounds reported, by outcome.", {"outcome": OUTCOMES} | _CLASS),
    Family(
        "coda_round_cpu_seconds",
        "histogram",
        "CPU seconds of a round on its device.",
        _CLASS,
        (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0),
    ),
    Family(
        "coda_round_peak_mib",
        "histogram",
        "Peak memory of a round on its device, MiB.",
        _CLASS,
        (32.0, 64.0, 96.0, 128.0, 192.0, 256.0, 384.0, 512.0, 1024.0),
    ),
    Family("coda_round_down_bytes", "histogram", "Bytes that a round received.", _CLASS, _BYTES),
    Family("coda_round_up_bytes", "histogram", "Bytes that a round sent.", _CLASS, _BYTES),
    Family("coda_contributed_samples_total", "counter", "Samples taken in.", {"label": ("positive", "negative")}),
    Family("coda_contributions_refused_total", "counter", "Contributions refused, by why.", {"reason": QUOTAS}),
    Family(
        "coda_contribution_positive_share",
        "histogram",
        "Share of positives in each contribution; flipped labels shift it.",
        {},
        _SHARES,
    ),
    Family("coda_worker_resident_bytes", "gauge", "Resident memory of all workers; shared pages count in each."),
    Family("coda_worker_up", "gauge", "Workers that answer."),
)

GAUGES = {
    family.name: family
    for family in (
        Family("coda_pool_samples", "gauge", "Samples in the pool."),
        Family("coda_pool_segments", "gauge", "Segments of the pool."),
        Family("coda_release_version", "gauge", "Version of the bundle that is served."),
        Family("coda_uptime_seconds", "gauge", "Since the server came up."),
        Family("coda_devices", "gauge", "Devices enrolled.", {"seen": ("ever", "within a day")}),
        Family("coda_contributors_today", "gauge", "Devices that handed in samples today (UTC)."),
        Family("coda_busiest_contributor_samples_today", "gauge", "Samples of the device that handed in most today."),
        Family("coda_catalog_up", "gauge", "1 if the catalog's database answers; its other figures lack if not."),
    )
}
"""Looked up when Prometheus asks."""
