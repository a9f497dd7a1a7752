"""What the dashboard shows, gathered in one go. All of it is of many devices together."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from cloud.catalog.records import OUTCOMES, Release, RoundRow
from cloud.telemetry.families import REFUSALS, ROUTES, STATUSES
from device_runtime.errors import StoreError

if TYPE_CHECKING:
    from cloud.http.services import Services

ROUNDS = 10_000
"""The newest reports that are looked at: it bounds the page's cost, and what is old is of another release anyway."""
SAME = 0.0005
"""Differences of AUC up to this count as none."""
_DAY_S = 86_400


@dataclass(frozen=True)
class Route:
    """seconds: median and 99th percentile, from histograms; None: no request yet."""

    name: str
    requests: float
    refused: float
    failed: float
    median_s: float | None
    p99_s: float | None
    received: float
    sent: float


@dataclass(frozen=True)
class Spread:
    """Median and 90th percentile."""

    median: float
    p90: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        return Spread(float(np.quantile(values, 0.5)), float(np.quantile(values, 0.9)))


@dataclass(frozen=True)
class Kind:
    """Rounds of one class of devices. cpu_s: seconds. peak_mib: MiB. down, up: bytes."""

    name: str
    devices: int
    rounds: int
    cpu_s: Spread
    peak_mib: Spread
    down: Spread
    up: Spread


@dataclass(frozen=True)
class Gain:
    """AUC after minus before, as the devices' judges saw it. served: of what was left serving, where weights that were
    not activated count as no change. ci95: of the mean served gain, over devices; None with fewer than two."""

    rounds: int
    devices: int
    tuned: float
    served: float
    ci95: tuple[float, float] | None
    better: float
    same: float
    worse: float


@dataclass(frozen=True)
class Bundle:
    """release: None for a version that reports name and this catalog never released. activated: share of its rounds."""

    version: int
    release: Release | None
    rounds: int
    devices: int
    activated: float | None
    gain: Gain | None


@dataclass(frozen=True)
class Look:
    """now: seconds since 1970. trouble: sentences on what could not be looked up."""

    now: float
    uptime_s: float
    name: str
    model: str
    version: int
    workers: float
    resident: float
    samples: int
    segments: tuple[int, ...]
    matches: float
    candidates: float
    short: float
    match_median_s: float | None
    match_p99_s: float | None
    match_counts: tuple[tuple[str, float], ...]
    recall: float | None
    recalled: float
    recall_counts: tuple[tuple[str, float], ...]
    routes: tuple[Route, ...]
    refusals: dict[str, float]
    positives: float
    negatives: float
    quota_refusals: float
    devices: int = 0
    active: int = 0
    contributors: int = 0
    contributed_today: int = 0
    busiest: int = 0
    rounds: tuple[RoundRow, ...] = ()
    outcomes: dict[str, int] = field(default_factory=dict)
    kinds: tuple[Kind, ...] = ()
    gain: Gain | None = None
    gains: tuple[float, ...] = ()
    bundles: tuple[Bundle, ...] = ()
    trouble: tuple[str, ...] = ()


def look(services: Services, started: float) -> Look:
    """Ask catalog, pool and metrics. started: when the server came up, seconds since 1970."""
    metrics, now, served = services.metrics, services.clock(), services.current
    seconds = "coda_match_seconds"
    known: dict[str, object] = {}
    trouble: tuple[str, ...] = ()
    try:
        known = _of_catalog(services, now)
    except StoreError:
        trouble = ("The catalog's database does not answer: devices, rounds and releases are not shown. See the log.",)
    return Look(
        now=now,
        uptime_s=now - started,
        name=served.manifest.name,
        model=served.manifest.model,
        version=served.manifest.version,
        workers=metrics.total("coda_worker_up"),
        resident=metrics.total("coda_worker_resident_bytes"),
        samples=len(served.pool),
        segments=tuple(len(segment) for segment in served.pool.segments),
        matches=metrics.total(seconds),
        candidates=metrics.total("coda_match_candidates_total"),
        short=metrics.total("coda_match_short_total"),
        match_median_s=metrics.quantile(seconds, q=0.5),
        match_p99_s=metrics.quantile(seconds, q=0.99),
        match_counts=metrics.distribution(seconds),
        recall=metrics.mean("coda_match_recall"),
        recalled=metrics.total("coda_match_recall"),
        recall_counts=metrics.distribution("coda_match_recall"),
        routes=tuple(route for name in ROUTES if (route := _route(services, name)).requests),
        refusals={reason: n for reason in REFUSALS if (n := metrics.total("coda_refused_total", reason))},
        positives=metrics.total("coda_contributed_samples_total", "positive"),
        negatives=metrics.total("coda_contributed_samples_total", "negative"),
        quota_refusals=sum(
            metrics.total("coda_contributions_refused_total", f"{whose} quota") for whose in ("device", "total")
        ),
        trouble=trouble,
        **known,  # type: ignore[arg-type]
    )


