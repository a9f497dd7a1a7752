import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import wire
from device_runtime.errors import WireError
from device_runtime.samples import Feature, Ragged, SampleBatch, Schema
from device_runtime.wire import MatchAnswer, MatchQuery, Rows
from tests.device_runtime.batches import SCHEMA, assert_same, sample_batches


@given(sample_batches())
def test_a_contribution_comes_back_as_it_was(batch):
    assert_same(wire.decode_contribution(wire.encode_contribution(batch), SCHEMA), batch)


@given(sample_batches(), st.text(max_size=20))
def test_an_answer_comes_back_as_it_was(batch, shortfall):
    ids = batch.ids("item")
    rng = np.random.default_rng(len(ids))
    rows = Rows(
        ids,
        {
            "item.weight": rng.normal(size=(len(ids), 3)).astype(np.float16),
            "item_categories": rng.integers(0, 9, (len(ids), 2)).astype(np.int32),
        },
    )
    answer = wire.decode_answer(wire.encode_answer(MatchAnswer(batch, {"item": rows}, shortfall)), SCHEMA)
    assert_same(answer.candidates, batch)
    assert answer.shortfall == shortfall
    np.testing.assert_array_equal(answer.rows["item"].ids, ids)
    for name, tensor in rows.tensors.items():
        assert answer.rows["item"].tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(answer.rows["item"].tensors[name], tensor)


def test_a_query_comes_back_in_half_precision(rng):
    query = MatchQuery("abcd" * 4, rng.normal(size=(8, 64)).astype(np.float32), 400, np.array([1, 5], np.int32))
    data = wire.encode_query(query)
    found = wire.decode_query(data)
    assert (found.encoder, found.limit, found.held.tolist()) == (query.encoder, 400, [1, 5])
    np.testing.assert_allclose(found.centroids, query.centroids, atol=2e-3)
    assert len(data) < 1200


def test_histories_of_one_contributor_are_sent_once(rng):
    schema = Schema((Feature("item", "id", "item"), Feature("history", "ids", "item", 50)))
    sequence = rng.integers(1, 4000, 250).astype(np.int32)
    ends = np.arange(50, 250, dtype=np.int32)
    shared = SampleBatch(
        schema,
        {"item": sequence[ends], "history": Ragged(sequence, ends - 50, np.full(200, 50, np.int32))},
        rng.integers(0, 2, 200).astype(np.float32),
    )
    apart = SampleBatch(
        schema,
        {
            "item": sequence[ends],
            "history": Ragged(
                rng.integers(1, 4000, 10_000).astype(np.int32),
                np.arange(0, 10_000, 50, dtype=np.int32),
                np.full(200, 50, np.int32),
            ),
        },
        shared.labels,
    )
    assert len(wire.encode_contribution(shared)) / 200 < 6
    assert len(wire.encode_contribution(shared)) * 10 < len(wire.encode_contribution(apart))


@settings(max_examples=60)
@given(sample_batches(), st.data())
def test_a_flipped_bit_or_a_cut_is_noticed(batch, data):
    frame = bytearray(wire.encode_contribution(batch))
    at = data.draw(st.integers(0, len(frame) * 8 - 1))
    cut = bytes(frame[: at // 8])
    frame[at // 8] ^= 1 << (at % 8)
    for damaged in (bytes(frame), cut):
        with pytest.raises(WireError):
            wire.decode_contribution(damaged, SCHEMA)


def _sealed(body: bytes, kind: int = 3, version: int = wire.VERSION, flags: int = 0) -> bytes:
    head = wire.MAGIC + bytes([kind, version, flags])
    return head + wire._digest(head + body) + body


@given(st.binary(max_size=200))
def test_a_well_sealed_frame_of_noise_is_refused(noise):
    with pytest.raises(WireError):
        wire.decode_contribution(_sealed(noise), SCHEMA)


def test_other_versions_kinds_and_bombs_are_refused_with_a_reason(rng):
    with pytest.raises(WireError, match="version 9; this program reads version 1"):
        wire.decode_contribution(_sealed(b"", version=9), SCHEMA)
    with pytest.raises(WireError, match="kind 1 stands where kind 3"):
        wire.decode_contribution(_sealed(b"", kind=1), SCHEMA)
    bomb = zstandard.ZstdCompressor().compress(bytes(wire.MAX_BODY + 1))
    with pytest.raises(WireError, match="at most"):
        wire.decode_contribution(_sealed(bomb, flags=1), SCHEMA)
    centroids = np.full((2, 4), np.nan, np.float32)
    with pytest.raises(WireError, match="finite"):
        wire.decode_query(wire.encode_query(MatchQuery("e", centroids, 5, np.zeros(0, np.int32))))


def test_a_column_that_points_outside_its_ids_is_refused():
    batch = wire._Batch({"item": wire.pack(np.array([5]))}, [], wire.pack(np.array([1])), False)
    columns = [wire._Column("item", "id", (wire.pack(np.array([3])),))]
    with pytest.raises(WireError, match="outside its 1 ids"):
        wire._samples(wire._Batch(batch.vocabularies, columns, batch.labels, False), SCHEMA)
    columns = [wire._Column("colour", "id", (wire.pack(np.array([0])),))]
    with pytest.raises(WireError, match="does not know"):
        wire._samples(wire._Batch(batch.vocabularies, columns, batch.labels, False), SCHEMA)
