import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime import arrays, framing, wire
from device_runtime.errors import InputError, WireError
from device_runtime.messages import PhaseOverhead, RoundReport, from_json, to_json
from device_runtime.samples import Feature, Ragged, SampleBatch, Schema
from device_runtime.wire import DirectoryQuery, MatchAnswer, MatchQuery, Rows, WeightUpdate
from tests.device_runtime.batches import SCHEMA, UNORDERED, assert_same, sample_batches


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


def test_a_query_comes_back_to_a_254th(rng):
    query = MatchQuery("abcd" * 4, rng.normal(size=(8, 64)).astype(np.float32), 400, np.array([1, 5], np.int32))
    data = wire.encode_query(query)
    found = wire.decode_query(data)
    assert (found.encoder, found.limit, found.held.tolist()) == (query.encoder, 400, [1, 5])
    largest = np.abs(query.centroids).max(1, keepdims=True)
    assert (np.abs(found.centroids - query.centroids) <= largest / 253).all()
    assert len(data) < 640


WEIGHTS = st.binary(min_size=1, max_size=256).filter(any)
SHARDS = st.sets(st.integers(0, 999), max_size=999)


@given(st.text(max_size=20), WEIGHTS, st.integers(0, 2**40), SHARDS)
def test_a_directory_query_comes_back_as_it_was_and_stays_below_a_kilobyte(name, weights, limit, held):
    """Of a catalogue of a thousand shards, which is a million items, whatever is held."""
    shards = np.array(sorted(held), np.int32)
    query = DirectoryQuery("abcd" * 4, name, np.frombuffer(weights, np.uint8), limit, shards)
    data = wire.encode_directory_query(query)
    found = wire.decode_query(data)
    assert isinstance(found, DirectoryQuery)
    assert (found.encoder, found.directory, found.limit) == (query.encoder, name, limit)
    np.testing.assert_array_equal(found.weights, query.weights)
    np.testing.assert_array_equal(found.held, shards)
    assert len(data) <= 1024


@given(WEIGHTS, st.data())
def test_a_directory_query_that_was_damaged_is_refused(weights, data):
    query = DirectoryQuery("abcd" * 4, "ef01" * 4, np.frombuffer(weights, np.uint8), 9, np.zeros(0, np.int32))
    frame = bytearray(wire.encode_directory_query(query))
    at = data.draw(st.integers(0, len(frame) * 8 - 1))
    cut = bytes(frame[: at // 8])
    frame[at // 8] ^= 1 << (at % 8)
    for damaged in (bytes(frame), cut):
        with pytest.raises(WireError):
            wire.decode_query(damaged)


@given(st.binary(max_size=200), st.sampled_from([1, 7]))
def test_a_well_sealed_query_of_noise_is_refused(noise, kind):
    with pytest.raises(WireError):
        wire.decode_query(_sealed(noise, kind))


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (np.zeros(0, np.uint8), "1 to 256 weights; given 0"),
        (np.ones(257, np.uint8), "1 to 256 weights; given 257"),
        (np.zeros(9, np.uint8), "all 0: the query asks for nothing"),
        (np.full(4, np.nan, np.float32), "bytes in a row, not float32"),
        (np.ones((2, 2), np.uint8), "bytes in a row, not uint8"),
    ],
)
def test_weights_that_no_directory_has_are_refused_by_both_sides(weights, reason):
    nothing = np.zeros(0, np.int32)
    with pytest.raises(InputError, match=reason):
        wire.encode_directory_query(DirectoryQuery("e", "d", weights, 5, nothing))
    if weights.dtype == np.uint8 and weights.ndim == 1:
        body = wire._DirectoryQuery("e", "d", weights.tobytes(), 5, wire.pack(nothing))
        with pytest.raises(WireError, match=reason):
            wire.decode_query(wire._frame(7, body))


def test_a_directory_query_is_refused_by_those_who_expect_another_kind_or_limit():
    body = wire._DirectoryQuery("e", "d", b"\x01", -5, wire.pack(np.zeros(0, np.int32)))
    with pytest.raises(WireError, match="asks for -5 candidates"):
        wire.decode_query(wire._frame(7, body))
    with pytest.raises(WireError, match="a frame of kind 7 stands where kind 1 is expected"):
        framing.unseal(wire._frame(7, body), 1)
    with pytest.raises(WireError, match="not a CoDA frame"):
        wire.decode_query(b"CoDA\x07")


@given(sample_batches(UNORDERED))
def test_where_order_means_nothing_rows_come_back_as_multisets(batch):
    found = wire.decode_contribution(wire.encode_contribution(batch), UNORDERED)
    assert len(found) == len(batch)
    np.testing.assert_array_equal(found.columns["item"], batch.columns["item"])
    cut = batch.columns["history"].newest(UNORDERED["history"].bound)
    for i in range(len(batch)):
        assert sorted(found.columns["history"].row(i)) == sorted(cut.row(i))


def test_order_that_means_nothing_is_not_sent(rng):
    columns = {
        "item": np.ones(100, np.int32),
        "history": Ragged(
            rng.integers(1, 3000, 5000).astype(np.int32),
            np.arange(0, 5000, 50, dtype=np.int32),
            np.full(100, 50, np.int32),
        ),
    }
    sizes = []
    for ordered in (True, False):
        history = Feature("history", "ids", "item", 50, ordered)
        schema = Schema((Feature("item", "id", "item"), history))
        sizes.append(len(wire.encode_contribution(SampleBatch(schema, columns, np.ones(100, np.float32)))))
    assert sizes[1] < 0.7 * sizes[0]


def test_a_report_comes_back_and_takes_few_bytes():
    cost = {"cpu_user_s": 1 / 3, "cpu_system_s": 1 / 7, "wall_s": 2 / 3, "peak_mib": 61.123456789}
    phases = [
        PhaseOverhead(phase=name, peak_source="phase", bytes_stored=0, bytes_up=1234, bytes_down=56789, **cost)
        for name in ("pull", "encode", "match", "filter", "tune", "judge", "activate")
    ]
    report = RoundReport(
        round="0123456789abcdef", bundle=3, engine="onnx", outcome="kept", local=9, candidates=5, kept=1,
        verdict=None, phases=phases,
    )  # fmt: skip
    data = wire.encode_report(report)
    found = from_json(wire.decode_report(data), RoundReport, "it")
    assert found.phases[0].cpu_user_s == 0.3333 and found.phases[0].bytes_down == 56789
    assert msgspec.structs.replace(found, phases=phases) == report
    assert len(data) < len(to_json(report)) / 3
    bare = msgspec.structs.replace(report, phases=[])
    assert from_json(wire.decode_report(wire.encode_report(bare)), RoundReport, "it") == bare


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"phases": [1]}', b'{"phases": {"a": [1], "b": []}}', b"[" * 100_000, b'{"\xff": 1}']
)
def test_a_frame_without_a_report_is_refused(body):
    with pytest.raises(WireError):
        wire.decode_report(framing.seal(4, body))


