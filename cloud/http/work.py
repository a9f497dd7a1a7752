"""What calls do once it is known who asks; run in threads, off the event loop."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from cloud.catalog import Device
from cloud.http.auth import Asker
from cloud.http.problems import Refusal
from cloud.http.services import Services
from cloud.http.shelf import Served
from cloud.matching import bounded, by_directory, by_profiles, match, pooled
from cloud.telemetry import RecallSampler
from cloud.telemetry.tracing import span
from device_runtime.bundle import Manifest
from device_runtime.errors import CodaError, InputError
from device_runtime.messages import RoundReport
from device_runtime.samples import Float32, SampleBatch
from device_runtime.wire import (
    DirectoryQuery,
    MatchAnswer,
    MatchQuery,
    decode_contribution,
    decode_query,
    encode_answer,
)


def served_to(services: Services, asker: Asker) -> Served:
    """The bundle that a device runs, if it is one that devices still get; else that which it should get."""
    if asker.bundle in services.releases.policy().bundles():
        return services.shelf.of(asker.bundle)
    return services.shelf.of(services.releases.decide(asker.known, asker.bundle).bundle)


def matched(services: Services, served: Served, recall: RecallSampler, body: bytes, asker: str) -> bytes:
    """The answer's frame. Decoding is here too: a small body may unpack to much.

    served: the bundle that the asker runs.

    Raises:
        Refusal: 400, 409. WireError: the body is no query.
    """
    began = time.perf_counter()
    manifest, limits, query = served.manifest, services.limits, decode_query(body)
    if query.encoder != manifest.encoder:
        raise Refusal(409, "The query's encoder is outdated", f"pull bundle {manifest.version} and encode again")
    wanted = min(query.limit, limits.max_candidates)
    token, most = services.contributor(asker), manifest.settings.answer_bytes
    if isinstance(query, MatchQuery):
        query = replace(query, centroids=_fitting(query.centroids, manifest, limits.max_centroids))

    def ask(limit: int) -> tuple[bytes, int, str]:
        if isinstance(query, DirectoryQuery):
            candidates, shortfall = _by_directory(served, replace(query, limit=limit), token)
        else:
            candidates, shortfall = _by_vectors(served, replace(query, limit=limit), token)
        if limit < wanted:
            shortfall = f"answers to this bundle have at most {most} bytes"
        elif wanted < query.limit and not shortfall:
            shortfall = f"this server gives at most {wanted} samples at a time"
        with span("encode"):
            rows = served.encoder.rows(candidates.ids("item"), query.held)
            answer = MatchAnswer(candidates, {"item": rows} if len(rows.ids) else {}, shortfall)
            return encode_answer(answer), len(candidates), shortfall

    answer, count, shortfall = bounded(ask, lambda found: len(found[0]), wanted, most)
    if isinstance(query, MatchQuery) and len(query.centroids):
        recall.offer(query.centroids, token)
    services.metrics.observe("coda_match_seconds", value=time.perf_counter() - began)
    services.metrics.add("coda_match_candidates_total", by=count)
    if shortfall:
        services.metrics.add("coda_match_short_total")
    return answer


def _by_directory(served: Served, query: DirectoryQuery, token: int) -> tuple[SampleBatch, str]:
    """Raises: Refusal: 400, 409."""
    manifest = served.manifest
    if manifest.settings.matching != "directory" or query.directory != served.divided.directory.id:
        raise Refusal(409, "The query's directory is outdated", f"pull bundle {manifest.version} and ask as it says")
    divided = served.divided
    if len(query.weights) != len(divided.directory.centroids):
        raise Refusal(
            400,
            "The query does not fit",
            f"the directory has {len(divided.directory.centroids)} parts; given {len(query.weights)} weights",
        )
    with span("match"):
        return by_directory(served.pool, query, token, divided.directory, manifest.settings.sharpness, divided)


def _by_vectors(served: Served, query: MatchQuery, token: int) -> tuple[SampleBatch, str]:
    """Raises: Refusal: 409."""
    manifest = served.manifest
    if manifest.settings.matching == "directory":
        raise Refusal(409, "This bundle matches by directory", f"pull bundle {manifest.version} and ask as it says")
    with span("match"):
        if manifest.settings.matching == "pooled":
            known = served.knowledge
            return pooled(served.pool, by_profiles(known), query, token, served.settings, known.whole)
        return match(served.pool, served.store, query, token)


def _fitting(centroids: Float32, manifest: Manifest, most: int) -> Float32:
    """The same, unit rows. Raises: Refusal: 400."""
    count, width = centroids.shape
    if width != manifest.width or count > most:
        raise Refusal(
            400,
            "The query does not fit",
            f"it may have {most} centroids of width {manifest.width}; given {count} of {width}",
        )
    unit: Float32 = centroids / np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-6)
    return unit


def take_in(services: Services, served: Served, body: bytes, device: str) -> None:
    """Add a contribution to the pool, within the quotas.

    Raises:
        Refusal: 413, 429. WireError, InputError: not to be used. StoreError: nothing was kept.
    """
    metrics, limits = services.metrics, services.limits
    try:
        samples = decode_contribution(body, served.manifest.schema)
        if not len(samples):
            raise InputError("the contribution holds no samples")
        if len(samples) > limits.max_contribution_samples:
            metrics.add("coda_contributions_refused_total", "too large")
            detail = f"it may hold {limits.max_contribution_samples} samples; given {len(samples)}"
            raise Refusal(413, "The contribution is too large", detail)
        embeddings = served.encoder.encode(samples)
    except CodaError:
        metrics.add("coda_contributions_refused_total", "unusable")
        raise
    now = services.clock()
    _within_quota(services, device, len(samples), now)
    timestamps = np.full(len(samples), int(now), np.int64)
    tokens = np.full(len(samples), services.contributor(f"device:{device}"), np.uint64)
    try:
        served.pool.append(samples, timestamps, tokens, embeddings)
    except CodaError:
        services.catalog.return_quota(device, len(samples), now)
        raise
    positives = float((samples.labels >= 0.5).sum())
    metrics.add("coda_contributed_samples_total", "positive", by=positives)
    metrics.add("coda_contributed_samples_total", "negative", by=len(samples) - positives)
    metrics.observe("coda_contribution_positive_share", value=positives / len(samples))


def _within_quota(services: Services, device: str, samples: int, now: float) -> None:
    """Raises: Refusal: 429, to come back tomorrow."""
    limits = services.limits
    used_up = services.catalog.take_quota(device, samples, now, limits.device_samples_per_day, limits.samples_per_day)
    if used_up:
        services.metrics.add("coda_contributions_refused_total", f"{used_up} quota")
        whose = "this device's" if used_up == "device" else "the server's"
        most = limits.device_samples_per_day if used_up == "device" else limits.samples_per_day
        tomorrow = {"Retry-After": str(int(86_400 - now % 86_400) + 1)}
        raise Refusal(429, "The quota is used up", f"{whose} quota is {most} contributed samples a day", tomorrow)


def note(services: Services, device: Device, report: RoundReport) -> None:
    """Store a report and what it says of a rollout, and count it if it is new."""
    now = services.clock()
    row = services.catalog.report(device.id, report, now, services.releases.voice(device, report, now))
    if row is None:
        return
    metrics, kind = services.metrics, row.device_class
    metrics.add("coda_rounds_total", row.outcome, kind)
    if report.phases:
        metrics.observe("coda_round_cpu_seconds", kind, value=row.cpu_s)
        metrics.observe("coda_round_peak_mib", kind, value=row.peak_mib)
        metrics.observe("coda_round_down_bytes", kind, value=row.bytes_down)
        metrics.observe("coda_round_up_bytes", kind, value=row.bytes_up)
