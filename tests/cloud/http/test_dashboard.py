"""The dashboard: its figures, and how it looks in a browser, light and dark, wide and narrow."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from cloud import dashboard
from cloud.dashboard.look import gain_of
from cloud.http.services import Services
from device_runtime.messages import BundleRef, PhaseOverhead, RoundReport, Verdict
from tests.cloud.http.conftest import START
from tests.cloud.report.test_looks import _chromium, browser, scrolled

CAPABILITIES = (
    {"machine": "aarch64", "memory_mib": 900},
    {"machine": "aarch64", "memory_mib": 4000},
    {"machine": "x86_64", "memory_mib": 16000},
)


def report(name, rng, bundle, outcome):
    before = rng.uniform(0.5, 0.7)
    after = before + rng.normal(0.01, 0.02)
    phases = [
        PhaseOverhead(
            phase=phase, cpu_user_s=rng.gamma(2, 0.1), cpu_system_s=0.02, wall_s=1.0, peak_mib=rng.normal(85, 8),
            peak_source="phase", bytes_stored=0, bytes_up=int(rng.integers(200, 900)),
            bytes_down=int(rng.integers(10, 9000)),
        )
        for phase in ("pull", "match", "tune")
    ]  # fmt: skip
    verdict = None
    if outcome in ("activated", "kept"):
        auc = {"auc_before": before, "auc_after": after}
        verdict = Verdict(activate=True, reason="", samples=20, loss_before=0.7, loss_after=0.6, **auc)
    return RoundReport(
        round=name, bundle=bundle, engine="onnx", outcome=outcome, local=90, candidates=400, kept=60, verdict=verdict,
        phases=phases,
    )  # fmt: skip


@pytest.fixture
def busy(services: Services, rng: np.random.Generator) -> Services:
    """A server that has seen a fleet of devices, two releases and a flood."""
    catalog, metrics = services.catalog, services.metrics
    for version in (2, 3):
        ref = BundleRef(version=version, manifest="00" * 32, size=1, key="k", signature="s")
        catalog.release(f"tastes of week {version}", ref, now=START - 86_400 * (4 - version))
    for number in range(24):
        key = f"{number:02x}" * 32
        device = catalog.enrol(key, CAPABILITIES[number % 3], now=START - 3600.0 * number)
        for turn in range(4):
            outcome = str(rng.choice(["activated", "kept", "too few samples", "failed"], p=[0.6, 0.25, 0.1, 0.05]))
            catalog.report(device, report(f"r{turn}", rng, 2 + turn // 2, outcome), now=START - 100.0 * turn)
        catalog.take_quota(device, 40, START, 10_000, 100_000)
    for seconds in rng.gamma(3, 0.004, 800):
        metrics.observe("coda_match_seconds", value=seconds)
        metrics.observe("coda_http_request_seconds", "/v1/match", value=seconds + 0.002)
        metrics.add("coda_http_requests_total", "/v1/match", "2xx")
        metrics.add("coda_match_candidates_total", by=400)
    metrics.add("coda_http_requests_total", "/v1/match", "5xx", by=3)
    metrics.add("coda_match_short_total", by=9)
    metrics.add("coda_refused_total", "busy", by=31)
    metrics.add("coda_refused_total", "device rate", by=4)
    metrics.add("coda_contributions_refused_total", "device quota", by=2)
    metrics.add("coda_contributed_samples_total", "positive", by=700)
    metrics.add("coda_contributed_samples_total", "negative", by=260)
    for recall in rng.beta(60, 1.5, 50):
        metrics.observe("coda_match_recall", value=recall)
    metrics.set("coda_worker_up", to=1)
    metrics.set("coda_worker_resident_bytes", to=450e6)
    return services


@pytest.fixture
def page(busy: Services) -> str:
    return dashboard.page(dashboard.look(busy, started=START - 7300))


def words(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"<(style|svg).*?</\1>", "", page, flags=re.DOTALL)))


def test_it_says_what_the_server_holds_and_does(page):
    said = words(page)
    for expected in (
        "60 samples without identities in 3 segments", "24 24 seen within a day", "up for 2 hours",
        "960 samples by 24 devices, 40 by the", "73 % are positives", "2 contributions went beyond a quota",
        "800 matches, 400 candidates each",
        "4 device rate, 31 busy", "50 queries against exact search", "arm64, up to 1 GiB 8 32",
    ):  # fmt: skip
        assert expected in said, said
    assert "tastes of week 3 served" in said and "tastes of week 2" in said


def test_an_idle_server_has_a_page_too(services):
    said = words(dashboard.page(dashboard.look(services, started=START)))
    assert "No match yet" in said and "No round has been reported yet" in said and "no judged round yet" in said


def test_a_release_that_reports_name_but_nobody_made_is_shown_as_such(services, rng):
    services.catalog.report("d", report("r", rng, 77, "kept"), now=START)
    assert "not of this catalog" in words(dashboard.page(dashboard.look(services, started=START)))


def test_what_the_judge_turned_down_counts_as_no_change(busy):
    rounds = busy.catalog.rounds(1000)
    gain = gain_of(rounds)
    judged = [row for row in rounds if row.auc_before is not None]
    assert (gain.rounds, gain.devices) == (len(judged), len({row.device for row in judged}))
    kept = sum(row.outcome == "kept" for row in judged)
    assert gain.same >= kept / len(judged) and abs(gain.better + gain.same + gain.worse - 1) < 1e-9
    low, high = gain.ci95
    assert low < gain.served < high
    assert gain_of([row for row in rounds if row.outcome == "failed"]) is None
    only = [row for row in judged if row.outcome == "kept"]
    assert gain_of(only).served == 0.0 and gain_of(only[:1]).ci95 is None


@browser
@pytest.mark.parametrize(("scheme", "setting"), [("light", 1), ("dark", 0)])
def test_it_renders_in_both_schemes(page, tmp_path, scheme, setting):
    (tmp_path / "page.html").write_text(page)
    shot = tmp_path / "shot.png"
    _chromium(
        tmp_path, f"--blink-settings=preferredColorScheme={setting}", f"--screenshot={shot}",
        "--window-size=1280,2700", (tmp_path / "page.html").as_uri(),
    )  # fmt: skip
    with Image.open(shot) as opened:
        colours = opened.convert("RGB").getcolors(1 << 24)
    assert len(colours) > 100
    assert (sum(max(colours)[1]) > 600) == (scheme == "light")


@browser
@pytest.mark.parametrize("width", [320, 390, 700, 1280])
def test_it_does_not_scroll_sideways(page, tmp_path, width):
    assert scrolled(page, width, tmp_path) == (width, width)
