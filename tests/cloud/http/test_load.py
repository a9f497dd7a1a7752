"""The devices of `coda bench serve`: they sign, they keep time, and they tell what they were answered."""

from __future__ import annotations

import asyncio
import base64
import time

import numpy as np
import pytest
from nacl.signing import SigningKey

from benchmarks.load import Plan, carry_out
from benchmarks.serve import _Memory, _take_over, cpu_s
from cloud.http import ServerLimits
from cloud.pool import Pool
from tests.cloud.http.conftest import SCHEMA, WIDTH, query


def plan(peer, **changes):
    keys = [SigningKey.generate().encode().hex() for _ in range(3)]
    plain = {
        "url": peer.url, "path": "/v1/match", "bodies": [base64.b64encode(query()).decode()], "keys": keys,
        "connections": 2, "seconds": 0.5, "rate": 0.0, "enrol": True,
    }  # fmt: skip
    return Plan(**plain | changes)


@pytest.fixture
def peer(serve, clock):
    clock.now = time.time()
    return serve(limits=ServerLimits(device_burst=10_000))


def test_without_a_rate_each_connection_asks_again_at_once(peer):
    outcome = asyncio.run(carry_out(plan(peer)))
    assert outcome.statuses == {"200": len(outcome.latencies_ms)} and len(outcome.latencies_ms) > 2
    assert peer.services.metrics.total("coda_match_seconds") == len(outcome.latencies_ms)
    assert outcome.bytes_in > 0 and outcome.seconds >= 0.5


def test_with_a_rate_requests_start_on_time(peer):
    outcome = asyncio.run(carry_out(plan(peer, rate=20.0, seconds=0.5)))
    assert outcome.statuses == {"200": 10}


def test_refusals_are_told_and_not_taken_for_answers(peer):
    outcome = asyncio.run(carry_out(plan(peer, bodies=[base64.b64encode(b"nonsense").decode()], seconds=0.1)))
    assert set(outcome.statuses) == {"400"} and outcome.latencies_ms == []


def test_a_pool_grows_by_contributors_who_were_not_there(services, tmp_path, rng):
    grown = Pool(tmp_path / "grown", SCHEMA, WIDTH)
    _take_over(services.pool, grown, 50, rng)
    assert len(grown) == 50
    few = {int(token) for segment in services.pool.segments for token in segment.contributors}
    for segment, original in zip(grown.segments, services.pool.segments, strict=False):
        assert not few & {int(token) for token in segment.contributors}
        near = (segment.embeddings * original.embeddings[: len(segment)]).sum(1)
        np.testing.assert_allclose(np.linalg.norm(segment.embeddings, axis=1), 1, atol=1e-5)
        assert 0.9 < near.mean() < 0.9999


def test_a_process_is_measured_with_its_children(tmp_path):
    import subprocess
    import sys

    work = "import os, sys; b = bytearray(50 << 20); [hash(bytes(99)) for _ in range(10**6)]; print(1, flush=True)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work + '; sys.stdin.read()'!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.read(1)
        memory = _Memory(process.pid)
        assert cpu_s(process.pid) > 0.05
        assert 50 < memory.stop() < 200
        process.stdin.close()
