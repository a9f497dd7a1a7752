"""Tuning and judging, on a real exported graph."""

import math

import msgspec
import numpy as np
import pytest

from device_runtime import model as models
from device_runtime import personalize as personalizing
from device_runtime import reach as reaching
from device_runtime.bundle import BlobStore, RoundSettings
from device_runtime.candidates import as_labels, as_own, offsets, own_taste, sigmoid, with_history_of
from device_runtime.engines import open_engine
from device_runtime.local import personal_table
from device_runtime.metrics import at_level, log_loss
from device_runtime.model import TASTE, VOCABULARY, Model, Weights
from device_runtime.personalize import (
    consider,
    corrected,
    enough,
    judge,
    learn_held_out,
    part_of_the_way,
    split,
    students,
    tune,
)
from device_runtime.reach import reach
from device_runtime.samples import Ragged, SampleBatch
from device_runtime.tables import LocalTable
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


@pytest.mark.parametrize(
    ("after", "activate", "why"),
    [
        ([2, -2, 2, -2], True, "no evidence of harm"),
        ([-3, 3, -3, 3], False, "log loss rose"),
        ([5.1, 4.9, 5.1, 4.9], True, "no evidence of harm"),
        ([np.nan, 0, 0, 0], False, "not finite"),
    ],
)
def test_the_judge_refuses_on_evidence_of_harm_alone(after, activate, why):
    labels = np.array([1, 0, 1, 0], np.float32)
    before = np.array([0.1, -0.1, 0.1, -0.1], np.float32)
    verdict = judge(labels, before, np.array(after, np.float32), RoundSettings())
    assert verdict.activate is activate and why in verdict.reason
    assert verdict.samples == 4


def test_doubt_decides_how_much_evidence_it_takes(rng):
    labels = np.tile([1, 0], 20).astype(np.float32)
    before = np.zeros(40, np.float32)
    after = (0.5 * rng.normal(size=40)).astype(np.float32)
    strict = judge(labels, before, after, RoundSettings(tolerance=0.0))
    assert not strict.activate and "standard error" in strict.reason, "noise costs some log loss"
    assert judge(labels, before, after, RoundSettings(tolerance=50.0)).activate
    assert judge(labels, before, -10 * labels, RoundSettings(judge=False)).reason == "the judge is off"


def test_the_judge_copes_with_one_class_and_one_sample():
    ones = np.ones(3, np.float32)
    verdict = judge(ones, np.zeros(3, np.float32), ones, RoundSettings())
    assert verdict.activate and verdict.auc_before is None
    for few in (1, 2):
        alone = judge(ones[:few], ones[:few], -9 * ones[:few], RoundSettings())
        assert alone.activate and "too few held-out samples" in alone.reason, "they show nothing of their own spread"


HARM, HALF, LABELS = [-6, 6, -6, 6], [0.2, -0.2, 0.2, -0.2], np.array([1, 0, 1, 0], np.float32)


@pytest.mark.parametrize(
    ("whole", "half", "partial", "share", "activate"),
    [
        (HALF, HARM, 0.5, 1.0, True),  # nobody asks for a part of what may serve
        (HARM, HALF, 0.5, 0.5, True),
        (HARM, HARM, 0.5, 1.0, False),
        (HARM, HALF, 0.0, 1.0, False),
        ([np.nan] * 4, [np.nan] * 4, 0.5, 1.0, False),
    ],
)
def test_where_the_whole_way_harms_a_part_of_it_may_serve(whole, half, partial, share, activate):
    asked = []

    def after(part):
        asked.append(part)
        return np.array(whole if part == 1 else half, np.float32)

    before = np.array([0.1, -0.1, 0.1, -0.1], np.float32)
    verdict = consider(LABELS, before, after, RoundSettings(partial=partial))
    assert (verdict.activate, verdict.share) == (activate, share)
    assert asked == [1.0, 0.5][: 1 + (whole is not HALF and partial > 0)]
    served = judge(LABELS, before, np.array(half if share < 1 else whole, np.float32), RoundSettings())
    assert verdict.loss_after == pytest.approx(served.loss_after, nan_ok=True)
    assert ("50% of the way, since of all of it held-out log loss rose" in verdict.reason) == (share < 1)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_part_of_the_way_is_an_average_of_weights(model, rng, share):
    local = samples(model, rng, 30)
    table = base_table(model, local)
    settings = RoundSettings(rate=0.3, table_rate=3.0, freeze_histories=False)
    tuned = tune(model, model.base, table, local, None, None, settings, np.random.default_rng(0)).weights
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


@pytest.mark.parametrize(("freedom", "exact"), [(2, 4.527), (3, 3.307), (4, 2.869), (9, 2.320), (30, 2.087)])
def test_few_samples_are_asked_for_more_evidence(freedom, exact):
    """Against the exact quantiles, which are as rare as 2 of the normal distribution."""
    assert students(2.0, freedom) == pytest.approx(exact, rel=0.05)
    assert students(2.0, 1) > 13.9 and students(0.0, freedom) == 0 and math.isfinite(students(50.0, 1))


@pytest.mark.parametrize("count", [3, 4, 8])
def test_a_handful_of_samples_hardly_ever_refuses_what_does_nothing(rng, count):
    before, refused = np.zeros(count, np.float32), []
    for _ in range(400):
        labels, noise = rng.integers(0, 2, count).astype(np.float32), 0.1 * rng.normal(size=count).astype(np.float32)
        refused.append(not judge(labels, before, noise, RoundSettings()).activate)
    assert np.mean(refused) < 0.1


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


