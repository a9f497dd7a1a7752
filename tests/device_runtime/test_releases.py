"""A device and releases: it moves to a new bundle and back, but only where those whom it trusts say so."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace

import msgspec
import pytest

from cloud.catalog.evaluations import Evaluation
from cloud.home import ServerHome, publish
from cloud.rollout import Rule, Rung
from device_runtime.agent import Agent
from device_runtime.errors import InputError, TrustError
from device_runtime.identity import Signer
from device_runtime.messages import Profile
from tests.conftest import reversion
from tests.device_runtime.peers import CountingProxy
from tests.device_runtime.phones import Phone

ME = {"who": "me", "why": "because"}
EVERYBODY = (Rung(name="100 %", share=1.0),)


@pytest.fixture
def server(serving, published, tmp_path):
    """A server with bundle 2 for everyone, and 3, the same in all but its number, staged."""
    bundle = shutil.copytree(published.bundle, tmp_path / "bundle")
    reversion(bundle, published, 3)
    with serving() as (url, services):
        with ServerHome(tmp_path / "server") as home:
            publish(home, bundle, staged=True)
        yield url, services


@pytest.fixture
def phone(server, published, tmp_path):
    made = Phone(tmp_path, published, server[0])
    made.services = server[1]
    with made.home:
        yield made


def soon(services):
    """Other processes' changes are seen within a second."""
    services.releases._forget()


def test_a_device_follows_a_release_and_its_roll_back(phone):
    assert phone.round().report.bundle == 2
    before = phone.round().report
    assert before.auc_previous == before.verdict.auc_before, "the same bundle: that is what served"
    soon(phone.services)
    phone.services.releases.create("next", 3, ladder=EVERYBODY, **ME)
    moved = phone.round()
    assert moved.report.bundle == 3
    # bundle 3 is the same model, without the personal weights that served: its own are what is compared with them
    assert moved.report.auc_previous == pytest.approx(phone.services.catalog.served_auc(phone.home.device, 2))
    assert "compare" in [phase.phase for phase in moved.report.phases]
    assert moved.traffic["manifest"][1] > 0 and not set(moved.traffic) & {"graphs", "weights", "item rows"}
    phone.services.releases.act("next", "stop", **ME)
    back = phone.round()
    assert back.report.bundle == 2 and back.report.outcome in ("activated", "kept")
    assert phone.home.store.bundle()[0].version == 2
    phone.ranking()


def test_an_answer_that_brings_news_makes_a_round_due(phone):
    phone.round()
    assert Agent(phone.home.path, command=["true"]).look().due == ""
    soon(phone.services)
    real, created = phone.services.catalog.report, []

    def report(*given):
        if not created:
            created.append(phone.services.releases.create("next", 3, ladder=EVERYBODY, **ME))
        return real(*given)

    phone.services.catalog.report = report
    assert phone.round().report.bundle == 2, "it was created while the round was going on"
    assert phone.home.store.setting("stale") == "bundle"
    assert Agent(phone.home.path, command=["true"]).look().due == "the server has a newer bundle"
    assert phone.round().report.bundle == 3
    assert phone.home.store.setting("stale") == ""


def test_an_older_bundle_is_refused_from_who_cannot_sign(serving, published, tmp_path, phone):
    soon(phone.services)
    phone.services.releases.create("next", 3, ladder=EVERYBODY, **ME)
    assert phone.round().report.bundle == 3
    stranger = Signer.create(tmp_path / "stranger.key")
    with serving(lambda services: replace(services, answer_signer=stranger)) as (url, services):
        phone.services.releases.act("next", "stop", **ME)
        phone.move_to(url)
        soon(services)
        with pytest.raises(TrustError, match="older one is refused unless the server signs"):
            phone.round()
    assert phone.home.store.bundle()[0].version == 3
    phone.ranking()


