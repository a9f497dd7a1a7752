"""Calls made up from the API page itself: whatever comes, no answer is a failure of the server, or undeclared."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud.http import ServerLimits, announce, create_app
from device_runtime.identity import Signer, device_id
from device_runtime.wire import encode_contribution
from tests.cloud.http.conftest import query, some_samples

FRAME = "application/vnd.coda.frame"


PUBLIC = ("/healthz", "/v1/blobs/{sha256}", "/v1/deltas/{base}/{target}", announce.CHECK, announce.DOCUMENT)


@pytest.fixture
def app(services):
    generous = ServerLimits(device_burst=100_000, burst=100_000, device_samples_per_day=10**9)
    return create_app(replace(services, limits=generous))


@pytest.fixture
def enrolled(services, tmp_path):
    signer = Signer.create(tmp_path / "device.key")
    services.catalog.enrol(signer.public, {}, services.clock())
    return signer


def frames():
    """Bodies of binary calls: right ones, right ones with bytes changed, and noise."""
    whole = st.sampled_from([query(), query(limit=0), query(k=0), encode_contribution(some_samples([1, 2]))])

    def changed(drawn):
        body, at, byte = drawn
        return body[: at % len(body)] + bytes([byte]) + body[at % len(body) + 1 :]

    mutated = st.tuples(whole, st.integers(0, 1000), st.integers(0, 255)).map(changed)
    return st.one_of(whole, mutated, st.binary(max_size=200))


schemathesis.openapi.media_type(FRAME, frames())


def body_of(case) -> bytes:
    if isinstance(case.body, schemathesis.core.NotSet):
        return b""
    return case.body if isinstance(case.body, bytes) else json.dumps(case.body).encode()


def ask(client, call, sign) -> set[int]:
    """Send made-up requests of one call; returns the statuses of the answers."""
    statuses: set[int] = set()

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=call.as_strategy())
    def try_it(case):
        body = body_of(case)
        headers = {**(case.headers or {}), "Content-Type": case.media_type or "text/plain"}
        headers |= sign(case.method, case.formatted_path, body)
        answer = client.request(case.method, case.formatted_path, content=body, headers=headers)
        declared = {*call.definition.raw["responses"], "404"}  # a path that is none of ours leads nowhere
        assert str(answer.status_code) in declared and answer.status_code < 500, answer.text
        if answer.status_code >= 400 and case.method != "HEAD":
            assert answer.json()["status"] == answer.status_code
        statuses.add(answer.status_code)

    try_it()
    return statuses


@pytest.mark.filterwarnings("ignore")  # of schemathesis' own, about strategies that cannot be negated
@pytest.mark.parametrize("signed", [False, True])
def test_no_call_fails_whatever_it_is_given(app, services, enrolled, signed):
    def sign(method, path, body):
        device = device_id(enrolled.public)
        return {"Authorization": enrolled.authorization(device, method, path, body, services.clock())} if signed else {}

    calls = [found.ok() for found in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations()]
    assert len(calls) == 14
    statuses: set[int] = set()
    with TestClient(app, raise_server_exceptions=False) as client:
        for call in calls:
            statuses |= ask(client, call, sign)
    assert {200, 400} <= statuses if signed else {200, 401} <= statuses


def test_the_page_declares_how_calls_are_signed(app):
    document = app.openapi()
    assert document["components"]["securitySchemes"]["device"]["name"] == "Authorization"
    for path, methods in document["paths"].items():
        for call in methods.values():
            assert ("security" in call) == (path not in PUBLIC), path
