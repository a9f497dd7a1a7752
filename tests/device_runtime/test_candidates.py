"""What a device makes of the candidates of an answer, on a real exported graph."""

import numpy as np
import pytest

from device_runtime.bundle import RoundSettings
from device_runtime.candidates import as_labels, as_own, offsets, own_taste, sigmoid
from device_runtime.model import TASTE
from device_runtime.samples import Ragged, SampleBatch
from device_runtime.tables import LocalTable
from tests.toy import base_table, samples

POOLED, NEAREST = RoundSettings(matching="pooled"), RoundSettings(matching="nearest")


def answered(model, rng, offset):
    """Candidates as they come: no history, an offset in place of the label."""
    found = samples(model, rng, 12)
    none = np.zeros(12, np.int32)
    columns = {"item": found.columns["item"], "history": Ragged(none[:0], none, none)}
    return SampleBatch(found.schema, columns, as_labels(np.full(12, float(offset))))


def test_pooled_candidates_take_the_users_newest_history(model, rng):
    local, pooled = samples(model, rng, 10), answered(model, rng, 0.0)
    found, _ = as_own(pooled, local, local, model, base_table(model, local, pooled), POOLED)
    newest = local.columns["history"].row(9)
    assert all((found.columns["history"].row(i) == newest).all() for i in range(12))
    np.testing.assert_array_equal(found.columns["item"], pooled.columns["item"])


@pytest.mark.parametrize("offset", [-4.0, -0.1, 0.0, 0.1, 9.0])
def test_a_label_is_the_models_prediction_for_this_user_moved_by_the_offset(model, rng, offset):
    local, pooled = samples(model, rng, 10), answered(model, rng, offset)
    table = base_table(model, local, pooled)
    found, change = as_own(pooled, local, local, model, table, POOLED)
    np.testing.assert_allclose(change, np.clip(offset, -4, 4), atol=1e-6)
    moved = sigmoid(model.logits(found, table, model.base) + np.clip(offset, -4, 4))
    np.testing.assert_allclose(found.labels, moved, atol=1e-6)
    np.testing.assert_allclose(offsets(pooled.labels), np.clip(offset, -4, 4), atol=1e-6)


def with_tastes(model, *batches):
    """A base table whose items have a taste: 1 for even ids, -1 for odd ones."""
    table = base_table(model, *batches)
    taste = np.where(table.ids % 2 == 0, 1.0, -1.0).astype(np.float32)[:, None]
    taste[0] = 0
    return LocalTable(table.ids, {**table.tensors, TASTE: taste})


def test_own_labels_say_something_of_items_never_met_where_tastes_are_known(model, rng):
    local, pooled = samples(model, rng, 30), answered(model, rng, 0.0)
    likes_even = SampleBatch(local.schema, local.columns, 1 - local.columns["item"] % 2.0)
    table, even = with_tastes(model, local, pooled), pooled.columns["item"] % 2 == 0
    plain = as_own(pooled, likes_even, likes_even, model, table, RoundSettings(tastes=False))[0].labels
    moved = as_own(pooled, likes_even, likes_even, model, table, POOLED)[0].labels
    assert (moved[even] > plain[even] + 0.1).all() and (moved[~even] < plain[~even] - 0.1).all()
    unseen = as_own(pooled, likes_even, likes_even.take(slice(0, 0)), model, table, POOLED)[0].labels
    np.testing.assert_array_equal(unseen, plain, "labels that may not be looked at say nothing")


def test_a_taste_is_found_with_the_caution_of_its_prior(rng):
    taste = rng.normal(size=(400, 3))
    truth, logit = np.array([1.0, -0.5, 0.0]), rng.normal(size=400)
    label = (rng.random(400) < sigmoid(logit + 0.7 + taste @ truth)).astype(np.float32)
    many, few = own_taste(taste, logit, label), own_taste(taste[:4], logit[:4], label[:4])
    np.testing.assert_allclose(many, truth, atol=0.35)
    assert np.linalg.norm(few) < np.linalg.norm(many)
    assert not own_taste(np.zeros((5, 3)), logit[:5], label[:5]).any()


def test_samples_of_others_and_empty_answers_stay_as_they_are(model, rng):
    local, other = samples(model, rng, 10), samples(model, rng, 5)
    table = base_table(model, local, other)
    assert as_own(other, local, local, model, table, NEAREST) == (other, None)
    none = other.take(slice(0, 0))
    assert as_own(none, local, local, model, table, POOLED) == (none, None)
