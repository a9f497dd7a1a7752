"""Federated evaluation over HTTP: a cohort is asked, figures come back, and what cannot be is refused."""

from __future__ import annotations

import json

import pytest

from cloud.federated import Federated
from cloud.rollout import Rule
from device_runtime.cli import main
from device_runtime.errors import InputError
from device_runtime.messages import Metrics, Outcome, Task, from_json, to_json
from tests.cloud.http.conftest import query
from tests.cloud.http.test_calls import report

TRIES = {"usual": {}, "slow": {"rate": 0.05}}
EVERYBODY = Rule(name="e", release="-")


def answer(task="rates", samples=12, period="judged", **outcomes):
    plain = {"usual": Outcome(auc=0.6, log_loss=0.5), "slow": Outcome(auc=0.65, log_loss=0.4)}
    return to_json(Metrics(task=task, samples=samples, outcomes=plain | outcomes, period=period))


@pytest.fixture
def asking(peer):
    peer.services.federated.create("rates", TRIES, EVERYBODY, most=2, days=1)
    return peer


def test_a_device_is_asked_once_and_answers_with_figures(asking):
    reply = asking.signed("POST", "/v1/match", query(), CoDA_Bundle="3")
    assert reply.headers["CoDA-Stale"] == "evaluation"
    asked = from_json(asking.signed("GET", "/v1/evaluation").body, Task, "the task")
    assert asked == Task(name="rates", configurations=TRIES)
    assert asking.signed("POST", "/v1/evaluation", answer()).status == 204
    assert asking.signed("POST", "/v1/evaluation", answer(slow=Outcome(auc=0.0))).status == 204, "counts once"
    assert asking.signed("GET", "/v1/evaluation").status == 204
    assert "CoDA-Stale" not in asking.signed("POST", "/v1/reports", report(), CoDA_Bundle="3").headers
    federated = asking.services.federated
    usual, slow = federated.compared(federated.all()[0])
    assert (usual.devices, usual.auc, usual.difference) == (1, 0.6, None)
    assert (slow.devices, slow.auc, slow.difference) == (1, 0.65, None), "one device makes no interval"


def test_only_a_cohort_is_asked(peer):
    federated, rule = peer.services.federated, Rule(name="e", release="-", cohorts=frozenset({"beta"}))
    federated.create("rates", TRIES, rule, most=2, days=1)
    assert peer.signed("GET", "/v1/evaluation").status == 204
    assert "not asked" in peer.signed("POST", "/v1/evaluation", answer()).problem(400)["detail"]
    peer.services.catalog.rollouts.set_cohort([peer.device], "beta", True)
    peer.services.releases._forget()
    assert peer.signed("GET", "/v1/evaluation").status == 200


def test_it_ends_with_its_time_and_with_enough_answers(asking, clock, tmp_path):
    catalog = asking.services.catalog
    for number in range(2):
        catalog.evaluations.answer(f"{number:032x}", from_json(answer(), Metrics, "m"), now=1.0)
    assert Federated(catalog, clock).asked(asking.services.releases.facts(catalog.device(asking.device), 3)) is None
    clock.now += 2 * 86_400
    assert catalog.evaluations.open(clock.now) == []


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", answer(task="other"), answer(samples=-1), answer(slow=Outcome(auc=1.5)),
        answer(slow=Outcome(log_loss=-1.0)), answer(more=Outcome(auc=0.5)),
        to_json(Metrics(task="rates", samples=1, outcomes={})), answer(period="validation"),
    ],
)  # fmt: skip
def test_answers_that_cannot_be_are_refused(asking, body):
    asking.signed("POST", "/v1/evaluation", body).problem(400)
    assert asking.services.catalog.evaluations.answers("rates") == []


def test_an_answer_is_small(asking):
    asking.signed("POST", "/v1/evaluation", answer() + b" " * 2048).problem(413)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tries": {"a": {"candidates": 5}}}, "may not set candidates"),
        ({"tries": {"a": {"epochs": 1000}}}, "cannot set epochs"),
        ({"tries": {"a": {"rate": float("nan")}}}, "cannot set rate"),
        ({"tries": {}}, "1 to 16"),
        ({"tries": {str(n): {} for n in range(17)}}, "1 to 16"),
        ({"name": "a/b"}, "no slash"),
        ({"name": ""}, "1 to 100"),
        ({"most": 0}, "1 to 1,000,000"),
        ({"days": 0}, "within a year"),
    ],
)
def test_what_devices_would_refuse_is_not_asked(peer, changes, words):
    plain = {"name": "rates", "tries": TRIES, "most": 2, "days": 1.0} | changes
    with pytest.raises(InputError, match=words):
        peer.services.federated.create(plain["name"], plain["tries"], EVERYBODY, plain["most"], plain["days"])


def test_differences_are_paired_by_device_and_have_an_interval(asking, rng):
    log = asking.services.catalog.evaluations
    for number, level in enumerate(rng.uniform(0.3, 0.9, 30).tolist()):
        better = Outcome(auc=min(level + 0.02 + float(rng.normal(0, 0.01)), 1.0))
        made = Metrics(task="rates", samples=9, outcomes={"usual": Outcome(auc=level), "slow": better})
        log.answer(f"{number:032x}", made, now=float(number))
    _, slow = asking.services.federated.compared(log.all()[0])
    mean, low, high = slow.difference
    assert low < mean < high and low > 0.01 and high < 0.03, "devices differ by far more than configurations"


def test_operators_ask_and_look(tmp_path, capsys):
    home = str(tmp_path / "server")
    assert main(["release", "keys", "--home", home]) == 0
    words = ["federated", "create", "rates", "--try", "usual", "--try", "slow:rate=0.05,epochs=4", "--home", home]
    assert main(words) == 0
    assert main(words) == 2 and "names are not used twice" in capsys.readouterr().err
    assert main(["federated", "create", "x", "--try", "a:rate", "--home", home]) == 2
    assert main(["federated", "show", "rates", "--home", home, "--json", str(tmp_path / "out.json")]) == 0
    assert "slow: 0 devices" in capsys.readouterr().out
    assert [row["name"] for row in json.loads((tmp_path / "out.json").read_text())["rows"]] == ["usual", "slow"]
    assert main(["federated", "show", "nothing", "--home", home]) == 2
