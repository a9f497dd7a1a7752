"""Who may ask: signatures, clocks, nonces, revocation."""

from __future__ import annotations

import json
import socket

import pytest

from device_runtime.messages import Capability, Enrolment, to_json
from tests.cloud.http.conftest import START, query


def test_enrolling_twice_gives_the_same_id(peer):
    first, second = peer.enrol(), peer.enrol()
    assert first.kind == second.kind == "application/json"
    assert json.loads(first.body) == json.loads(second.body) == {"device": peer.device, "server_time": int(START)}


def test_enrolment_must_be_signed_by_the_announced_key(serve):
    mine, other = serve(), serve()
    body = to_json(Enrolment(public_key=other.signer.public, capability=Capability(runtime="test")))
    assert "another device" in mine.signed("POST", "/v1/devices", body).problem(401)["detail"]
    assert mine.services.catalog.device(other.device) is None


@pytest.mark.parametrize("key", ["", "zz" * 32, "ab" * 31])
def test_a_malformed_key_is_refused(serve, key):
    body = to_json(Enrolment(public_key=key, capability=Capability(runtime="test")))
    serve().signed("POST", "/v1/devices", body).problem(400)


def test_an_unknown_device_is_told_to_enrol(serve):
    reply = serve().signed("GET", "/v1/bundle")
    assert "enrol" in reply.problem(401)["detail"]
    assert reply.headers["WWW-Authenticate"] == "CoDA"


def test_a_revoked_device_stays_revoked_when_it_enrols_again(peer):
    peer.services.catalog.revoke(peer.device)
    peer.signed("GET", "/v1/bundle").problem(403)
    peer.enrol()
    peer.signed("GET", "/v1/bundle").problem(403)


@pytest.mark.parametrize("header", ["", "Bearer abc", "CoDA x:y:z:w", "CoDA " + "a" * 300, "CoDA \xe9"])
def test_a_malformed_authorization_is_refused(peer, header):
    assert "form" in peer.send("GET", "/v1/bundle", Authorization=header).problem(401)["detail"]


def test_a_signature_holds_for_its_body_path_and_method_only(peer):
    body = query()
    good = peer.signature("POST", "/v1/match", body)
    whole = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for last in whole.replace(good[-1], ""):  # among them fifteen that a lenient decoder reads as the same bytes
        peer.send("POST", "/v1/match", body, Authorization=good[:-1] + last).problem(401)
    peer.send("POST", "/v1/match", query(limit=11), Authorization=good).problem(401)
    peer.send("POST", "/v1/contributions", body, Authorization=good).problem(401)
    peer.send("GET", "/v1/bundle", Authorization=good).problem(401)
    assert peer.send("POST", "/v1/match", body, Authorization=good).status == 200, "refusals use no nonce up"


def test_the_host_header_does_not_change_what_is_signed(peer):
    """A URL rebuilt from Host would have the path of the Host header's choice."""
    good = peer.signature("GET", "/v1/other")
    with socket.create_connection(("127.0.0.1", peer.port), timeout=10) as wire:
        wire.sendall(f"GET /v1/bundle HTTP/1.1\r\nHost: a/v1/other?\r\nAuthorization: {good}\r\n\r\n".encode())
        assert wire.recv(4096).split()[1] == b"401"


def test_the_path_is_signed_as_it_was_written(peer):
    written = "/v1/%62undle"
    assert peer.signed("GET", written).status == 200
    good = peer.signature("GET", "/v1/bundle")
    peer.send("GET", written, Authorization=good).problem(401)


def test_a_replayed_request_is_refused_for_as_long_as_its_signature_holds(peer, clock):
    header = peer.signature("GET", "/v1/bundle", at=START + 300)
    assert peer.send("GET", "/v1/bundle", Authorization=header).status == 200
    for later in (0, 300, 600):
        clock.now = START + later
        assert "before" in peer.send("GET", "/v1/bundle", Authorization=header).problem(401)["detail"]
    clock.now = START + 601
    assert "time" in peer.send("GET", "/v1/bundle", Authorization=header).problem(401)["detail"]


@pytest.mark.parametrize("off", [-301, 301, -(10**9)])
def test_a_wrong_clock_is_told_the_servers_time(peer, off):
    header = peer.signature("GET", "/v1/bundle", at=START + off)
    assert str(int(START)) in peer.send("GET", "/v1/bundle", Authorization=header).problem(401)["detail"]


def test_a_clock_within_the_window_passes(peer):
    for off in (-300, 300):
        header = peer.signature("GET", "/v1/bundle", at=START + off)
        assert peer.send("GET", "/v1/bundle", Authorization=header).status == 200
