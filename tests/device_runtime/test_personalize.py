"""Tuning and judging, on a real exported graph."""

import numpy as np
import pytest

from device_runtime.bundle import BlobStore, RoundSettings
from device_runtime.engines import open_engine
from device_runtime.local import personal_table
from device_runtime.metrics import log_loss
from device_runtime.model import VOCABULARY, Model, Weights
from device_runtime.personalize import judge, split, tune
from device_runtime.samples import Ragged, SampleBatch
from tests.export.conftest import ITEMS, bundle, engines, small_din  # noqa: F401  (fixtures)


@pytest.fixture
def model(bundle):  # noqa: F811
    folder, manifest = bundle
    return Model.open(manifest, open_engine("onnx"), BlobStore(folder / "blobs"))


def samples(model, rng, count, liked=None):
    """Labels follow the item's parity, or are given."""
    item = rng.integers(1, ITEMS, count).astype(np.int32)
    label = (item % 2).astype(np.float32) if liked is None else np.full(count, liked, np.float32)
    past = rng.integers(1, ITEMS, count + 3).astype(np.int32)
    history = Ragged(past, np.arange(count, dtype=np.int32), np.full(count, 3, np.int32))
    return SampleBatch(model.manifest.schema, {"item": item, "history": history}, label)


def tuned(model, local, kept=None, weights=None, **settings):
    parts = [local] if kept is None else [local, kept]
    table = model.table(SampleBatch.concatenate(parts).ids(VOCABULARY), model.base)
    found = tune(model, model.base, table, local, kept, weights, RoundSettings(**settings), np.random.default_rng(0))
    return table, found


def test_tuning_learns_the_local_samples_and_leaves_the_base_alone(model, rng):
    before = {name: value.copy() for name, value in model.base.dense.items()}
    local = samples(model, rng, 100, liked=0.9)  # labels that can be learned: coin tosses leave it to chance
    table, found = tuned(model, local, rate=0.3, epochs=10)
    after = model.logits(local, personal_table(table, found), found)
    assert log_loss(local.labels, after) < log_loss(local.labels, model.logits(local, table, model.base))
    for name, value in model.base.dense.items():
        np.testing.assert_array_equal(value, before[name])


def test_only_rows_that_were_touched_are_personal(model, rng):
    local = samples(model, rng, 20)
    table, found = tuned(model, local)
    assert 0 not in found.rows.ids and len(found.rows.ids) <= len(table) - 1
    assert set(found.rows.ids.tolist()) <= set(local.ids(VOCABULARY).tolist())
    assert set(found.rows.tensors) == {"item.weight"}, "attributes do not train"


def test_kept_samples_count_by_their_weight(model, rng):
    local, kept = samples(model, rng, 40, liked=0.0), samples(model, rng, 40, liked=1.0)
    means = []
    for weight in (0.0, 0.2, 1.0):
        table, found = tuned(model, local, kept, np.full(40, weight, np.float32), outside_weight=1.0, rate=0.3)
        means.append(model.logits(local, personal_table(table, found), found).mean())
    assert means[0] < means[1] < means[2]


def test_weights_come_back_from_a_file_and_serve_the_same(model, rng):
    local = samples(model, rng, 30)
    table, found = tuned(model, local)
    again = Weights.from_tensors(found.tensors(), "w1")
    expected = model.logits(local, personal_table(table, found), found)
    looked_up = model.logits(local, model.table(local.ids(VOCABULARY), again), again)
    np.testing.assert_allclose(looked_up, expected, atol=1e-6)


@pytest.mark.parametrize(("n", "sizes"), [(0, (0, 0)), (1, (1, 0)), (2, (1, 1)), (10, (8, 2)), (100, (80, 20))])
def test_the_newest_are_held_out(n, sizes):
    train, held = split(n, 0.2)
    assert (len(train), len(held)) == sizes
    assert np.concatenate([train, held]).tolist() == list(range(n))


@pytest.mark.parametrize(
    ("after", "activate", "why"),
    [
        ([2, -2, 2, -2], True, "log loss fell"),
        ([0, 0, 0, 0], False, "log loss did not fall"),
        ([9, 0.2, 0.1, -9], False, "AUC fell"),
        ([np.nan, 0, 0, 0], False, "not finite"),
    ],
)
def test_the_judge_lets_only_what_helps_serve(after, activate, why):
    labels = np.array([1, 0, 1, 0], np.float32)
    before = np.array([0.1, -0.1, 0.1, -0.1], np.float32)
    if why == "log loss did not fall":
        before = before * 10
    with np.errstate(invalid="ignore"):
        verdict = judge(labels, before, np.array(after, np.float32))
    assert verdict.activate is activate and why in verdict.reason
    assert verdict.samples == 4


def test_the_judge_goes_by_loss_alone_where_one_class_is_held_out():
    ones = np.ones(3, np.float32)
    verdict = judge(ones, np.zeros(3, np.float32), ones)
    assert verdict.activate and verdict.auc_before is None
