"""Both sides mean the same by every byte: what hypothesis makes up is written by one and read by the other."""

from __future__ import annotations

import hashlib
import struct

import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey
from safetensors.numpy import load, save

from device_runtime import framing, packing, wire
from device_runtime.bundle import RoundSettings
from device_runtime.directory import Directory
from device_runtime.filtering import calibration
from device_runtime.identity import Signer, parse_authorization, request_text, verify
from device_runtime.journal import FilterView, Inputs, Progress
from device_runtime.messages import BundleRef, PhaseOverhead, RoundReport, Verdict, to_json
from device_runtime.personalize import consider
from device_runtime.samples import Schema
from device_runtime.wire import MatchAnswer, MatchQuery, Rows
from tests.android_demo.conftest import JavaError, compressed
from tests.device_runtime.batches import SCHEMA, UNORDERED, sample_batches
from tests.device_runtime.test_packing import COLUMNS, INT64

JSON = st.recursive(
    st.none() | st.booleans() | INT64 | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
COUNT = st.integers(0, 10**9)
COST = st.floats(0, 1e6) | st.just(0.0)
SHARE = st.none() | st.floats(0, 1)


@st.composite
def phases(draw):
    known = draw(st.booleans())
    return PhaseOverhead(
        phase=draw(st.sampled_from(("pull", "tune"))), cpu_user_s=draw(COST), cpu_system_s=draw(COST),
        wall_s=draw(COST), peak_mib=draw(COST), peak_source="phase", bytes_stored=draw(st.integers(-(10**9), 10**9)),
        bytes_up=draw(COUNT), bytes_down=draw(COUNT), energy_j=draw(COST) if known else None,
    )  # fmt: skip


VERDICTS = st.builds(
    Verdict, activate=st.booleans(), reason=st.text(max_size=40), samples=COUNT, loss_before=COST, loss_after=COST,
    auc_before=SHARE, auc_after=SHARE,
)  # fmt: skip
ALIKE = st.lists(phases(), max_size=4).filter(lambda found: len({p.energy_j is None for p in found}) < 2)
REPORTS = st.builds(
    RoundReport, round=st.text("0123456789abcdef", min_size=16, max_size=16), bundle=st.integers(0, 2**31 - 1),
    engine=st.just("executorch"), outcome=st.sampled_from(("kept", "activated", "failed")),
    local=st.integers(0, 10**6), candidates=st.integers(0, 10**6), kept=st.integers(0, 10**6),
    verdict=st.none() | VERDICTS, phases=ALIKE,
    error=st.sampled_from(("", "TrustError")), age_s=COST, auc_previous=SHARE,
)  # fmt: skip


def as_json(schema: Schema) -> bytes:
    return msgspec.json.encode(schema)


@given(st.binary(max_size=600))
@settings(deadline=None)  # a machine that is shared is slow at times
def test_the_checksum_of_frames(java, data):
    assert java("blake2b", data) == hashlib.blake2b(data, digest_size=8).digest()


@given(st.binary(max_size=300), st.integers(1, 600), st.sampled_from((1, 3, 9, 12, 19)), st.binary(max_size=100))
def test_java_reads_every_kind_of_zstd_block(java, seed, times, level, dictionary):
    rng = np.random.default_rng(len(seed))
    noise = rng.integers(0, 30, 3 * len(seed), np.uint8).tobytes()
    plain = (seed + noise) * times
    assert java("unzstd", compressed(plain, level, dictionary), dictionary) == plain


@given(st.binary(max_size=300), st.integers(1, 600), st.binary(max_size=100))
def test_python_reads_what_java_squeezes(java, seed, times, dictionary):
    plain = (seed + bytes(range(40))) * times + seed[::-1]
    shared = None
    if dictionary:
        shared = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    frame = java("zstd", plain, dictionary)
    assert zstandard.ZstdDecompressor(dict_data=shared).decompress(frame, allow_extra_data=False) == plain
    assert java("unzstd", frame, dictionary) == plain
    assert len(frame) < len(plain) + 16 + 3 * (len(plain) >> 17)


@pytest.mark.parametrize("level", [1, 5, 12, 19])
def test_java_reads_large_zstd_frames(java, rng, level):
    """Several blocks, repeated tables, long offsets, four streams of literals, and a text's Huffman codes."""
    words = [bytes(rng.integers(97, 123, rng.integers(2, 9), np.uint8)) for _ in range(3000)]
    text = b" ".join(words[i] for i in (rng.zipf(1.3, 120_000) - 1) % 3000)
    numbers = rng.geometric(0.02, 300_000).astype("<u2").tobytes()
    noise = rng.bytes(200_000)
    for plain in (text, numbers, noise, text + noise + text, b"\0" * 500_000):
        assert java("unzstd", compressed(plain, level), b"") == plain


@given(st.binary(min_size=1, max_size=4), st.integers(0, 10**6))
def test_a_damaged_zstd_frame_is_an_error_and_nothing_else(java, garbage, at):
    whole = compressed(b"the quick brown fox jumps over the lazy dog, again and again and again" * 9, 9)
    at %= len(whole)
    damaged = whole[:at] + garbage + whole[at + len(garbage) :]
    try:
        java("unzstd", damaged, b"")
    except JavaError as error:
        assert str(error).startswith("WireError: ")


@settings(deadline=None, max_examples=40)  # a JVM that has just started is slow
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=200), st.integers(0, 511))
def test_signatures_are_the_same_and_forged_ones_are_refused(java, secret, data, bit):
    key = SigningKey(secret)
    assert java("public key", secret) == key.verify_key.encode()
    signature = key.sign(data).signature
    assert java("sign", secret, data) == signature
    assert java("verify", key.verify_key.encode(), data, signature) == b"\x01"
    forged = bytearray(signature)
    forged[bit // 8] ^= 1 << bit % 8
    assert java("verify", key.verify_key.encode(), data, bytes(forged)) == b"\x00"
    assert java("verify", key.verify_key.encode(), data + b"!", signature) == b"\x00"


@settings(deadline=None, max_examples=40)
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=50))
def test_requests_are_signed_as_the_server_reads_them(java, secret, body):
    device, at, nonce, signature = parse_authorization(
        java("authorization", secret, body).decode().replace("ab12", "ab12" * 8)
    )
    assert (device, at, nonce) == ("ab12" * 8, 1_700_000_000, "0123456789abcdef")
    public = Signer(SigningKey(secret)).public
    verify(public, request_text("POST", "/v1/match", at, nonce, body), signature)


