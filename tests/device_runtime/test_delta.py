"""What turns one file of tensors into another, and what is refused."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save

from device_runtime.delta import _DELTA, _Delta, apply_delta, delta_name, encode_delta
from device_runtime.errors import WireError
from device_runtime.framing import seal, unseal

DTYPES = st.sampled_from([np.float16, np.float32, np.float64, np.int8, np.uint8, np.int32, np.int64, np.bool_])
SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
TENSORS = st.dictionaries(
    st.sampled_from(["ids", "keys", "rows", "scale:rows"]), arrays.arrays(DTYPES, SHAPES), max_size=4
)


def shard(ids, rng, width=8) -> dict[str, np.ndarray]:
    """Rows of items, each the same whenever its id and the seed are."""
    rows = np.array([np.random.default_rng([7, i]).normal(0, 0.1, width) for i in ids], np.float16)
    text = [f"item-{i}".encode() for i in ids]
    return {
        "ids": np.array(ids, np.int32),
        "keys": np.frombuffer(b"".join(text), np.uint8),
        "key_ends": np.cumsum([len(t) for t in text], dtype=np.int32),
        "rows": rows.reshape(len(ids), width),
    }


@given(TENSORS, TENSORS)
@example({}, {})
def test_any_file_is_made_of_any_other(before, after):
    base, target = save(before), save(after)
    assert apply_delta(base, encode_delta(base, target), len(target)) == target


@given(arrays.arrays(np.uint16, (6, 3)), arrays.arrays(np.uint16, (6, 3)), st.sampled_from([np.float16, np.int16]))
def test_all_bits_come_through_also_those_of_numbers_that_are_none(before, after, dtype):
    base, target = save({"w": before.view(dtype)}), save({"w": after.view(dtype)})
    assert apply_delta(base, encode_delta(base, target), len(target)) == target


@given(st.sets(st.integers(1, 200), max_size=40), st.sets(st.integers(1, 200), max_size=40))
def test_items_that_come_and_go_do_not_shift_the_others(before, after):
    rng = np.random.default_rng(0)
    base, target = save(shard(sorted(before), rng)), save(shard(sorted(after), rng))
    delta = encode_delta(base, target)
    assert apply_delta(base, delta, len(target)) == target
    part = dict(zip(sorted(shard([], rng), key=lambda n: (n != "ids", n)), _opened(delta).parts, strict=True))["rows"]
    assert len(part.planes) == 16 * len(after - before)


def test_only_touched_rows_are_sent_and_small_moves_are_small(rng):
    ids = list(range(1, 1001))
    before = shard(ids, rng)
    target = {name: value.copy() for name, value in before.items()}
    target["rows"][::100] = rng.normal(0, 0.1, (10, 8))
    assert len(encode_delta(save(before), save(target))) < 10 * 16 + 400
    moved = {**before, "rows": (before["rows"] * np.float16(1.002)).astype(np.float16)}
    assert len(encode_delta(save(before), save(moved))) < 0.35 * before["rows"].nbytes


def test_nothing_is_sent_where_nothing_differs(rng):
    data = save(shard(range(1, 500), rng))
    assert len(encode_delta(data, data)) < 500


@given(st.data())
def test_a_damaged_delta_is_refused(data):
    base, target = (save({"w": np.arange(n, dtype=np.float32)}) for n in (20, 22))
    delta = bytearray(encode_delta(base, target))
    delta[data.draw(st.integers(0, len(delta) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(WireError):
        apply_delta(base, bytes(delta), len(target))


def _opened(delta) -> _Delta:
    return msgspec.msgpack.decode(unseal(delta, _DELTA), type=_Delta)


def _header(**entries) -> bytes:
    text = msgspec.json.encode(entries)
    return len(text).to_bytes(8, "little") + text


W = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "parts", "words"),
    [
        (_header(w=W), [], "0 parts for 1 tensors"),
        (_header(w=W), [[b"", False, b"123"]], "3 bytes for 4 rows"),
        (_header(w=W), [[b"\x00\x01\x12\x00", False, b"1"]], "not there"),
        (_header(w=W | {"dtype": "F7"}), [[b"", False, b"1234"]], "unknown type"),
        (_header(w=W | {"shape": [-4]}), [[b"", False, b"1234"]], "unknown type"),
        (_header(w=W | {"data_offsets": [1, 5]}), [[b"", False, b"1234"]], "does not lie"),
        (_header(w=W | {"shape": [1 << 40], "data_offsets": [0, 1 << 40]}), [[b"", False, b""]], "header speaks of"),
        (b"\x09" + _header(w=W)[1:], [[b"", False, b"1234"]], "another length"),
        (_header(w=1), [], "does not decode"),
        (b"", [], "does not decode"),
    ],
)
def test_a_delta_that_lies_is_refused(header, parts, words):
    base = save({"w": np.arange(4, dtype=np.uint8)})
    delta = seal(_DELTA, msgspec.msgpack.encode([header, parts]))
    with pytest.raises(WireError, match=words):
        apply_delta(base, delta, len(header) + 4)


def test_a_file_of_something_else_is_refused():
    good = save({"w": np.zeros(3)})
    for bad in (b"", b"x" * 40, (1 << 40).to_bytes(8, "little") + b"{}"):
        with pytest.raises(WireError, match="file of tensors"):
            encode_delta(good, bad)
        with pytest.raises(WireError, match="file of tensors"):
            apply_delta(bad, encode_delta(good, good), len(good))


def test_a_name_depends_on_both_ends():
    assert len({delta_name("a", "b"), delta_name("b", "a"), delta_name("a", "c")}) == 3
