"""Shrinkage: as much as is right where items differ from what the model says, and never less without evidence."""

import numpy as np
import pytest

from cloud.shrinkage import CROWD, EVEN, LEAST, MOST, age_shrinkage, shrinkage
from device_runtime.bundle import Found
from device_runtime.candidates import sigmoid

ITEMS, EACH = 2000, 10


def unseen(rng, spread, level=0.0):
    """(item, label, logit): labels are off by a number of the item's, drawn with that variance, and by a level."""
    item = np.repeat(np.arange(1, ITEMS + 1), EACH)
    logit = rng.normal(size=len(item)).astype(np.float32)
    off = rng.normal(scale=np.sqrt(spread), size=ITEMS + 1)[item]
    return item, (rng.random(len(item)) < sigmoid(logit + off + level)).astype(np.float32), logit


@pytest.mark.parametrize("spread", [0.8, 1.2])
def test_it_is_the_prior_that_offsets_were_drawn_from(rng, spread):
    found = shrinkage(*unseen(rng, spread))
    # the method of moments takes labels for linear in logits, and so finds less than was drawn
    assert 1 / (EVEN * spread) < found < 2 / (EVEN * spread)


def test_a_few_samples_of_each_item_say_more_where_items_differ_more(rng):
    assert shrinkage(*unseen(rng, 4.0)) < shrinkage(*unseen(rng, 1.0)) < MOST


@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_without_evidence_it_stays_as_careful_as_ever(rng, spread):
    assert shrinkage(*unseen(rng, spread)) == MOST


def test_that_all_is_liked_more_than_foretold_is_no_difference_between_items(rng):
    assert shrinkage(*unseen(rng, 0.0, level=1.5)) == MOST


def test_few_samples_are_no_evidence(rng):
    item, label, logit = unseen(rng, 4.0)
    some = slice(0, 3 * EACH)
    assert shrinkage(item[some], label[some], logit[some]) == MOST
    assert shrinkage(item[:0], label[:0], logit[:0]) == MOST
    once = np.arange(0, ITEMS * EACH, EACH)
    assert shrinkage(item[once], label[once], logit[once]) == MOST, "no item has two samples to compare"
    assert shrinkage(item, np.ones_like(label), logit) == MOST


def test_it_has_a_least_however_wrong_the_model_is(rng):
    item, _, logit = unseen(rng, 0.0)
    assert shrinkage(item, (item % 2).astype(np.float32), logit) == LEAST


def test_ages_are_shrunk_by_contributors_however_many_samples_they_have(rng):
    for each in (1, 600):
        assert age_shrinkage(rng.permutation(np.repeat(np.arange(50), each))) == CROWD * each
    mostly_of_one = np.concatenate([np.zeros(900, np.int32), np.arange(1, 101)])
    assert age_shrinkage(mostly_of_one) == pytest.approx(CROWD * (0.9 * 900 + 0.1 * 1)), "as a sample meets them"
    assert age_shrinkage(mostly_of_one[:0]) == Found().age_shrinkage
