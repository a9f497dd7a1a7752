"""Tastes: found where contributors have any in common, and left out where they do not."""

import numpy as np
import pytest

from cloud import tastes
from device_runtime.candidates import own_taste, sigmoid
from device_runtime.metrics import auc

ITEMS, PEOPLE, EACH = 80, 240, 50


def population(rng, strength):
    """(contributor, item, label, logit): each contributor likes the even or the odd items more, by the strength in
    logits; the model knows nothing of it."""
    person = np.repeat(np.arange(PEOPLE), EACH).astype(np.int32)
    item = np.concatenate([1 + rng.permutation(ITEMS)[:EACH] for _ in range(PEOPLE)]).astype(np.int32)
    logit = rng.normal(size=len(item)).astype(np.float32)
    side = np.where((item + person) % 2 == 0, strength, -strength)
    return person, item, (rng.random(len(item)) < sigmoid(logit + side)).astype(np.float32), logit


def test_what_contributors_have_in_common_ranks_what_a_user_never_met(rng):
    found = tastes.learn(*population(rng, 1.5), ITEMS + 1)
    assert found.shape == (ITEMS + 1, tastes.WIDTH) and found.dtype == np.float32 and not found[0].any()
    known, new = np.arange(1, 41), np.arange(41, ITEMS + 1)
    likes_even = (known % 2 == 0).astype(np.float32)
    own = own_taste(found[known].astype(np.float64), np.zeros(40), likes_even)
    assert auc((new % 2 == 0).astype(np.float32), (found[new] @ own).astype(np.float32)) > 0.9


def test_nothing_is_shipped_where_there_is_nothing_in_common(rng):
    assert tastes.learn(*population(rng, 0.0), ITEMS + 1) is None


@pytest.mark.parametrize("people", [1, 2, 5])
def test_too_few_people_are_no_evidence(rng, people):
    person, item, label, logit = population(rng, 1.5)
    few = person < people
    assert tastes.learn(person[few], item[few], label[few], logit[few], ITEMS + 1) is None


def test_the_same_rows_give_the_same_tastes(rng):
    given = population(rng, 1.5)
    np.testing.assert_array_equal(tastes.learn(*given, ITEMS + 1), tastes.learn(*given, ITEMS + 1))
