"""Rates, quotas, queues that end, and clients that dawdle."""

from __future__ import annotations

import http.client
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.http import ServerLimits
from cloud.http.limits import Buckets, limits_of
from cloud.settings import Settings, load_settings
from device_runtime.errors import InputError, StoreError
from device_runtime.wire import encode_contribution
from tests.cloud.http.conftest import Peer, query, some_samples


@given(st.lists(st.floats(0, 100), max_size=60), st.floats(0.1, 5), st.integers(1, 10))
def test_a_bucket_lets_through_no_more_than_its_burst_and_its_rate(gaps, per_s, burst):
    buckets, now, passed = Buckets(per_s, burst), 1000.0, 0
    for gap in gaps:
        now += gap
        passed += buckets.take("d", now) == 0
    assert passed <= burst + per_s * (now - 1000) + 1e-6
    wait = buckets.take("d", now)
    assert not wait or buckets.take("d", now + wait + 1e-6) == 0, "what it says to wait is enough"


def test_buckets_are_each_devices_own_and_bounded_in_number():
    buckets = Buckets(per_s=0.1, burst=1, most=2)
    assert buckets.take("a", 0) == 0 and buckets.take("a", 0) > 0 and buckets.take("b", 0) == 0
    assert buckets.take("c", 0) == 0 and len(buckets._known) == 2
    assert buckets.take("c", -50.0) > 0, "a clock that was set back gives nothing away"


def test_a_device_that_asks_too_often_waits_and_others_do_not(serve, clock):
    peer = serve(limits=ServerLimits(device_requests_per_minute=6, device_burst=2))
    peer.enrol()
    other = Peer(peer.port, peer.services, peer.services.blobs.folder)
    other.enrol()
    assert [peer.signed("GET", "/v1/bundle").status for _ in range(3)] == [200, 200, 429]
    reply = peer.signed("GET", "/v1/bundle")
    reply.problem(429)
    assert int(reply.headers["Retry-After"]) in (10, 11)
    assert other.signed("GET", "/v1/bundle").status == 200
    clock.now += 11
    assert peer.signed("GET", "/v1/bundle").status == 200


def test_nobody_can_spend_what_is_anothers(serve):
    peer = serve(limits=ServerLimits(device_requests_per_minute=1, device_burst=1))
    peer.enrol()
    for _ in range(5):
        forged = peer.signature("GET", "/v1/bundle")[:-6] + "AAAAAA"
        peer.send("GET", "/v1/bundle", Authorization=forged).problem(401)
    assert peer.signed("GET", "/v1/bundle").status == 200


def test_all_together_have_a_rate_too(serve):
    peer = serve(limits=ServerLimits(requests_per_s=0.01, burst=2))
    assert [peer.enrol().status for _ in range(3)] == [200, 200, 429]
    assert peer.send("GET", "/healthz").status == 200


def test_contributions_end_at_the_quota_and_begin_again_tomorrow(serve, clock):
    peer = serve(limits=ServerLimits(device_samples_per_day=10, samples_per_day=15))
    peer.enrol()
    other = Peer(peer.port, peer.services, peer.services.blobs.folder)
    other.enrol()
    before, six = len(peer.services.pool), encode_contribution(some_samples([5] * 6))
    assert peer.signed("POST", "/v1/contributions", six).status == 204
    reply = peer.signed("POST", "/v1/contributions", six)
    assert "this device's quota" in reply.problem(429)["detail"]
    assert 0 < int(reply.headers["Retry-After"]) <= 86_400
    assert other.signed("POST", "/v1/contributions", six).status == 204
    assert "the server's quota" in other.signed("POST", "/v1/contributions", six[:]).problem(429)["detail"]
    assert len(peer.services.pool) == before + 12
    clock.now += 86_400
    assert peer.signed("POST", "/v1/contributions", six).status == 204
    refused = peer.services.metrics.total
    assert refused("coda_contributions_refused_total", "device quota") == 1
    assert refused("coda_contributions_refused_total", "total quota") == 1


def test_what_the_disk_refused_does_not_count_towards_the_quota(serve, monkeypatch):
    peer = serve(limits=ServerLimits(device_samples_per_day=10))
    peer.enrol()
    six = encode_contribution(some_samples([5] * 6))

    def full(*_):
        raise StoreError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(peer.services.pool, "append", full)
        peer.signed("POST", "/v1/contributions", six).problem(503)
    assert peer.signed("POST", "/v1/contributions", six).status == 204


