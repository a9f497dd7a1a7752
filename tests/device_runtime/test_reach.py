"""Rows that are moved until logits are those asked for, on a real exported graph."""

import numpy as np

from device_runtime import model as models
from device_runtime import reach as reaching
from device_runtime.bundle import RoundSettings
from device_runtime.candidates import Augmentation, sigmoid, with_history_of
from device_runtime.model import VOCABULARY, personal_table
from device_runtime.personalize import tune
from device_runtime.reach import reach
from device_runtime.samples import Ragged, SampleBatch
from tests.toy import ITEMS, base_table, samples


def lifted(model, rng, **settings):
    """(table, local samples, candidates with soft labels, how far each logit came, how far it was to go)."""
    local = samples(model, rng, 10)
    item = np.setdiff1d(np.arange(1, ITEMS), local.ids(VOCABULARY))[:60].astype(np.int32)
    none = np.zeros(60, np.int32)
    empty = SampleBatch(local.schema, {"item": item, "history": Ragged(none[:0], none, none)}, none.astype(np.float32))
    kept = with_history_of(empty, local)
    table = base_table(model, local, kept)
    before = model.logits(kept, table, model.base)
    asked = 0.01 * rng.normal(size=60)  # the model is not trained: its logits are that small
    soft = SampleBatch(kept.schema, kept.columns, sigmoid(before + asked).astype(np.float32))
    given = RoundSettings(**{"rate": 1e-9, "row_share": 1.0} | settings)
    rng = np.random.default_rng(0)
    found = tune(model, model.base, table, local, Augmentation.of(soft, None), given, rng).weights
    after = model.logits(kept, personal_table(table, found), found)
    return table, local, found, after - before, asked


def test_row_steps_reach_soft_labels_and_leave_the_users_own_rows(model, rng):
    _, local, found, moved, asked = lifted(model, rng, row_steps=3)
    assert np.median(np.abs(moved - asked)) < 1e-3 and np.corrcoef(moved, asked)[0, 1] > 0.8
    assert not set(found.rows.ids.tolist()) & set(local.ids(VOCABULARY).tolist())


def test_what_is_known_of_passes_and_candidates_is_not_computed_again(model, rng):
    local = samples(model, rng, 20)
    item = np.setdiff1d(np.arange(1, ITEMS), local.ids(VOCABULARY))[:40].astype(np.int32)
    near = with_history_of(samples(model, rng, 40), local)
    near = SampleBatch(near.schema, {**near.columns, "item": item}, near.labels)
    table, settings = base_table(model, local, near), RoundSettings(rate=0.1, epochs=2)
    asked = 0.01 * rng.normal(size=40)
    label = sigmoid(model.logits(near, table, model.base) + asked).astype(np.float32)
    kept = SampleBatch(near.schema, near.columns, label)

    def run(others, **more):
        return tune(model, model.base, table, local, others, settings, np.random.default_rng(0), **more)

    alone = run(None)
    whole = run(Augmentation.of(kept, None))
    resumed = run(Augmentation.of(kept, asked), passed=alone)
    assert whole.passes == resumed.passes == 2
    for name, tensor in whole.weights.dense.items():
        np.testing.assert_array_equal(resumed.weights.dense[name], tensor)
    np.testing.assert_array_equal(resumed.weights.rows.ids, whole.weights.rows.ids)
    served = [model.logits(kept, personal_table(table, t.weights), t.weights) for t in (whole, resumed, alone)]
    np.testing.assert_allclose(served[1], served[0], atol=1e-3, err_msg="only the order of candidates differs")
    assert np.corrcoef(served[1] - served[2], asked)[0, 1] > 0.8


def test_rows_go_a_share_of_the_way_if_asked(model):
    half, whole = (lifted(model, np.random.default_rng(5), row_steps=3, row_share=s)[3] for s in (0.5, 1.0))
    np.testing.assert_allclose(np.median(np.abs(half - whole / 2)), 0, atol=1e-3)
    assert np.abs(half).mean() < 0.7 * np.abs(whole).mean()


def test_more_row_steps_come_nearer(model, rng):
    lacking = []
    for steps in (1, 4):
        _, _, _, moved, asked = lifted(model, np.random.default_rng(5), row_steps=steps)
        lacking.append(np.abs(moved - asked).mean())
    assert lacking[1] < lacking[0]


def test_a_direction_is_asked_for_again_where_the_first_fell_short_and_only_there(model, monkeypatch):
    original, counts = reaching.train, []

    def counted(graph, values, features, labels, *args, **kwargs):
        counts[-1].append(len(labels))
        return original(graph, values, features, labels, *args, **kwargs)

    monkeypatch.setattr(reaching, "train", counted)
    monkeypatch.setattr(reaching, "_SLIGHT", 0.0)
    lacking = []
    for directions in (1, 3):
        monkeypatch.setattr(reaching, "_DIRECTIONS", directions)
        counts.append([])
        _, _, _, moved, asked = lifted(model, np.random.default_rng(5), row_steps=1)
        lacking.append(np.abs(moved - asked))
    once, again = counts
    short = int((lacking[0] > 0.1 * np.abs(asked)).sum())
    assert once == [60] and again[:2] == [60, short] and 0 < short < 60
    assert lacking[1].mean() < lacking[0].mean()


def test_many_candidates_are_gone_through_in_parts_that_bring_their_own_rows(model, monkeypatch):
    _, _, whole, moved, asked = lifted(model, np.random.default_rng(5), row_steps=3)
    monkeypatch.setattr(reaching, "TOGETHER", 7)
    monkeypatch.setattr(models, "TOGETHER", 7)
    _, _, parts, also_moved, also_asked = lifted(model, np.random.default_rng(5), row_steps=3)
    np.testing.assert_allclose(asked, also_asked, atol=1e-6, err_msg="logits are those of all rows at once")
    assert parts.rows.ids.tolist() == whole.rows.ids.tolist()
    assert np.median(np.abs(also_moved - asked)) < 1e-3 and np.corrcoef(also_moved, moved)[0, 1] > 0.9


def test_nothing_moves_where_nothing_is_to_change(model, rng):
    local, kept = samples(model, rng, 10), samples(model, rng, 5)
    table = base_table(model, local, kept)
    values = model.values("step", model.base, table)
    none = np.zeros(0, np.int64)
    found = reach(model, values, table, kept, np.zeros(5), none, steps=2, probe=0.5, rng=rng)
    for name, value in values.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6)
