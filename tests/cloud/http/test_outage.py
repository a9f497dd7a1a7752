"""A database that goes away while devices ask, and comes back."""

from __future__ import annotations

import time

import pytest

from cloud.catalog import Catalog
from device_runtime.wire import encode_contribution
from tests.cloud.http.conftest import query, some_samples


@pytest.fixture
def peer(serve, cluster):
    catalog = Catalog(cluster.database())
    made = serve(catalog=catalog)
    assert made.enrol().status == 200
    yield made
    catalog.close()


def test_calls_are_put_off_and_go_on_by_themselves(peer, cluster):
    calls = [
        ("GET", "/v1/bundle", b""),
        ("POST", "/v1/match", query()),
        ("POST", "/v1/contributions", encode_contribution(some_samples([5]))),
    ]
    before = len(peer.services.pool)
    cluster.stop()
    try:
        for method, path, body in calls:
            reply = peer.signed(method, path, body)
            assert "incident" in reply.problem(503)["detail"] and "postgres" not in str(reply.body).lower()
            assert int(reply.headers["Retry-After"]) > 0
        assert peer.send("GET", "/healthz").status == 200
        assert b"coda_catalog_up 0" in peer.send("GET", "/metrics").body
        assert len(peer.services.pool) == before
    finally:
        cluster.start()
    deadline = time.monotonic() + 20
    while peer.signed("GET", "/v1/bundle").status == 503:
        assert time.monotonic() < deadline
    for method, path, body in calls:
        assert peer.signed(method, path, body).status in (200, 204)
    assert b"coda_catalog_up 1" in peer.send("GET", "/metrics").body
    assert len(peer.services.pool) == before + 1
