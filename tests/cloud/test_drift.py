"""Drift: how soon labels go stale is found where they do, and nothing is claimed where they do not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud import drift
from device_runtime.candidates import sigmoid

ITEMS, PEOPLE, EACH, DAYS = 60, 300, 40, 400.0


def population(rng, lasts):
    """(contributor, item, timestamp, label): how much an item is liked is drawn anew every so many days, if at all."""
    person = np.repeat(np.arange(PEOPLE), EACH).astype(np.int32)
    item = rng.integers(1, ITEMS + 1, len(person)).astype(np.int32)
    day = (rng.random(PEOPLE) * DAYS)[person] + rng.random(len(person))
    age = np.floor(day / lasts).astype(int) if lasts else np.zeros(len(day), int)
    liking = rng.normal(scale=2, size=(ITEMS + 1, age.max() + 1))[item, age]
    label = (rng.random(len(item)) < sigmoid(liking)).astype(np.float32)
    return person, item, (day * drift.DAY).astype(np.int64), label


def test_what_is_liked_for_weeks_is_forgotten_within_weeks(rng):
    slow, fast = (drift.half_life(*population(rng, lasts)) for lasts in (100, 20))
    assert 0 < fast < slow <= 100


def test_what_stays_liked_is_never_forgotten(rng):
    assert drift.half_life(*population(rng, None)) == 0


def test_too_few_people_are_no_evidence(rng):
    person, item, time, label = population(rng, 20)
    newest = np.isin(person, person[np.argsort(time)][-EACH * 20 :])
    assert drift.half_life(person[newest], item[newest], time[newest], label[newest]) == 0


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_kind_of_label_ranks_nothing(rng, label):
    person, item, time, _ = population(rng, 20)
    assert drift.half_life(person, item, time, np.full(len(item), label, np.float32)) == 0


def test_no_events_and_one_moment_are_no_evidence(rng):
    person, item, time, label = population(rng, 20)
    none = slice(0, 0)
    assert drift.half_life(person[none], item[none], time[none], label[none]) == 0
    assert drift.half_life(person, item, np.zeros_like(time), label) == 0


def test_an_event_of_centuries_ago_changes_nothing(rng):
    person, item, time, label = population(rng, 20)
    plain = drift.half_life(person, item, time, label)
    time[0] -= int(1e6 * drift.DAY)
    assert drift.half_life(person, item, time, label) == plain > 0


def test_the_offsets_that_are_tried_are_faded_means_up_to_each_block(rng):
    _, item, time, label = population(rng, 20)
    order = np.argsort(time, kind="stable")
    item, age = item[order], (time[order[-1]] - time[order]) / drift.DAY
    residual, first = label[order].astype(np.float64) - 0.5, len(item) - 160
    found = drift._offsets(item, residual, 0.25, age, 8.0, first)
    for at in rng.integers(0, 160, 20):
        start = first + at // 10 * 10  # sixteen blocks of ten
        weight = 0.5 ** ((age[:start] - age[start]) / 8) * (item[:start] == item[first + at])
        assert found[at] == pytest.approx((weight @ residual[:start]) / (0.25 * (weight.sum() + 10)), abs=1e-12)


@given(st.floats(0.5, 2048), st.lists(st.integers(0, 2**40), min_size=1, max_size=9))
def test_a_sample_counts_half_after_each_half_life(days, ages):
    once = drift.weights(np.array(ages), days)
    assert (once <= 1).all() and (once >= 0).all()
    np.testing.assert_allclose(drift.weights(np.array(ages) + days * drift.DAY, days), once / 2, atol=1e-12)
    np.testing.assert_array_equal(drift.weights(np.array(ages), 0.0), 1)
