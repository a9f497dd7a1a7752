"""Settings are chosen by devices: each compares configurations on samples that its judge never sees, over real HTTP."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cloud.federated import share_of
from cloud.home import ServerHome, publish
from cloud.rollout import Rule
from device_runtime.bundle import RoundSettings
from device_runtime.cli import main
from device_runtime.errors import InputError
from device_runtime.evaluating import before_the_judged
from device_runtime.local import Local
from device_runtime.messages import Metrics, Outcome, from_json, to_json
from device_runtime.samples import Feature, SampleBatch, Schema
from export.package import read_ref
from tests.device_runtime.phones import Phone

ARMS = {"usual": {}, "untuned": {"epochs": 0.0, "row_steps": 0.0}, "slow": {"rate": 0.01}, "long": {"epochs": 5.0}}
LABELS = np.arange(50, dtype=np.float32) % 2
EVERYBODY = Rule(name="e", release="-")


@pytest.fixture
def server(serving):
    with serving() as (url, services):
        services.federated.create("tuned", ARMS, EVERYBODY, most=100, days=1, period="validation")
        yield url, services


def test_devices_compare_on_what_the_judge_never_sees_and_only_figures_leave_them(server, published, tmp_path):
    url, services = server
    for number in range(2):
        folder = tmp_path / f"phone-{number}"
        folder.mkdir()
        phone = Phone(folder, published, url)
        with phone.home:
            result = phone.round()
        assert result.traffic["evaluation"][0] < 2500
        judged = result.report.verdict.samples
        tried = services.catalog.evaluations.answers("tuned")[number]
        assert tried.period == "validation" and set(tried.outcomes) == set(ARMS)
        assert tried.samples == round((result.report.local - judged) * RoundSettings().holdout) != judged
        assert len({outcome.log_loss for outcome in tried.outcomes.values()}) > 1
    compared = services.federated.compared(services.federated.named("tuned"))
    assert [one.devices for one in compared] == [2] * len(ARMS) and compared[1].difference is not None
    assert services.federated.proposal(services.federated.named("tuned")).name == "", "two devices prove nothing"


def test_the_newest_before_the_judged_are_held_out():
    samples = SampleBatch(Schema((Feature("price", "float", "", 1),)), {"price": np.zeros((50, 1), np.float32)}, LABELS)
    local = Local(samples.take(np.arange(40)), samples.take(np.arange(40, 50)), np.arange(40), 0)
    found = before_the_judged(local, RoundSettings(holdout=0.2))
    assert (len(found.train), len(found.held_out)) == (32, 8) and found.times.tolist() == list(range(32))
    np.testing.assert_array_equal(found.held_out.labels, LABELS[32:40])


def answers(services, rng, better="slow", by=0.03, devices=120, name="tuned"):
    evaluation = services.federated.named(name)
    for number in range(devices):
        device, level = f"{number:032x}", float(rng.uniform(0.4, 0.9))
        outcomes = {}
        for arm in share_of(evaluation, device):
            auc = level + by * (arm == better) + float(rng.normal(0, 0.02))
            outcomes[arm] = Outcome(auc=min(max(auc, 0.0), 1.0), log_loss=0.5, diverged=False)
        made = Metrics(task=name, samples=9, outcomes=outcomes, period="validation")
        services.catalog.evaluations.answer(device, made, now=float(number))


def test_what_is_better_for_sure_is_proposed_as_a_bundle_that_has_to_climb(server, rng, tmp_path, published, capsys):
    _, services = server
    home, out = str(tmp_path / "server"), tmp_path / "made"
    key = published.home.parent / "release.key"
    words = ["federated", "propose", "tuned", "--home", home]
    assert main(words) == 1 and "no configuration is better" in capsys.readouterr().out
    answers(services, rng)
    assert main([*words, "--settings-out", str(tmp_path / "best.json")]) == 0
    assert json.loads((tmp_path / "best.json").read_text())["rate"] == 0.01
    assert main([*words, "--key", str(key)]) == 2
    assert main([*words, "--key", str(key), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "slow: +0.0" in said and "coda release create" in said
    before = services.catalog.current().version
    with ServerHome(tmp_path / "server") as opened:
        made, old = publish(opened, out, staged=True), opened.release()[1]
        assert opened.catalog.current().version == before, "it is nobody's"
    assert read_ref(out).version == made.version == before + 1
    assert made.settings.rate == 0.01 and made.weights == old.weights and made.tables == old.tables
    assert main([*words, "--key", str(key), "--out", str(out)]) == 2, "a bundle never changes"


def test_what_is_hardly_better_or_diverges_is_not_proposed(server, rng):
    _, services = server
    answers(services, rng, by=0.0)
    federated = services.federated
    assert federated.proposal(federated.named("tuned")).name == ""
    federated.create("wild", {"usual": {}, "fast": {"rate": 5.0}}, EVERYBODY, most=500, days=1, period="validation")
    for number in range(100):
        gone = number % 20 == 0
        outcomes = {"usual": Outcome(auc=0.6), "fast": Outcome(diverged=True) if gone else Outcome(auc=0.7)}
        made = Metrics(task="wild", samples=9, outcomes=outcomes, period="validation")
        services.catalog.evaluations.answer(f"{number:032x}", made, now=1.0)
    assert federated.proposal(federated.named("wild")).name == "", "5 of 100 devices diverged"


def test_of_many_configurations_a_device_tries_the_first_and_some_others(server):
    _, services = server
    arms = {"usual": {}} | {f"rate {n}": {"rate": n / 100} for n in range(1, 12)}
    wide = services.federated.create("wide", arms, EVERYBODY, most=100, days=1, period="validation")
    shares = [share_of(wide, f"{number:032x}") for number in range(200)]
    assert all(len(share) == 4 and next(iter(share)) == "usual" for share in shares)
    tried = [sum(name in share for share in shares) for name in arms]
    assert tried[0] == 200 and min(tried[1:]) > 30
    assert share_of(wide, "0" * 32) == share_of(wide, "0" * 32)
    with pytest.raises(InputError, match="1 to 16"):
        services.federated.create("too wide", {str(n): {} for n in range(17)}, EVERYBODY, most=1, days=1)


def test_settings_are_not_chosen_by_the_judges_rows(server):
    _, services = server
    services.federated.create("plain", ARMS, EVERYBODY, most=100, days=1)
    with pytest.raises(InputError, match="chosen on those before"):
        services.federated.proposal(services.federated.named("plain"))


def test_a_device_that_knows_of_no_other_period_tells_the_judged_one():
    old = b'{"task": "tuned", "samples": 3, "outcomes": {}}'
    assert from_json(old, Metrics, "metrics").period == "judged"
    assert b"validation" in to_json(Metrics(task="t", samples=1, outcomes={}, period="validation"))
