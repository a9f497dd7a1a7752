"""Weights stored as halves or bytes: how far they may be off, what they cost, and that devices use them as they are."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from device_runtime.bundle import BlobStore, RoundSettings
from device_runtime.cli import main
from device_runtime.engines import open_engine
from device_runtime.errors import InputError, WireError
from device_runtime.identity import Signer
from device_runtime.model import Model, personal_table
from device_runtime.personalize import tune
from device_runtime.quantized import SCALE, widened
from device_runtime.samples import Ragged, SampleBatch
from device_runtime.tables import LocalTable
from device_runtime.wire import MatchAnswer, decode_answer, encode_answer
from export.command import told
from export.package import Source, build
from export.quantize import FORMS, MADE_UP, loss_of, narrowed
from tests.toy import ITEMS, random_features

WEIGHTS = npst.arrays(
    np.float32,
    npst.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=9),
    elements=st.floats(-1000, 1000, width=32),
)


@given(WEIGHTS, st.sampled_from(FORMS), st.booleans())
def test_a_weight_is_off_by_half_a_step_at_most(weight, form, rows):
    found = narrowed({"w": weight}, form, rows)
    wide = widened(found)
    assert set(wide) == {"w"} and wide["w"].dtype == np.float32 and wide["w"].shape == weight.shape
    off = np.abs(wide["w"].astype(np.float64) - weight)
    if form == "fp32" and not rows:
        assert not off.any()
    elif SCALE + "w" in found:
        assert form == "int8" and found["w"].dtype == np.int8 and found[SCALE + "w"].dtype == np.float16
        largest = np.abs(weight).max(tuple(range(1, weight.ndim)), initial=0, keepdims=True)
        # a step is a 127th of the row's largest, rounded up to a half: by 2**-10, and 2**-24 among the smallest
        step = largest.astype(np.float64) / 127 * (1 + 2.0**-10) + 2.0**-24
        assert (off <= step / 2 + 1e-7 * largest).all()
    else:
        assert found["w"].dtype == np.float16
        assert (off <= np.abs(weight.astype(np.float64)) * 2.0**-11 + 2.0**-25).all()


@given(WEIGHTS.filter(lambda w: w.ndim > 1))
def test_what_is_stored_once_is_stored_the_same_again(weight):
    """A row that came through a bundle and goes into another loses nothing more than a step's rounding."""
    once = widened(narrowed({"w": weight}, "int8", True))["w"]
    again = widened(narrowed({"w": once}, "int8", True))["w"]
    np.testing.assert_allclose(again, once, rtol=2.0**-9, atol=2.0**-23)


def test_attributes_are_stored_as_they_are():
    categories = np.arange(12).reshape(4, 3)
    for form in FORMS:
        assert narrowed({"c": categories}, form, True)["c"].dtype == np.int32
        np.testing.assert_array_equal(widened(narrowed({"c": categories}, form, False))["c"], categories)


@pytest.mark.parametrize(
    ("weight", "form", "message"),
    [
        ([1.0], "int4", "weights cannot be stored as 'int4'; choose fp32, fp16, int8"),
        ([1.0, np.nan], "fp32", "'w' holds numbers that are not finite"),
        ([[np.inf]], "int8", "'w' holds numbers that are not finite"),
        ([70000.0], "fp16", "'w' reaches 7e\\+04, which float16 cannot hold"),
        ([[1e7]], "int8", "'scale:w' reaches 7.87e\\+04, which float16 cannot hold"),
    ],
)
def test_what_cannot_be_stored_is_refused(weight, form, message):
    with pytest.raises(InputError, match=message):
        narrowed({"w": np.array(weight, np.float32)}, form, False)


def test_the_command_knows_the_forms_and_no_others(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["export", "--model", "m", "--out", "o", "--key", "k", "--answer-key", "ab", "--rank-weights", "int4"])
    assert stop.value.code == 2
    assert "choose from fp32, fp16, int8" in capsys.readouterr().err.replace("'", "")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"scale:w": np.ones(2, np.float16)}, "'scale:w' must have one number for each row of 'w': there is no such"),
        ({"w": np.ones((3, 2), np.int8), "scale:w": np.ones(2, np.float16)}, r"it has \[2\] for \[3, 2\]"),
        ({"w": np.ones((2, 2), np.int8), "scale:w": np.ones((2, 2), np.float16)}, r"it has \[2, 2\] for \[2, 2\]"),
    ],
)
def test_scales_that_do_not_fit_are_refused(tensors, message):
    with pytest.raises(WireError, match=message):
        widened(tensors)


def samples_of(schema, rng, count):
    features = random_features(rng, count)
    present = features["history"] != 0
    lengths = present.sum(1).astype(np.int32)
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1])).astype(np.int32)
    columns = {
        "item": features["item"].astype(np.int32),
        "history": Ragged(features["history"][present].astype(np.int32), starts, lengths),
    }
    return SampleBatch(schema, columns, (rng.random(count) < 0.5).astype(np.float32))