@given(JSON)
def test_json_is_written_as_msgspec_writes_it(java, value):
    assert java("json", msgspec.json.encode(value)) == msgspec.json.encode(value)


@given(st.text(max_size=12))
def test_what_is_not_json_is_refused_by_both(java, text):
    try:
        msgspec.json.decode(text.encode())
    except msgspec.DecodeError:
        with pytest.raises(JavaError, match="WireError"):
            java("json", text.encode())


@given(COLUMNS | st.lists(st.integers(0, 300), min_size=16, max_size=300))
def test_integers_are_packed_into_the_same_bytes(java, values):
    column = np.array(values, np.int64)
    packed = packing.pack(column)
    assert java("pack", column.astype("<i8").tobytes()) == packed
    assert java("unpack", packed) == column.astype("<i8").tobytes()
    for way in ("pack plain", "pack squeezed"):
        np.testing.assert_array_equal(packing.unpack(java(way, column.astype("<i8").tobytes())), column)


@given(st.binary(max_size=60))
def test_what_cannot_be_unpacked_is_refused_by_both(java, data):
    try:
        expected = packing.unpack(data).astype("<i8").tobytes()
    except Exception:
        with pytest.raises(JavaError, match="WireError"):
            java("unpack", data)
    else:
        assert java("unpack", data) == expected


@given(sample_batches(), st.booleans())
def test_contributions_are_the_same_bytes(java, batch, ordered):
    schema = SCHEMA if ordered else UNORDERED
    frame = wire.encode_contribution(type(batch)(schema, batch.columns, batch.labels))
    assert java("contribution", as_json(schema), frame) == wire.encode_contribution(
        wire.decode_contribution(frame, schema)
    )
    if len(batch):
        for way in ("contribution plain", "contribution squeezed"):
            plain = wire.decode_contribution(java(way, as_json(schema), frame), schema)
            assert wire.encode_contribution(plain) == wire.encode_contribution(wire.decode_contribution(frame, schema))


@given(sample_batches(), st.text(max_size=20))
def test_answers_are_read_as_python_reads_them(java, batch, shortfall):
    ids = batch.ids("item")
    rng = np.random.default_rng(len(ids))
    tensors = {
        "item.weight": rng.normal(size=(len(ids), 3)).astype(np.float16),
        "narrow": rng.integers(-127, 128, (len(ids), 4)).astype(np.int8),
        "scale:narrow": rng.random(len(ids)).astype(np.float16),
        "item_categories": rng.integers(0, 9, (len(ids), 2)).astype(np.int32),
    }
    frame = wire.encode_answer(MatchAnswer(batch, {"item": Rows(ids, tensors)}, shortfall))
    assert java("shortfall", as_json(SCHEMA), frame).decode() == shortfall
    found, meant = load(java("answer", as_json(SCHEMA), frame)), wire.decode_answer(frame, SCHEMA)
    np.testing.assert_array_equal(found["labels"], meant.candidates.labels)
    np.testing.assert_array_equal(found["item"], meant.candidates.columns["item"])
    history = meant.candidates.columns["history"]
    for name in ("values", "starts", "lengths"):
        np.testing.assert_array_equal(found[f"history/{name}"], getattr(history, name))
    for name, tensor in meant.rows["item"].tensors.items():
        assert found[f"rows/item/{name}"].dtype == tensor.dtype
        np.testing.assert_array_equal(found[f"rows/item/{name}"], tensor)


