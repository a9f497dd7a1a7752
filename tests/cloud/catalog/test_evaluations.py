"""Federated evaluations in a catalog, over SQLite and over PostgreSQL alike."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from cloud.catalog.evaluations import Evaluation
from cloud.rollout import Rule
from device_runtime.errors import InputError
from device_runtime.messages import Metrics, Outcome


def evaluation(name="rates", most=2, created=1.0, until=100.0):
    rule = Rule(name="e", release="-", cohorts=frozenset({"beta", "staff"}))
    return Evaluation(name, rule, {"usual": {}, "slow": {"rate": 0.05}}, most, created, until)


def metrics(auc=0.6, task="rates"):
    return Metrics(task=task, samples=9, outcomes={"usual": Outcome(auc=auc), "slow": Outcome(diverged=True)})


def test_an_evaluation_is_kept_whole_and_its_name_used_once(catalog):
    catalog.evaluations.add(evaluation())
    catalog.evaluations.add(evaluation("later", created=2.0))
    assert catalog.evaluations.all() == [evaluation("later", created=2.0), evaluation()]
    with pytest.raises(InputError, match="names are not used twice"):
        catalog.evaluations.add(evaluation())


def test_it_is_open_until_its_time_or_until_enough_have_answered(catalog):
    catalog.evaluations.add(evaluation())
    assert [one.name for one in catalog.evaluations.open(50.0)] == ["rates"]
    assert catalog.evaluations.open(100.0) == []
    for number in range(2):
        assert catalog.evaluations.open(50.0)
        assert catalog.evaluations.answer(f"d{number}", metrics(), now=float(number))
    assert catalog.evaluations.open(50.0) == []


def test_a_device_answers_once_whatever_it_sends_at_once(catalog, open_catalog):
    catalog.evaluations.add(evaluation())
    others = [open_catalog() for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        jobs = [threads.submit(others[n % 4].evaluations.answer, "d", metrics(n / 20), float(n)) for n in range(20)]
        assert sum(job.result() for job in jobs) == 1
    assert len(catalog.evaluations.answers("rates")) == 1
    assert catalog.evaluations.answered("d") == {"rates"} and catalog.evaluations.answered("e") == set()
