"""What devices are told of releases, over a real socket: which bundle, in how many bytes, signed by whom."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import replace

import pytest

from cloud.http.keeper import ReleaseKeeper
from cloud.rollout import Rule
from device_runtime.errors import TrustError
from device_runtime.identity import answer_text, parse_authorization, verify
from device_runtime.messages import Profile, profile_digest, to_json
from tests.cloud.http.conftest import query
from tests.cloud.http.test_calls import report
from tests.cloud.releases import LENIENT, QUICK, ref

ME = {"who": "me", "why": "because"}
EVERYBODY = QUICK[2:]


@pytest.fixture
def stocked(peer):
    """Bundle 3 is everyone's; 4 is staged."""
    catalog = peer.services.catalog
    catalog.release("tiny", peer.services.ref, now=1.0)
    catalog.release("next", ref(4), now=2.0, staged=True)
    return peer


def create(peer, **more):
    return peer.services.releases.create("next", 4, **ME | {"ladder": EVERYBODY, "gate": LENIENT} | more)


def version(peer, **headers):
    reply = peer.signed("GET", "/v1/bundle", **headers)
    assert reply.status == 200, reply.body
    return json.loads(reply.body)["version"]


def check(peer, bundle, profile=None):
    return peer.send("GET", f"/v1/stale/{peer.device}/{bundle}/{profile_digest(profile or Profile())}")


def test_a_release_comes_and_goes_without_a_restart(stocked):
    assert version(stocked) == 3
    create(stocked)
    assert version(stocked, CoDA_Bundle="3") == 4
    stocked.services.releases.act("next", "stop", **ME)
    assert version(stocked, CoDA_Bundle="4") == 3


def test_the_announcement_is_signed_for_the_request_that_it_answers(stocked):
    authorization = stocked.signature("GET", "/v1/bundle")
    reply = stocked.send("GET", "/v1/bundle", Authorization=authorization)
    nonce, key = parse_authorization(authorization)[2], stocked.services.answer_signer.public
    verify(key, answer_text(nonce, reply.body), reply.headers["CoDA-Signature"])
    assert reply.headers["Cache-Control"] == "no-store", "another device may get another one"
    with pytest.raises(TrustError):
        verify(key, answer_text("0" * 16, reply.body), reply.headers["CoDA-Signature"])


def test_releases_are_aimed_by_what_a_device_tells_of_itself(stocked):
    create(stocked, rule=Rule(name="x", release="x", app_from="2.0", cohorts=frozenset({"beta"})))
    assert version(stocked) == 3
    told = Profile(app_version="2.1", cohorts=("beta",))
    assert version(stocked, CoDA_Profile=to_json(told).decode()) == 4
    assert stocked.services.catalog.device(stocked.device).profile == told
    assert version(stocked) == 4, "it is remembered"
    assert check(stocked, 4, told).status == 204


@pytest.mark.parametrize("told", ["{", "[]", '{"cohorts": 7}', "x" * 2000, '{"locale": "' + "x" * 2000 + '"}'])
def test_a_profile_that_is_none_is_refused(stocked, told):
    assert "profile" in stocked.signed("GET", "/v1/bundle", CoDA_Profile=told).problem(400)["detail"]


@pytest.mark.parametrize("header", ["x", "-1", "9" * 40, "²"])
def test_a_bundle_that_is_none_counts_as_not_told(stocked, header):
    create(stocked)
    assert "CoDA-Stale" not in stocked.signed("POST", "/v1/reports", report(), CoDA_Bundle=header.encode()).headers


def test_a_check_says_what_is_stale_and_nothing_if_nothing_is(stocked):
    assert (check(stocked, 3).status, check(stocked, 3).body) == (204, b"")
    assert json.loads(check(stocked, 2).body) == ["bundle"]
    assert json.loads(check(stocked, 3, Profile(locale="de")).body) == ["profile"]
    create(stocked)
    assert json.loads(check(stocked, 3).body) == ["bundle"]
    stocked.services.catalog.ask_for_rotation(stocked.device)
    assert json.loads(check(stocked, 4).body) == ["key"]
    assert stocked.send("GET", f"/v1/stale/{'0' * 32}/3/00000000").status == 200, "nobody learns who is enrolled"
    stocked.send("GET", "/v1/stale/me/3/00000000").problem(400)