def test_a_device_with_nothing_new_asks_one_small_question(phone, published):
    phone.round()
    with CountingProxy(int(phone.home.server.rpartition(":")[2])) as proxy:
        phone.move_to(proxy.url)
        before = proxy.relayed.up + proxy.relayed.down
        assert before > 0
        traffic = phone.round().traffic
    up, down = traffic["bundle"]
    # this server says "server: uvicorn" besides; `coda serve` does not
    assert up + down - len("server: uvicorn\r\n") <= 200
    assert "manifest" not in traffic


def test_what_the_app_tells_travels_once(phone):
    (phone.home.path / "profile.json").write_bytes(msgspec.json.encode({"app_version": "2.1", "cohorts": ["beta"]}))
    first = phone.round().traffic["bundle"]
    device = phone.home.store.setting("device")
    told = phone.services.catalog.device(device).profile
    assert told == Profile(app_version="2.1", os="linux", engine="onnx", cohorts=("beta",))
    assert sum(phone.round().traffic["bundle"]) < sum(first) / 3
    (phone.home.path / "profile.json").write_bytes(msgspec.json.encode({"app_version": "2.2"}))
    phone.round()
    assert phone.services.catalog.device(device).profile.app_version == "2.2"


@pytest.mark.parametrize("text", ["{", '{"app_version": 2}', '{"locale": "ö"}', '{"locale": "' + "x" * 2000 + '"}'])
def test_a_profile_that_is_none_is_named(phone, text):
    (phone.home.path / "profile.json").write_text(text)
    with pytest.raises(InputError, match=r"profile\.json"):
        phone.round()


def test_a_round_that_was_reported_late_says_how_old_it_is(phone, monkeypatch):
    phone.round()
    [row] = phone.home.store.rounds()
    with phone.home.store.database.transaction():
        phone.home.store.database.connection.execute(
            "UPDATE rounds SET id = 'waiting', started = ?, delivered = 0", (time.time() - 1e6,)
        )
        phone.home.store.database.connection.execute(
            "UPDATE rounds SET report = ?",
            (msgspec.json.encode(msgspec.structs.replace(row.report, round="waiting")),),
        )
    phone.round()
    ages = {report.round: report.age_s for _, report in phone.services.catalog.reports()}
    assert ages["waiting"] == pytest.approx(1e6, abs=1000) and min(ages.values()) < 600


def test_a_round_tries_configurations_and_tells_only_how_they_fared(phone):
    tries = {"usual": {}, "untuned": {"epochs": 0}, "wild": {"rate": 1e30}}
    phone.services.federated.create("rates", tries, Rule(name="e", release="-"), most=5, days=1)
    ranking_before = phone.round(evaluate=False)
    assert phone.services.catalog.evaluations.answers("rates") == [], "it declined"
    result = phone.round()
    [metrics] = phone.services.catalog.evaluations.answers("rates")
    verdict = result.report.verdict
    assert metrics.samples == verdict.samples
    assert metrics.outcomes["usual"].log_loss == pytest.approx(verdict.loss_after, abs=1e-4), (
        "as the round itself tuned"
    )
    assert metrics.outcomes["untuned"].auc is not None and metrics.outcomes["untuned"] != metrics.outcomes["usual"]
    assert metrics.outcomes["wild"].diverged or metrics.outcomes["wild"].log_loss > metrics.outcomes["usual"].log_loss
    assert "evaluate" in [phase.phase for phase in result.report.phases]
    assert result.traffic["evaluation"][0] < 1500
    assert "evaluation" not in phone.round().traffic and ranking_before.report.outcome


def test_an_evaluation_that_asks_for_too_much_is_left_alone(phone):
    rule = Rule(name="e", release="-")
    phone.services.catalog.evaluations.add(Evaluation("greedy", rule, {"a": {"candidates": 1e6}}, 5, 0.0, 1e12))
    assert phone.round().report.outcome in ("activated", "kept")
    assert phone.services.catalog.evaluations.answers("greedy") == []