def test_matches_wait_their_turn_and_no_longer_than_they_may(serve):
    entered, leave = threading.Event(), threading.Event()
    peer = serve(limits=ServerLimits(concurrent_matches=1, waiting_matches=1, match_wait_s=0.2))
    peer.enrol()
    search = peer.services.store.search

    def slow(*given):
        entered.set()
        assert leave.wait(20)
        return search(*given)

    peer.services.store.search = slow
    statuses = []
    working = threading.Thread(target=lambda: statuses.append(peer.signed("POST", "/v1/match", query()).status))
    working.start()
    assert entered.wait(10)
    began = time.monotonic()
    peer.signed("POST", "/v1/match", query()).problem(503)
    assert time.monotonic() - began >= 0.2, "it waited, and gave up"
    leave.set()
    working.join(20)
    assert statuses == [200]
    assert peer.services.metrics.total("coda_refused_total", "busy") == 1


def test_a_body_that_dawdles_is_cut(serve):
    peer = serve(limits=ServerLimits(body_timeout_s=0.2))
    with socket.create_connection(("127.0.0.1", peer.port), timeout=10) as wire:
        wire.sendall(b"POST /v1/match HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\nCoDA")
        assert wire.recv(4096).split()[1] == b"408"


def test_limits_come_from_the_settings(tmp_path):
    (tmp_path / "server.toml").write_text(
        'catalog = "sqlite:////x"\n[limits]\nmax_candidates = 7\ndevice_requests_per_minute = 0.5\n'
    )
    found = load_settings(tmp_path, {"CODA_BLOBS": "memory://x"})
    assert (found.catalog, found.blobs) == ("sqlite:////x", "memory://x")
    limits = limits_of(found)
    assert (limits.max_candidates, limits.device_requests_per_minute) == (7, 0.5)
    assert limits.max_centroids == ServerLimits().max_centroids
    assert limits_of(Settings()) == ServerLimits() and load_settings(tmp_path / "none", {}) == Settings()


@pytest.mark.parametrize(
    ("text", "words"),
    [("catalgo = 'x'", "catalgo"), ("catalog = 5", "Expected `str`"), ("[limits", "cannot be used"),
     ("[limits]\nmax_candidates = 'many'", "cannot be used")],
)  # fmt: skip
def test_settings_that_cannot_be_used_are_refused(tmp_path, text, words):
    (tmp_path / "server.toml").write_text(text)
    with pytest.raises(InputError, match=words):
        load_settings(tmp_path, {})


@pytest.mark.parametrize(
    "limits", [{"max_candidate": 5}, {"max_candidates": 5.5}, {"burst": -1}, {"burst": float("inf")}]
)
def test_limits_that_make_no_sense_are_refused(limits):
    with pytest.raises(InputError, match=r"server\.toml"):
        limits_of(Settings(limits=limits))


def asked(wire: socket.socket) -> int:
    """The status of a whole answer over this connection."""
    wire.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = http.client.HTTPResponse(wire)
    answer.begin()
    answer.read()
    return answer.status


def closed_within(wire: socket.socket, seconds: float) -> bool:
    wire.settimeout(seconds)
    return wire.recv(1) == b""


def test_connections_that_ask_nothing_are_closed(serve):
    peer = serve(limits=ServerLimits(head_timeout_s=0.2))
    with socket.create_connection(("127.0.0.1", peer.port)) as silent:
        assert closed_within(silent, 10)
    with socket.create_connection(("127.0.0.1", peer.port)) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost:")
        assert closed_within(slow, 10)
    with socket.create_connection(("127.0.0.1", peer.port)) as kept:
        kept.settimeout(10)
        assert asked(kept) == 200
        kept.sendall(b"GET /he")
        assert closed_within(kept, 10), "also before the second request"


def test_connections_beyond_the_limit_are_told_to_come_back(serve):
    peer = serve(limits=ServerLimits(max_connections=1, retry_after_s=7))
    with socket.create_connection(("127.0.0.1", peer.port)) as first:
        first.settimeout(10)
        assert asked(first) == 200
        with socket.create_connection(("127.0.0.1", peer.port)) as second:
            second.settimeout(10)
            answer = second.recv(4096)
            assert answer.startswith(b"HTTP/1.1 503") and b"Retry-After: 7" in answer
            assert closed_within(second, 10)
        assert asked(first) == 200, "the others are none the worse"