def _of_catalog(services: Services, now: float) -> dict[str, object]:
    catalog = services.catalog
    rounds = tuple(catalog.rounds(ROUNDS))
    contributors, contributed, busiest = catalog.contributors_today(now)
    releases = {release.ref.version: release for release in catalog.releases()}
    versions = sorted({*releases, *(row.bundle for row in rounds)}, reverse=True)
    return {
        "devices": catalog.count_devices(),
        "active": catalog.count_devices(now - _DAY_S),
        "contributors": contributors,
        "contributed_today": contributed,
        "busiest": busiest,
        "rounds": rounds,
        "outcomes": {name: n for name in OUTCOMES if (n := sum(row.outcome == name for row in rounds))},
        "kinds": tuple(_kind(name, rows) for name, rows in _grouped(rounds, lambda row: row.device_class)),
        "gain": gain_of(rounds),
        "gains": tuple(_served(row) for row in rounds if _judged(row)),
        "bundles": tuple(_bundle(v, releases.get(v), [row for row in rounds if row.bundle == v]) for v in versions),
    }


def gain_of(rounds: Iterable[RoundRow]) -> Gain | None:
    """None if no round had an AUC before and after."""
    judged = [row for row in rounds if _judged(row)]
    if not judged:
        return None
    served = [_served(row) for row in judged]
    each = [statistics.fmean(map(_served, rows)) for _, rows in _grouped(judged, lambda row: row.device)]
    mean = statistics.fmean(each)
    half = 1.96 * statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else None
    return Gain(
        rounds=len(judged),
        devices=len(each),
        tuned=statistics.fmean((row.auc_after or 0.0) - (row.auc_before or 0.0) for row in judged),
        served=mean,
        ci95=None if half is None else (mean - half, mean + half),
        better=sum(value > SAME for value in served) / len(served),
        same=sum(abs(value) <= SAME for value in served) / len(served),
        worse=sum(value < -SAME for value in served) / len(served),
    )


def _judged(row: RoundRow) -> bool:
    return row.auc_before is not None and row.auc_after is not None


def _served(row: RoundRow) -> float:
    return (row.auc_after or 0.0) - (row.auc_before or 0.0) if row.outcome == "activated" else 0.0


def _bundle(version: int, release: Release | None, rows: list[RoundRow]) -> Bundle:
    activated = sum(row.outcome == "activated" for row in rows) / len(rows) if rows else None
    return Bundle(version, release, len(rows), len({row.device for row in rows}), activated, gain_of(rows))


def _kind(name: str, rows: list[RoundRow]) -> Kind:
    return Kind(
        name,
        len({row.device for row in rows}),
        len(rows),
        *(
            Spread.of([getattr(row, field) for row in rows])
            for field in ("cpu_s", "peak_mib", "bytes_down", "bytes_up")
        ),
    )


def _grouped(rows: Iterable[RoundRow], by: Callable[[RoundRow], str]) -> list[tuple[str, list[RoundRow]]]:
    found: dict[str, list[RoundRow]] = {}
    for row in rows:
        found.setdefault(by(row), []).append(row)
    return sorted(found.items())


def _route(services: Services, name: str) -> Route:
    metrics, seconds = services.metrics, "coda_http_request_seconds"
    counts = {status: metrics.total("coda_http_requests_total", name, status) for status in STATUSES}
    return Route(
        name,
        sum(counts.values()),
        counts["4xx"],
        counts["5xx"],
        metrics.quantile(seconds, name, q=0.5),
        metrics.quantile(seconds, name, q=0.99),
        metrics.total("coda_http_received_bytes_total", name),
        metrics.total("coda_http_sent_bytes_total", name),
    )