@given(st.integers(0, 40), st.integers(0, 9), st.integers(0, 2**32))
def test_an_update_comes_back_to_a_254th_of_each_row(count, width, seed):
    rng = np.random.default_rng(seed)
    moved = Rows(np.arange(count, dtype=np.int32) * 7, {"item.weight": rng.normal(size=(count, width), scale=1e-4)})
    update = WeightUpdate("b1", {"bias": rng.normal(size=5).astype(np.float32)}, {"item": moved})
    found = wire.decode_update(wire.encode_update(update))
    assert found.base == "b1"
    np.testing.assert_array_equal(found.rows["item"].ids, moved.ids)
    sent, came = moved.tensors["item.weight"], found.rows["item"].tensors["item.weight"]
    assert came.dtype == np.float32 and came.shape == sent.shape
    assert (np.abs(came - sent) <= np.abs(sent).max(1, keepdims=True, initial=0) / 253).all()
    assert np.abs(found.dense["bias"] - update.dense["bias"]).max() <= np.abs(update.dense["bias"]).max() / 253


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


def _sealed(body: bytes, kind: int = 3, version: int = framing.VERSION, flags: int = 0) -> bytes:
    head = framing.MAGIC + bytes([kind, version, flags])
    return head + framing.digest(head + body) + body


@given(st.binary(max_size=200))
def test_a_well_sealed_frame_of_noise_is_refused(noise):
    with pytest.raises(WireError):
        wire.decode_contribution(_sealed(noise), SCHEMA)


def test_other_versions_kinds_and_bombs_are_refused_with_a_reason(rng):
    with pytest.raises(WireError, match="version 9; this program reads version 3"):
        wire.decode_contribution(_sealed(b"", version=9), SCHEMA)
    with pytest.raises(WireError, match="kind 1 stands where kind 3"):
        wire.decode_contribution(_sealed(b"", kind=1), SCHEMA)
    bomb = zstandard.ZstdCompressor().compress(bytes(framing.MAX_BODY + 1))
    with pytest.raises(WireError, match="at most"):
        wire.decode_contribution(_sealed(bomb, flags=1), SCHEMA)
    centroids = np.full((2, 4), np.nan, np.float32)
    with pytest.raises(InputError, match="not finite"):
        wire.encode_query(MatchQuery("e", centroids, 5, np.zeros(0, np.int32)))
    for part in (
        arrays.Scaled((2, 4), np.full(2, np.inf, "<f4").tobytes(), bytes(8)),
        arrays.Scaled((2, 4), bytes(8), bytes(9)),
        arrays.Scaled((-1, -4), b"", bytes(4)),
    ):
        with pytest.raises(WireError, match=r"finite|do not fill"):
            wire.decode_query(wire._frame(1, wire._Query("e", part, 5, wire.pack(np.zeros(0, np.int32)))))


def test_a_column_that_points_outside_its_ids_is_refused():
    batch = wire._Batch({"item": wire.pack(np.array([5]))}, [], wire.pack(np.array([1])), False)
    columns = [wire._Column("item", "id", (wire.pack(np.array([3])),))]
    with pytest.raises(WireError, match="outside its 1 ids"):
        wire._samples(wire._Batch(batch.vocabularies, columns, batch.labels, False), SCHEMA)
    ragged = (wire.pack(np.array([0])), wire.pack(np.array([-(1 << 63)])), wire.pack(np.array([1 << 62])))
    with pytest.raises(WireError, match="outside its 1 values"):
        wire._samples(
            wire._Batch(batch.vocabularies, [wire._Column("history", "ids", ragged)], batch.labels, False), UNORDERED
        )
    columns = [wire._Column("colour", "id", (wire.pack(np.array([0])),))]
    with pytest.raises(WireError, match="does not know"):
        wire._samples(wire._Batch(batch.vocabularies, columns, batch.labels, False), SCHEMA)
