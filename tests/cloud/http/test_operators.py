"""Releases by HTTP: who may look, who may act, and that it is the same as the command line's."""

from __future__ import annotations

import json

import msgspec
import pytest

from device_runtime.messages import Metrics, Outcome
from tests.cloud.releases import LENIENT, QUICK, ref

PLAN = {"name": "next", "bundle": 4, "why": "week 2", "ladder": msgspec.to_builtins(QUICK)}
PLAN |= {"gate": msgspec.to_builtins(LENIENT), "means": {"os": ["linux"], "app_from": "2.0"}}


class Operator:
    def __init__(self, peer, name, role):
        self.peer, self.token = peer, peer.services.catalog.operators.add(name, role, now=1.0)

    def call(self, method, path, message=None):
        body = b"" if message is None else json.dumps(message).encode()
        return self.peer.send(method, path, body, Authorization=f"Bearer {self.token}")

    def told(self, method, path, message=None, status=200):
        reply = self.call(method, path, message)
        assert reply.status == status, reply.body
        assert reply.headers["Cache-Control"] == "no-store"
        return json.loads(reply.body)


@pytest.fixture
def releaser(peer):
    peer.services.catalog.release("tiny", peer.services.ref, now=1.0)
    peer.services.catalog.release("next", ref(4), now=2.0, staged=True)
    return Operator(peer, "ada", "releaser")


@pytest.fixture
def viewer(peer, releaser):
    return Operator(peer, "bob", "viewer")


CALLS = [
    ("GET", "/v1/releases"), ("POST", "/v1/releases"), ("GET", "/v1/releases/next"), ("POST", "/v1/releases/next"),
    ("GET", "/v1/audit"), ("GET", "/v1/evaluations"), ("POST", "/v1/evaluations"),
    ("GET", f"/v1/devices/{'0' * 32}/release"), ("PUT", f"/v1/devices/{'0' * 32}/pin"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_nothing_is_told_without_a_token(peer, method, path):
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic YTpi"},
        {"Authorization": "Bearer "},
    ):
        peer.send(method, path, b"{}" if method != "GET" else b"", **headers).problem(401)
    peer.signed(method, path, b"{}" if method != "GET" else b"").problem(401)


def test_a_release_is_planned_looked_at_and_acted_on(releaser, viewer):
    made = releaser.told("POST", "/v1/releases", PLAN, 201)
    assert (made["name"], made["bundle"], made["previous"], made["rung"]) == ("next", 4, 3, "simulation")
    assert made["means"] == {"os": ["linux"], "app_from": "2.0"} and len(made["ladder"]) == len(QUICK)
    after = releaser.told("POST", "/v1/releases/next", {"action": "advance", "why": "simulated well"})
    assert (after["rung"], after["share"], after["control_share"]) == ("25 %", 0.25, 0.25)
    assert after["judgement"]["finding"]["verdict"] == "wait"
    assert releaser.told("POST", "/v1/releases/next", {"action": "pause", "why": "lunch"})["state"] == "paused"
    assert releaser.told("POST", "/v1/releases/next", {"action": "resume", "why": "fed"})["state"] == "running"
    assert releaser.told("POST", "/v1/releases/next", {"action": "rollback", "why": "no"})["state"] == "stopped"
    assert [one["name"] for one in viewer.told("GET", "/v1/releases")] == ["next"]
    assert viewer.told("GET", "/v1/releases/next")["state"] == "stopped"
    lines = viewer.told("GET", "/v1/audit?release=next")
    assert [(line["who"], line["action"]) for line in lines] == [
        ("ada", "stop"), ("ada", "resume"), ("ada", "pause"), ("ada", "promote"), ("ada", "create"),
    ]  # fmt: skip


def test_a_pin_is_set_explained_and_taken_away(releaser, viewer):
    device = releaser.peer.device
    told = releaser.told("PUT", f"/v1/devices/{device}/pin", {"bundle": 4, "why": "to try"})
    assert told["decision"]["bundle"] == 4
    assert viewer.told("GET", f"/v1/devices/{device}/release")["decision"]["group"] == "pinned"
    assert releaser.told("PUT", f"/v1/devices/{device}/pin", {"bundle": 0, "why": "tried"})["decision"]["bundle"] == 3


def test_a_viewer_may_not_act(viewer):
    acts = ("/v1/releases", "/v1/releases/next", "/v1/evaluations")
    for method, path in (*(("POST", path) for path in acts), CALLS[-1]):
        assert "takes a releaser" in viewer.call(method, path, {}).problem(403)["detail"]
    assert viewer.peer.services.catalog.rollouts.audit() == []


def test_an_evaluation_is_asked_for_and_its_proposal_shown(releaser, viewer):
    tries = {"usual": {}, "slow": {"rate": 0.05}}
    plain = {"name": "tuned", "tries": tries, "means": {"os": ["linux"]}, "tune": True}
    made = releaser.told("POST", "/v1/evaluations", plain, 201)
    assert (made["period"], made["configurations"], made["means"]) == ("validation", tries, {"os": ["linux"]})
    for number in range(60):
        outcomes = {"usual": Outcome(auc=0.6 + number / 1000), "slow": Outcome(auc=0.65 + number / 1000)}
        told = Metrics(task="tuned", samples=9, outcomes=outcomes, period="validation")
        releaser.peer.services.catalog.evaluations.answer(f"{number:032x}", told, now=1.0)
    [shown] = viewer.told("GET", "/v1/evaluations")
    assert [one["devices"] for one in shown["compared"]] == [60, 60] and shown["compared"][1]["difference"][1] > 0.03
    assert shown["proposal"]["name"] == "slow" and shown["proposal"]["settings"] == {"rate": 0.05}
    refused = releaser.call("POST", "/v1/evaluations", plain | {"name": "x", "tries": {"a": {"keep": 5}}})
    assert "may not set keep" in refused.problem(400)["detail"]


@pytest.mark.parametrize(
    ("path", "message", "status", "words"),
    [
        ("/v1/releases", PLAN | {"bundle": 9}, 400, "bundle 9 was not taken in"),
        ("/v1/releases", PLAN | {"why": ""}, 400, "say why"),
        ("/v1/releases", PLAN | {"means": {"colour": "red"}}, 400, "colour"),
        ("/v1/releases", PLAN | {"ladder": [{"name": "a", "share": 2}]}, 400, "shares rise"),
        ("/v1/releases", PLAN | {"gate": {"alpha": 7}}, 400, "alpha"),
        ("/v1/releases", {"name": "x"}, 400, "missing required field"),
        ("/v1/releases/next", {"action": "advance", "why": "w"}, 404, "no release 'next'"),
        ("/v1/releases/next", {"action": "skip", "why": "w"}, 400, "skip"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(releaser, path, message, status, words):
    assert words in releaser.call("POST", path, message).problem(status)["detail"]
    assert releaser.peer.services.catalog.rollouts.audit() == []


def test_a_ladder_can_neither_be_skipped_nor_edited(releaser):
    releaser.told("POST", "/v1/releases", PLAN, 201)
    assert "means the same devices" in releaser.call("POST", "/v1/releases", PLAN).problem(400)["detail"]
    releaser.told("POST", "/v1/releases/next", {"action": "advance", "why": "w"})
    refused = releaser.call("POST", "/v1/releases/next", {"action": "advance", "why": "w"}).problem(400)
    assert "0 of 20 devices have reported" in refused["detail"]
    releaser.call("POST", "/v1/releases/next", {"action": "advance", "why": "w", "rung": 5}).problem(400)
    assert releaser.told("GET", "/v1/releases/next")["rung"] == "25 %"