def test_the_loss_is_measured_on_the_model(small_din, rng):
    held = {n: t.detach().numpy() for n, t in (*small_din.named_parameters(), *small_din.named_buffers())}
    held_out = samples_of(small_din.schema, rng, 300)
    found = {}
    for form in FORMS:
        rows = narrowed({n: held[n] for n in small_din.sliced}, form, True)
        dense = narrowed({n: t for n, t in held.items() if n not in small_din.sliced}, form, False)
        found[form] = loss_of(small_din, dense | rows, form, held_out)
        assert (found[form].form, found[form].samples) == (form, 300)
        made_up = loss_of(small_din, dense | rows, form, None)
        assert made_up.auc_change is None and made_up.samples == MADE_UP and made_up.max_logit_difference > 0
    assert 0 < found["fp32"].max_logit_difference < found["fp16"].max_logit_difference
    assert 2 * found["fp16"].max_logit_difference < found["int8"].max_logit_difference
    assert all(abs(one.auc_change) < 0.05 for one in found.values())
    assert "AUC " in told(found["int8"])
    one_class = SampleBatch(held_out.schema, held_out.columns, np.ones(300, np.float32))
    assert loss_of(small_din, dense | rows, "int8", one_class).auc_change is None


def test_a_wrong_scale_shows_in_the_loss(small_din):
    held = {n: t.detach().numpy() for n, t in (*small_din.named_parameters(), *small_din.named_buffers())}
    whole = narrowed(held, "int8", True)
    right = loss_of(small_din, whole, "int8", None).max_logit_difference
    wrong = loss_of(small_din, whole | {"scale:out.weight": whole["scale:out.weight"] * 2}, "int8", None)
    assert wrong.max_logit_difference > 10 * right


@pytest.fixture(scope="module")
def narrow(small_din, tmp_path_factory):
    """A bundle whose weights are bytes, opened."""
    folder = tmp_path_factory.mktemp("narrow")
    rng = np.random.default_rng(1)
    source = Source(
        *("toy", "DIN", small_din, ["", *(f"item-{i}" for i in range(1, ITEMS))], None, {}, RoundSettings()),
        rank_weights="int8",
        held_out=samples_of(small_din.schema, rng, 200),
    )
    manifest = build(
        source,
        folder / "bundle",
        version=1,
        signer=Signer.create(folder / "release.key"),
        answer_key=Signer.create(folder / "answer.key").public,
        engines=[open_engine("onnx")],
        progress=lambda _: None,
    )
    return Model.open(manifest, open_engine("onnx"), BlobStore(folder / "bundle" / "blobs"))


def test_a_device_ranks_within_the_loss_that_the_manifest_states(narrow, small_din, rng):
    stated = narrow.manifest.rank_weights
    assert (stated.form, stated.samples) == ("int8", 200) and stated.auc_change is not None
    asked = samples_of(narrow.manifest.schema, np.random.default_rng(1), 200)  # those it was measured on
    table = narrow.table(asked.ids("item"), narrow.base)
    logit = narrow.logits(asked, table, narrow.base)
    history = torch.from_numpy(asked.columns["history"].dense(small_din.schema["history"].bound).astype(np.int64))
    with torch.no_grad():
        exact = small_din(torch.from_numpy(asked.columns["item"].astype(np.int64)), history).numpy()
    off = np.abs(logit - exact).max()
    assert off == pytest.approx(stated.max_logit_difference, abs=1e-5)


def test_a_device_trains_from_them(narrow, rng):
    mine = samples_of(narrow.manifest.schema, rng, 60)
    table = narrow.table(mine.ids("item"), narrow.base)
    assert table.tensors["item.weight"].dtype == np.float32 and "scale:item.weight" not in table.tensors
    found = tune(narrow, narrow.base, table, mine, None, RoundSettings(rate=0.05), rng).weights
    assert found.rows.tensors["item.weight"].dtype == np.float32
    again = narrow.table(mine.ids("item"), found)
    expected = personal_table(table, found)
    np.testing.assert_array_equal(again.tensors["item.weight"], expected.tensors["item.weight"])
    np.testing.assert_array_equal(again.tensors["item_categories"], table.tensors["item_categories"])


def test_rows_are_the_same_from_a_shard_and_from_an_answer(narrow, bundle, rng):
    candidates = samples_of(narrow.manifest.schema, rng, 20)
    ids = candidates.ids("item")
    shard = narrow.shard(0)
    rows = shard.rows(ids)
    assert rows.tensors["item.weight"].dtype == np.int8
    frame = encode_answer(MatchAnswer(candidates, {"item": rows}))
    arrived = decode_answer(frame, narrow.manifest.schema).rows["item"]
    one, other = (LocalTable.build(ids, [part], narrow.padding) for part in (rows, arrived))
    for name in one.tensors:
        assert one.tensors[name].dtype == other.tensors[name].dtype
        np.testing.assert_array_equal(one.tensors[name], other.tensors[name])
    _, as_halves = bundle
    model = Model.open(as_halves, open_engine("onnx"), BlobStore(bundle[0] / "blobs"))
    halves = encode_answer(MatchAnswer(candidates, {"item": model.shard(0).rows(ids)}))
    assert len(frame) < len(halves)
    assert narrow.manifest.weights.size < 0.45 * as_halves.weights.size
    assert narrow.manifest.encoder != as_halves.encoder, "pools are embedded by the weights that devices have"