@given(st.integers(0, 5), st.integers(1, 70), st.integers(0, 2**31 - 1), st.lists(st.integers(0, 999), max_size=40))
def test_queries_are_the_same_bytes(java, k, width, limit, held):
    centroids = np.random.default_rng(k * width).normal(size=(k, width)).astype(np.float32)
    centroids[:, width // 2 :] = 0
    held = sorted(set(held))
    frame = wire.encode_query(MatchQuery("ab" * 8, centroids, limit, np.array(held, np.int32)))
    made = java(
        "query", b"ab" * 8, save({"centroids": centroids}), struct.pack("<i", limit), np.array(held, "<i8").tobytes()
    )
    assert made == frame


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 256), st.integers(1, 64), st.sampled_from([3.5, 12.0]))
def test_queries_by_directory_are_the_same_bytes(java, seed, samples, parts, width, sharpness):
    rng = np.random.default_rng(seed)
    embeddings, centroids = (rng.normal(size=(n, width)) for n in (samples, parts))
    embeddings = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32)
    stored = (centroids / np.linalg.norm(centroids, axis=1, keepdims=True)).astype(np.float16)
    held = np.sort(rng.choice(999, rng.integers(0, 99), replace=False)).astype(np.int32)
    known = Directory.of(stored, width)
    query = wire.DirectoryQuery("ab" * 8, known.id, known.weights(embeddings, sharpness), 2000, held)
    made = java(
        "directory query", b"ab" * 8, save({"centroids": stored, "embeddings": embeddings}), str(sharpness).encode(),
        struct.pack("<i", 2000), held.astype("<i8").tobytes(),
    )  # fmt: skip
    assert made == wire.encode_directory_query(query)


def test_what_is_no_directory_is_refused_by_both(java, rng):
    samples = np.ones((1, 4), np.float32)

    def asked(stored, embeddings=samples):
        tensors = save({"centroids": stored, "embeddings": embeddings})
        return java("directory query", b"ab" * 8, tensors, b"12.0", struct.pack("<i", 9), b"")

    for stored in (np.ones((257, 4), np.float16), np.ones((3, 4), np.float32), np.ones(4, np.float16)):
        with pytest.raises(JavaError, match="WireError: the bundle's directory is"):
            asked(stored)
    with pytest.raises(JavaError, match="WireError: the bundle's directory holds numbers that are not finite"):
        asked(np.full((3, 4), np.inf, np.float16))
    for embeddings in (samples[:0], np.full((1, 4), np.nan, np.float32)):
        with pytest.raises(JavaError, match="InputError: a directory query needs local samples"):
            asked(np.ones((3, 4), np.float16), embeddings)


@given(REPORTS)
def test_reports_are_the_same_bytes(java, report):
    frame = wire.encode_report(report)
    assert java("report", to_json(report)) == frame
    squeezed = java("report squeezed", to_json(report))
    assert wire.decode_report(squeezed) == wire.decode_report(frame)
    assert java("report body", frame) == framing.unseal(frame, 4, wire.MAX_REPORT, wire.REPORT_DICTIONARY)


