"""Who gets which bundle: places, rules, and the reasons that `explain` prints."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.rollout import LADDER, Facts, Rollout, Rule, decide
from cloud.rollout.buckets import group, place, places, reference_until
from cloud.rollout.policy import added
from device_runtime.errors import InputError

NAMES = [f"device-{number}" for number in range(4000)]


def rollout(**changes) -> Rollout:
    return Rollout(**{"name": "next", "bundle": 7, "previous": 6, "salt": "s", **changes})


def test_places_are_stable_uniform_and_new_for_each_release():
    at = places(NAMES, "one")
    assert at[5] == place("device-5", "one")
    assert abs(np.histogram(at, 10, (0, 1))[0] - 400).max() < 100
    assert abs(np.corrcoef(at, places(NAMES, "two"))[0, 1]) < 0.05


@given(st.floats(0, 1, exclude_max=True), st.sampled_from([0.01, 0.05, 0.2]), st.sampled_from([0.01, 0.05, 0.2]))
def test_who_is_treated_stays_treated_and_who_is_control_was_never_treated(at, low, high):
    low, high = sorted((low, high))
    if group(at, low) == "treatment":
        assert group(at, high) == "treatment"
    if group(at, high) in ("control", "reference"):
        assert group(at, low) != "treatment"
    if group(at, low) in ("control", "reference"):
        assert group(at, high) in ("control", "reference")


@given(st.floats(0, 1, exclude_max=True), st.floats(0, 1))
def test_every_device_is_in_one_group_and_a_reference_is_at_most_a_quarter_with_the_control(at, share):
    wide = reference_until(share)
    assert min(share, 1 - share) <= wide <= max(share, 0.25) and wide <= 1 - share
    found = group(at, share)
    assert (found == "treatment") == (at < share)
    assert (found in ("control", "reference")) == (at >= share and at >= 1 - max(wide, share))


def test_treatment_and_control_are_of_one_size():
    at = places(NAMES, "one")
    sizes = {name: sum(group(x, 0.2) == name for x in at) for name in ("treatment", "control")}
    assert abs(sizes["treatment"] - sizes["control"]) < 120 and sizes["treatment"] > 650


def test_the_most_specific_rule_wins_and_the_decision_says_why():
    rules: tuple[Rule, ...] = ()
    for rule in (
        Rule(name="all", release="next"),
        Rule(name="german", locale=frozenset({"de"}), pin=5),
        Rule(name="german phones", locale=frozenset({"de"}), device_class=frozenset({"phone"}), pin=4),
        Rule(name="testers", cohorts=frozenset({"testers"}), pin=3),
        Rule(name="mine", devices=frozenset({"device-1"}), pin=2),
    ):
        rules = added(rules, rule)
    on_all = rollout(rung=len(LADDER) - 1)

    def given_to(**facts) -> tuple[int, str]:
        found = decide(Facts(**{"device": "device-9", **facts}), rules, {"next": on_all}, base=1)
        return found.bundle, found.rule

    assert given_to() == (7, "all")
    assert given_to(locale="de-AT") == (5, "german")
    assert given_to(locale="den") == (7, "all")
    assert given_to(locale="de", device_class="phone") == (4, "german phones")
    assert given_to(locale="de", device_class="phone", cohorts=frozenset({"testers"})) == (3, "testers")
    assert given_to(device="device-1", cohorts=frozenset({"testers"})) == (2, "mine")
    why = decide(Facts(device="x", locale="fr"), rules, {"next": on_all}, base=1).why
    assert "rule german: the device's locale is fr, not de" in why and why[-1].endswith("bundle 7")
    assert decide(Facts(device="x"), (), {}, base=1).bundle == 1


def test_versions_compare_by_number_and_an_unreadable_one_is_not_meant():
    rule = Rule(name="new apps", app_from="2.9", app_before="3", release="next")
    assert not rule.misses(Facts(device="x", app_version="2.10"))
    assert rule.misses(Facts(device="x", app_version="2.8.5")) == "app version 2.8.5 is before 2.9"
    assert rule.misses(Facts(device="x", app_version="3.0")) == "app version 3.0 is not before 3"
    assert "is not one" in rule.misses(Facts(device="x", app_version="two"))


def test_rules_that_contradict_each_other_are_refused_when_the_second_is_added():
    phones = Rule(name="phones", device_class=frozenset({"phone"}), pin=5)
    with pytest.raises(InputError, match="'phones' and 'german' are equally specific"):
        added([phones], Rule(name="german", locale=frozenset({"de"}), pin=4))
    assert len(added([phones], Rule(name="boards", device_class=frozenset({"board"}), pin=4))) == 2
    assert len(added([phones], Rule(name="german", locale=frozenset({"de"}), pin=5))) == 2
    old, new = Rule(name="old", app_before="2", pin=4), Rule(name="new", app_from="2", pin=5)
    assert len(added([old], new)) == 2
    [replaced] = added([phones], Rule(name="phones", device_class=frozenset({"phone"}), pin=6))
    assert replaced.pin == 6


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"pin": 0}, "either a release or a bundle"),
        ({"pin": 3, "release": "next"}, "either a release or a bundle"),
        ({"pin": 3, "app_from": "2.x"}, "app_from is '2.x'"),
        ({"pin": 3, "app_from": "2.1", "app_before": "2.0"}, "no app version is from 2.1 and before 2.0"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(fields, words):
    with pytest.raises(InputError, match=words):
        Rule(name="r", **fields)


def test_a_rule_for_a_release_that_is_not_here_is_an_error_that_names_both():
    with pytest.raises(InputError, match=r"'all' names the release 'gone'"):
        decide(Facts(device="x"), [Rule(name="all", release="gone")], {}, base=1)
