"""Tuning, on a real exported graph."""

import msgspec
import numpy as np
import pytest

from device_runtime import personalize as personalizing
from device_runtime.bundle import RoundSettings
from device_runtime.candidates import Augmentation, with_history_of
from device_runtime.metrics import at_level, log_loss
from device_runtime.model import VOCABULARY, Weights, personal_table
from device_runtime.personalize import corrected, enough, learn_held_out, part_of_the_way, split, tune
from device_runtime.samples import Ragged, SampleBatch
from tests.toy import ITEMS, base_table, samples


def tuned(model, local, kept=None, weights=None, **settings):
    parts = [local] if kept is None else [local, kept]
    table = model.table(SampleBatch.concatenate(parts).ids(VOCABULARY), model.base)
    others = None if kept is None else Augmentation(kept, weights)
    found = tune(model, model.base, table, local, others, RoundSettings(**settings), np.random.default_rng(0))
    return table, found.weights


def test_tuning_learns_the_local_samples_and_leaves_the_base_alone(model, rng):
    before = {name: value.copy() for name, value in model.base.dense.items()}
    local = samples(model, rng, 100, liked=0.9)  # labels that can be learned: coin tosses leave it to chance
    table, found = tuned(
        model, local, rate=0.3, table_rate=3.0, epochs=10, label_correction=False, freeze_histories=False
    )
    after = model.logits(local, personal_table(table, found), found)
    assert log_loss(local.labels, after) < log_loss(local.labels, model.logits(local, table, model.base))
    for name, value in model.base.dense.items():
        np.testing.assert_array_equal(value, before[name])


def test_only_rows_that_were_touched_are_personal(model, rng):
    local = samples(model, rng, 20)
    table, found = tuned(model, local, freeze_histories=False)
    assert 0 not in found.rows.ids and len(found.rows.ids) <= len(table) - 1
    assert set(found.rows.ids.tolist()) <= set(local.ids(VOCABULARY).tolist())
    assert set(found.rows.tensors) == {"item.weight"}, "attributes do not train"


def test_kept_samples_count_by_their_weight(model, rng):
    local, kept = samples(model, rng, 40, liked=0.0), samples(model, rng, 40, liked=1.0)
    means = []
    for weight in (0.0, 0.2, 1.0):
        table, found = tuned(
            model, local, kept, np.full(40, weight, np.float32), outside_weight=1.0, rate=0.3, row_steps=0
        )
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


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_part_of_the_way_is_an_average_of_weights(model, rng, share):
    local = samples(model, rng, 30)
    table = base_table(model, local)
    settings = RoundSettings(rate=0.3, table_rate=3.0, freeze_histories=False)
    tuned = tune(model, model.base, table, local, None, settings, np.random.default_rng(0)).weights
    part = part_of_the_way(model, tuned, table, share)
    assert part.rows.ids.tolist() == tuned.rows.ids.tolist() and len(part.rows.ids)
    for name, tensor in tuned.dense.items():
        base = model.base.dense[name]
        np.testing.assert_allclose(part.dense[name], (1 - share) * base + share * tensor, atol=1e-6)
    at = table.local(tuned.rows.ids)
    for name, moved in tuned.rows.tensors.items():
        np.testing.assert_allclose(
            part.rows.tensors[name], (1 - share) * table.tensors[name][at] + share * moved, atol=1e-6
        )


def test_a_round_takes_one_sample_to_train_on_and_one_to_judge_by():
    assert [enough(n, RoundSettings(min_local=0)) for n in range(4)] == [False, False, True, True]
    assert not enough(5, RoundSettings(min_local=6)) and enough(6, RoundSettings(min_local=6))


def test_half_a_step_is_half_way(model, rng):
    local = samples(model, rng, 40)
    table, whole = tuned(model, local, interpolation=1.0, freeze_histories=False)
    _, half = tuned(model, local, interpolation=0.5, freeze_histories=False)
    for name, base in model.base.dense.items():
        np.testing.assert_allclose(half.dense[name] - base, (whole.dense[name] - base) / 2, atol=1e-5)
    moved = whole.rows.tensors["item.weight"] - table.tensors["item.weight"][table.local(whole.rows.ids)]
    halved = half.rows.tensors["item.weight"] - table.tensors["item.weight"][table.local(half.rows.ids)]
    np.testing.assert_allclose(halved, moved / 2, atol=1e-5)


def test_histories_do_not_move_rows_unless_asked(model, rng):
    local, kept = samples(model, rng, 20), samples(model, rng, 40)
    weights = np.ones(40, np.float32)
    _, frozen = tuned(model, local, kept, weights, row_steps=0)
    _, free = tuned(model, local, kept, weights, row_steps=0, freeze_histories=False)
    offered, own = set(kept.columns["item"].tolist()), set(local.ids(VOCABULARY).tolist())
    assert set(frozen.rows.ids.tolist()) == offered - own, "what is shown moves, and what is the user's own does not"
    assert own & set(free.rows.ids.tolist()), "histories moved with the samples"


def test_rows_learn_at_a_rate_of_their_own(model, rng):
    local = samples(model, rng, 30)
    sizes = []
    for rate in (0.0, 0.1, 1.0):
        table, found = tuned(model, local, table_rate=rate, freeze_histories=False)
        before = table.tensors["item.weight"][table.local(found.rows.ids)]
        sizes.append(float(np.abs(found.rows.tensors["item.weight"] - before).sum()))
    assert sizes[0] == 0 < sizes[1] < sizes[2]