def test_an_up_to_date_check_takes_two_hundred_bytes_at_most(stocked):
    """As the device asks it, counted at the socket; what a proxy in between would add is not the server's."""
    asked = (
        f"GET /v1/stale/{stocked.device}/3/{profile_digest(Profile())} HTTP/1.1\r\n"
        f"Host: 127.0.0.1:{stocked.port}\r\nAccept-Encoding: identity\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", stocked.port), timeout=10) as wire:
        wire.sendall(asked)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += wire.recv(4096)
    assert answer.startswith(b"HTTP/1.1 204 ") and answer.endswith(b"\r\n\r\n")
    assert len(asked) + len(answer) <= 200


def test_news_ride_on_other_answers(stocked):
    for path, body in (("/v1/match", query()), ("/v1/reports", report())):
        assert "CoDA-Stale" not in stocked.signed("POST", path, body, CoDA_Bundle="3").headers
    create(stocked)
    assert stocked.signed("POST", "/v1/reports", report(round="r2"), CoDA_Bundle="3").headers["CoDA-Stale"] == "bundle"
    assert stocked.signed("POST", "/v1/match", query(), CoDA_Bundle="3").headers["CoDA-Stale"] == "bundle"
    assert "CoDA-Stale" not in stocked.signed("POST", "/v1/reports", report(round="r3"), CoDA_Bundle="4").headers
    assert "CoDA-Stale" not in stocked.signed("POST", "/v1/reports", report(round="r4")).headers, "it does not say"


def test_a_device_is_matched_by_the_bundle_that_it_runs_while_others_may_get_it(stocked):
    create(stocked)
    assert stocked.signed("POST", "/v1/match", query(), CoDA_Bundle="3").status == 200
    reply = stocked.signed("POST", "/v1/match", query(), CoDA_Bundle="4")
    assert reply.status == 503, "here only bundle 3 can be opened"


def test_reports_are_evidence_and_the_keeper_acts_on_it(stocked, clock):
    create(stocked, ladder=QUICK, named=[stocked.device])
    stocked.services.releases.act("next", "promote", **ME)
    clock.now += 10
    assert version(stocked) == 4, "it is named"
    assert stocked.signed("POST", "/v1/reports", report(bundle=4, outcome="failed")).status == 204
    assert stocked.services.catalog.rollouts.heard("next")["treatment"].devices == 1
    keeper = ReleaseKeeper(stocked.services)
    keeper.look()
    judgement = stocked.services.releases.course("next").judgement
    assert judgement.finding.verdict == "wait" and judgement.evidence.treatment.failures == 1


def test_the_keeper_forgets_what_is_older_than_the_operator_wants(stocked, clock):
    limits = replace(stocked.services.limits, report_days=2.0, sample_days=1.0)
    keeper = ReleaseKeeper(replace(stocked.services, limits=limits))
    pool, catalog = stocked.services.pool, stocked.services.catalog

    def rounds():
        return [kept.round for _, kept in catalog.reports()]

    assert stocked.signed("POST", "/v1/reports", report(round="early")).status == 204
    clock.now += 1.5 * 86_400
    assert stocked.signed("POST", "/v1/reports", report(round="late")).status == 204
    before = len(pool)
    keeper.look()
    assert before > 0 and len(pool) == 0 and rounds() == ["early", "late"], "samples are kept a day, reports two"
    clock.now += 86_400
    keeper.look()
    assert rounds() == ["late"]
    clock.now += 86_400
    ReleaseKeeper(stocked.services).look()
    assert rounds() == ["late"], "by default reports are kept for half a year"


def test_the_keeper_looks_by_itself(stocked, clock):
    create(stocked, ladder=QUICK)
    stocked.services.releases.act("next", "promote", **ME)
    clock.now += 10
    with ReleaseKeeper(stocked.services, every_s=0.02):
        deadline = time.monotonic() + 20
        while not stocked.services.releases.course("next").judged:
            assert time.monotonic() < deadline
            time.sleep(0.02)