@given(REPORTS, st.integers(0, 2**62))
def test_the_journal_is_the_same_json(java, report, seed):
    view = FilterView([0.0, 0.05, 1.0], [3, 0], [0, 4], None, 0.25)
    inputs = Inputs(seed=seed, match=True, engine="executorch 1.5.1", until=7, events=9, ordinal=3)
    progress = Progress(
        inputs=inputs, bundle=4, manifest="ab", verdict=report.verdict, view=view, files={"tuned": "cd"},
        phases=report.phases, traffic={"match": (3, 4)}, resumed=1, repulled=True, auc_previous=report.auc_previous,
    )  # fmt: skip
    assert java("progress", to_json(progress)) == to_json(progress)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda n: n != "__metadata__"), st.integers(0, 4), max_size=6
    )
)
def test_weights_are_the_same_file(java, sizes):
    kinds = (np.float32, np.float16, np.int8, np.int32, np.int64, np.uint8)
    rng = np.random.default_rng(len(sizes))
    tensors = {
        name: (100 * rng.normal(size=(size, 3))).astype(kinds[(i + size) % len(kinds)])
        for i, (name, size) in enumerate(sizes.items())
    }
    assert java("safetensors", save(tensors)) == save(tensors)


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6), st.integers(1, 400))
def test_java_draws_what_numpy_draws(java, entropy, count):
    found = np.frombuffer(java("random", np.array(entropy, "<i8").tobytes(), struct.pack("<i", count)), "<i8")
    rng = np.random.default_rng(entropy)
    weights = np.arange(1, count + 1) / (count * (count + 1) // 2)
    np.testing.assert_array_equal(found[:count], rng.permutation(count))
    assert found[count : count + 1].view("<f8")[0] == rng.random()
    assert found[count + 1] == rng.integers(count)
    assert found[count + 2 : count + 3].view("<f8")[0] == rng.random()
    assert found[count + 3] == rng.choice(count, p=weights)
    np.testing.assert_array_equal(found[count + 4 :], rng.permutation(count))


@given(st.integers(0, 700))
def test_java_sums_in_the_order_in_which_numpy_sums(java, count):
    numbers = np.random.default_rng(count).normal(size=count).astype(np.float32)
    assert java("sum", numbers.astype("<f4").tobytes()) == numbers.sum().astype("<f4").tobytes()


@given(st.integers(0, 2**32), st.integers(2, 12), st.floats(0.2, 4))
def test_java_lets_serve_what_python_lets_serve(java, seed, count, size):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count).astype(np.float32)
    before, whole = rng.normal(size=(2, count)).astype(np.float32) * np.float32([[1], [size]])
    half = ((before + whole) / 2).astype(np.float32)
    used = RoundSettings(tolerance=0.5)
    meant = consider(labels, before, lambda share: whole if share == 1 else half, used)
    given = [one.astype("<f4").tobytes() for one in (labels, before, whole, half)]
    found = msgspec.json.decode(java("consider", msgspec.json.encode(used), *given), type=Verdict)
    assert (found.activate, found.share, found.samples) == (meant.activate, meant.share, meant.samples)
    assert found.reason.split(":")[0][:20] == meant.reason.split(":")[0][:20]
    assert found.loss_after == pytest.approx(meant.loss_after, abs=1e-6)


@given(st.integers(0, 2**32), st.integers(8, 60), st.floats(-3, 3))
def test_java_calibrates_as_python_does(java, seed, count, apart):
    rng = np.random.default_rng(seed)
    own, outside = rng.normal(apart, 1, count).astype(np.float32), rng.normal(size=90).astype(np.float32)
    mass = rng.random(90).astype(np.float32)
    slope, level = calibration(own, outside, mass)
    found = np.frombuffer(java("calibrate", *(one.astype("<f4").tobytes() for one in (own, outside, mass))), "<f4")
    np.testing.assert_allclose(found, slope * outside + level, atol=1e-5)


def test_a_bundle_without_settings_means_the_same_to_both(java):
    mine = msgspec.json.decode(java("settings", b"{}"))
    theirs = msgspec.to_builtins(RoundSettings())
    of_the_server = {"cover", "answer_bytes", "neighbours", "core", "half_life"}
    of_the_server |= {"shrinkage", "near_shrinkage", "age_shrinkage", "fitted_until", "fitted_weight"}
    assert mine == {name: value for name, value in theirs.items() if name not in of_the_server}
    assert (
        msgspec.json.decode(java("settings", msgspec.json.encode(RoundSettings(epochs=7, judge=False))))["epochs"] == 7
    )
    with pytest.raises(JavaError, match="the field 'surprise' is unknown; update the older side"):
        java("settings", b'{"surprise": 1}')


def test_a_bundle_is_believed_only_if_the_trusted_key_signed_it(java, published):
    ref = msgspec.json.decode((published.bundle / "bundle.json").read_bytes(), type=BundleRef)
    stored = next(path for path in published.bundle.rglob(ref.manifest)).read_bytes()
    told = java("manifest", to_json(ref), stored, published.trust.encode()).decode()
    assert " 2 " in told and "classifier_step" in told
    assert java("reference", to_json(ref)) == to_json(ref)
    with pytest.raises(JavaError, match="TrustError: the bundle is signed by key"):
        java("manifest", to_json(ref), stored, b"ab" * 32)
    with pytest.raises(JavaError, match="TrustError: the manifest is damaged"):
        java("manifest", to_json(ref), stored + b"!", published.trust.encode())
    forged = msgspec.structs.replace(ref, signature="00" * 64)
    with pytest.raises(JavaError, match="TrustError: the signature does not verify"):
        java("manifest", to_json(forged), stored, published.trust.encode())
    another = msgspec.structs.replace(ref, version=3)
    with pytest.raises(JavaError, match="TrustError: the manifest says version 2, its announcement 3"):
        java("manifest", to_json(another), stored, published.trust.encode())