# -- candidates ----------------------------------------------------------------------------------------------------

POOLED, NEAREST = RoundSettings(matching="pooled"), RoundSettings(matching="nearest")


def answered(model, rng, offset):
    """Candidates as they come: no history, an offset in place of the label."""
    found = samples(model, rng, 12)
    none = np.zeros(12, np.int32)
    columns = {"item": found.columns["item"], "history": Ragged(none[:0], none, none)}
    return SampleBatch(found.schema, columns, as_labels(np.full(12, float(offset))))


def base_table(model, *batches):
    return model.table(SampleBatch.concatenate(list(batches)).ids(VOCABULARY), model.base)


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
    found = tune(model, model.base, table, local, soft, np.ones(60, np.float32), given, rng).weights
    after = model.logits(kept, personal_table(table, found), found)
    return table, local, found, after - before, asked


def test_what_serves_is_tuned_anew_on_all_local_samples_and_keeps_what_candidates_moved(model, rng):
    local, held_out = samples(model, rng, 30, liked=0.9), samples(model, rng, 30, liked=0.1)
    everything = SampleBatch.concatenate([local, held_out])
    item = np.setdiff1d(np.arange(1, ITEMS), everything.ids(VOCABULARY))[:20].astype(np.int32)
    none = np.zeros(20, np.int32)
    kept = SampleBatch(local.schema, {"item": item, "history": Ragged(none[:0], none, none)}, none + np.float32(0.9))
    kept = with_history_of(kept, local)
    table, weights = base_table(model, everything, kept), np.ones(20, np.float32)
    settings = RoundSettings(rate=0.3, table_rate=3.0, epochs=10, freeze_histories=False)
    tuned = tune(model, model.base, table, local, kept, weights, settings, np.random.default_rng(0))

    def passes(kept, weights, used):
        return tune(model, model.base, table, everything, kept, weights, used, np.random.default_rng(1)).weights

    learned = learn_held_out(tuned, kept, weights, settings, passes)
    anew = passes(None, None, settings)
    for name, tensor in anew.dense.items():
        np.testing.assert_array_equal(learned.dense[name], tensor)
    for ids, one in ((anew.rows.ids, anew), (item, tuned.weights)):
        at, there = np.searchsorted(learned.rows.ids, ids), np.searchsorted(one.rows.ids, ids)
        np.testing.assert_array_equal(learned.rows.tensors["item.weight"][at], one.rows.tensors["item.weight"][there])
    assert set(learned.rows.ids.tolist()) == {*item.tolist(), *everything.ids(VOCABULARY).tolist()}
    joined = msgspec.structs.replace(settings, row_steps=0)
    learned = learn_held_out(tuned, kept, weights, joined, passes)
    anew = passes(kept, weights, joined)
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
        found.append(tune(model, model.base, table, local, None, None, settings, np.random.default_rng(0)).weights)
    few, all_of_them = found
    assert heights == [len(np.unique(local.ids(VOCABULARY))) + 1] * 2, "padding beside"
    np.testing.assert_array_equal(few.rows.ids, all_of_them.rows.ids)
    for name, tensor in few.tensors().items():
        np.testing.assert_array_equal(tensor, all_of_them.tensors()[name])


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("joined", [True, False])
def test_passes_end_when_held_out_samples_are_predicted_no_better(model, rng, frozen, joined):
    local, kept, weights = samples(model, rng, 60), samples(model, rng, 20), np.ones(20, np.float32)
    held_out = samples(model, rng, 12)
    table = base_table(model, SampleBatch.concatenate([local, held_out]), kept)
    wild = RoundSettings(rate=0.5, table_rate=5.0, freeze_histories=frozen, row_steps=0 if joined else 1, epochs=30)

    def after(settings, held_out=None):
        rng = np.random.default_rng(0)
        return tune(model, model.base, table, local, kept, weights, settings, rng, held_out)

    patient = msgspec.structs.replace(wild, patience=4)
    found = after(patient, held_out)
    assert after(patient).passes == 30, "nothing is held out that could end them"
    assert after(patient, held_out.take(np.arange(2))).passes == 30, "two samples say nothing"
    assert after(wild, held_out).passes == 30, "and nobody asked"

    def loss(epochs):
        alone = (kept, weights) if joined else (None, None)
        settings, rng = msgspec.structs.replace(wild, epochs=epochs), np.random.default_rng(0)
        one = tune(model, model.base, table, local, *alone, settings, rng).weights
        logits = model.logits(held_out, personal_table(table, one), one)
        return log_loss(held_out.labels, at_level(logits, model.logits(held_out, table, model.base)))

    tried = [loss(epochs) for epochs in range(min(found.passes + 4, 30) + 1)]
    assert int(np.argmin(tried)) == found.passes < 30


def test_row_steps_reach_soft_labels_and_leave_the_users_own_rows(model, rng):
    _, local, found, moved, asked = lifted(model, rng, row_steps=3)
    assert np.median(np.abs(moved - asked)) < 1e-3 and np.corrcoef(moved, asked)[0, 1] > 0.8
    assert not set(found.rows.ids.tolist()) & set(local.ids(VOCABULARY).tolist())


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


def test_samples_of_others_and_empty_answers_stay_as_they_are(model, rng):
    local, other = samples(model, rng, 10), samples(model, rng, 5)
    table = base_table(model, local, other)
    assert as_own(other, local, local, model, table, NEAREST) == (other, None)
    none = other.take(slice(0, 0))
    assert as_own(none, local, local, model, table, POOLED) == (none, None)