def test_labels_are_corrected_to_the_prior():
    labels = np.array([1, 1, 1, 0, 0.5], np.float32)
    for prior in (0.2, 0.9):
        assert corrected(labels, prior).mean() == pytest.approx(prior, abs=1e-6)
    assert (corrected(labels, 0.2) <= labels).all() and (corrected(labels, 0.9) >= labels).all()
    ones = np.ones(4, np.float32)
    assert corrected(ones, 0.3) is ones, "one class only stays as it is"


def test_what_serves_is_tuned_anew_on_all_local_samples_and_keeps_what_candidates_moved(model, rng):
    local, held_out = samples(model, rng, 30, liked=0.9), samples(model, rng, 30, liked=0.1)
    everything = SampleBatch.concatenate([local, held_out])
    item = np.setdiff1d(np.arange(1, ITEMS), everything.ids(VOCABULARY))[:20].astype(np.int32)
    none = np.zeros(20, np.int32)
    kept = SampleBatch(local.schema, {"item": item, "history": Ragged(none[:0], none, none)}, none + np.float32(0.9))
    kept = Augmentation.of(with_history_of(kept, local), None)
    table = base_table(model, everything, kept.samples)
    settings = RoundSettings(rate=0.3, table_rate=3.0, epochs=10, freeze_histories=False)
    tuned = tune(model, model.base, table, local, kept, settings, np.random.default_rng(0))

    def passes(kept, used):
        return tune(model, model.base, table, everything, kept, used, np.random.default_rng(1)).weights

    learned = learn_held_out(tuned, kept, settings, passes)
    anew = passes(None, settings)
    for name, tensor in anew.dense.items():
        np.testing.assert_array_equal(learned.dense[name], tensor)
    for ids, one in ((anew.rows.ids, anew), (item, tuned.weights)):
        at, there = np.searchsorted(learned.rows.ids, ids), np.searchsorted(one.rows.ids, ids)
        np.testing.assert_array_equal(learned.rows.tensors["item.weight"][at], one.rows.tensors["item.weight"][there])
    assert set(learned.rows.ids.tolist()) == {*item.tolist(), *everything.ids(VOCABULARY).tolist()}
    joined = msgspec.structs.replace(settings, row_steps=0)
    learned = learn_held_out(tuned, kept, joined, passes)
    anew = passes(kept, joined)
    for name, tensor in anew.dense.items():
        np.testing.assert_array_equal(learned.dense[name], tensor, "candidates that join the passes join them again")


def test_passes_see_the_rows_of_their_own_samples_only(model, rng, monkeypatch):
    """A table that holds thousands of candidates' rows beside must cost nothing and change nothing."""
    local = samples(model, rng, 40)
    heights = []
    original = personalizing.train

    def watched(graph, values, *args, **kwargs):
        heights.append(len(values["item.weight"]))
        return original(graph, values, *args, **kwargs)

    monkeypatch.setattr(personalizing, "train", watched)
    found = []
    for ids in (local.ids(VOCABULARY), np.arange(1, ITEMS, dtype=np.int32)):
        table = model.table(ids, model.base)
        settings = RoundSettings(freeze_histories=False)
        found.append(tune(model, model.base, table, local, None, settings, np.random.default_rng(0)).weights)
    few, all_of_them = found
    assert heights == [len(np.unique(local.ids(VOCABULARY))) + 1] * 2, "padding beside"
    np.testing.assert_array_equal(few.rows.ids, all_of_them.rows.ids)
    for name, tensor in few.tensors().items():
        np.testing.assert_array_equal(tensor, all_of_them.tensors()[name])


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("joined", [True, False])
def test_passes_end_when_held_out_samples_are_predicted_no_better(model, rng, frozen, joined):
    local, kept, held_out = (
        samples(model, rng, 60),
        Augmentation.of(samples(model, rng, 20), None),
        samples(model, rng, 12),
    )
    table = base_table(model, local, held_out, kept.samples)
    wild = RoundSettings(rate=0.5, table_rate=5.0, freeze_histories=frozen, row_steps=0 if joined else 1, epochs=30)

    def after(settings, held_out=None):
        rng = np.random.default_rng(0)
        return tune(model, model.base, table, local, kept, settings, rng, held_out)

    patient = msgspec.structs.replace(wild, patience=4)
    found = after(patient, held_out)
    assert after(patient).passes == 30, "nothing is held out that could end them"
    assert after(patient, held_out.take(np.arange(2))).passes == 30, "two samples say nothing"
    assert after(wild, held_out).passes == 30, "and nobody asked"

    def loss(epochs):
        settings, rng = msgspec.structs.replace(wild, epochs=epochs), np.random.default_rng(0)
        one = tune(model, model.base, table, local, kept if joined else None, settings, rng).weights
        logits = model.logits(held_out, personal_table(table, one), one)
        return log_loss(held_out.labels, at_level(logits, model.logits(held_out, table, model.base)))

    tried = [loss(epochs) for epochs in range(min(found.passes + 4, 30) + 1)]
    assert int(np.argmin(tried)) == found.passes < 30
