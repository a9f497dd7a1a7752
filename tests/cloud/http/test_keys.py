"""Devices that replace their keys, and those who would like to do it for them."""

from __future__ import annotations

import json

import pytest

from device_runtime.identity import Signer, device_id, rotation_text
from device_runtime.messages import Capability, Enrolment, Rotation, to_json


@pytest.fixture
def fresh(tmp_path):
    return Signer.create(tmp_path / "fresh.key")


def rotate(peer, new, proof_by=None, proof_of=None, by=None):
    proof = (proof_by or new).sign(rotation_text(proof_of or peer.device, new.public))
    body = to_json(Rotation(public_key=new.public, proof=proof))
    signed = (by or peer.signer).authorization(peer.device, "POST", "/v1/keys", body, peer.services.clock())
    return peer.send("POST", "/v1/keys", body, Authorization=signed)


def test_a_device_stays_itself_under_a_new_key_and_the_old_one_is_dead(peer, fresh):
    old, device = peer.signer, peer.device
    reply = rotate(peer, fresh)
    assert (reply.status, json.loads(reply.body)["device"]) == (200, device)
    peer.signed("GET", "/v1/bundle").problem(401)
    peer.signer = fresh
    assert peer.device == device != device_id(fresh.public)
    assert peer.signed("GET", "/v1/bundle").status == 200
    assert peer.enrol().status == 200, "what is known of the device is renewed under the new key"
    assert json.loads(peer.enrol().body)["device"] == device
    peer.signer = old
    assert "replaced by a newer one" in peer.enrol().problem(401)["detail"]


def test_a_rotation_whose_answer_was_lost_is_repeated(peer, fresh):
    for _ in range(2):
        assert rotate(peer, fresh).status == 200
    peer.signer = fresh
    assert peer.signed("GET", "/v1/bundle").status == 200


def test_who_stole_an_old_key_cannot_rotate_with_it(peer, fresh, tmp_path):
    assert rotate(peer, fresh).status == 200
    rotate(peer, Signer.create(tmp_path / "third.key")).problem(401)
    assert peer.services.catalog.device(peer.device).public_key == fresh.public


def test_a_key_must_be_held_to_be_taken(peer, fresh, tmp_path):
    stranger = Signer.create(tmp_path / "stranger.key")
    assert "proof" in rotate(peer, fresh, proof_by=stranger).problem(401)["detail"]
    assert "proof" in rotate(peer, fresh, proof_of="0" * 32).problem(401)["detail"]
    rotate(peer, fresh, by=stranger).problem(401)
    rotate(peer, peer.signer).problem(409)
    for body in (b"{}", b"[", to_json(Rotation(public_key="zz", proof="")), b"x" * 5000):
        assert peer.signed("POST", "/v1/keys", body).status in (400, 413)
    assert peer.services.catalog.device(peer.device).public_key == peer.signer.public


def test_a_revoked_device_cannot_rotate(peer, fresh):
    peer.services.catalog.revoke(peer.device)
    rotate(peer, fresh).problem(403)


def test_a_new_key_cannot_be_enrolled_as_another_device(peer, fresh):
    body = to_json(Enrolment(public_key=fresh.public, capability=Capability(runtime="test")))
    signed = fresh.authorization(peer.device, "POST", "/v1/devices", body, peer.services.clock())
    peer.send("POST", "/v1/devices", body, Authorization=signed).problem(401)
    assert peer.services.catalog.device(peer.device).public_key == peer.signer.public


def test_the_operators_wish_for_a_new_key_comes_with_the_announcement(peer, fresh):
    first = peer.signed("GET", "/v1/bundle")
    assert first.headers["CoDA-Rotate-Key"] is None
    peer.services.catalog.ask_for_rotation(peer.device)
    for headers in ({}, {"If-None-Match": first.headers["ETag"]}):
        assert peer.signed("GET", "/v1/bundle", **headers).headers["CoDA-Rotate-Key"] == "due"
    rotate(peer, fresh)
    peer.signer = fresh
    assert peer.signed("GET", "/v1/bundle").headers["CoDA-Rotate-Key"] is None
