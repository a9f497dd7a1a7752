import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.errors import WireError
from device_runtime.packing import MAX_COUNT, _varint, pack, unpack

INT64 = st.integers(-(2**63), 2**63 - 1)
COLUMNS = st.one_of(
    st.lists(INT64, max_size=40),
    st.lists(st.integers(0, 100), max_size=300),
    st.integers(0, 2**40).map(lambda start: list(range(start, start + 50))),
)


@given(COLUMNS)
def test_a_column_comes_back_as_it_was(values):
    column = np.array(values, np.int64)
    np.testing.assert_array_equal(unpack(pack(column)), column)


def test_ascending_ids_cost_their_gaps_and_equal_values_cost_nothing():
    ids = np.arange(100_000, 101_000)
    assert len(pack(ids)) < 16
    assert len(pack(np.full(1000, 7))) < 16
    assert len(pack(np.arange(1000) % 8)) < 400


def test_skewed_gaps_and_few_small_numbers_are_entropy_coded(rng):
    gaps = rng.geometric(0.02, 5000)
    entropy = np.log2(np.e / 0.02) * len(gaps) / 8
    assert len(pack(gaps)) < 1.06 * entropy
    rare = np.where(rng.random(5000) < 0.02, rng.integers(0, 50, 5000), 50)
    assert len(pack(rare)) < 400 < 5000 * 6 / 8


@given(st.lists(st.integers(0, 2**63 - 1), min_size=16, max_size=60), st.booleans())
def test_every_layout_comes_back(values, small):
    column = np.array([v % 200 for v in values] if small else [v >> (v % 60) for v in values], np.int64)
    np.testing.assert_array_equal(unpack(pack(column)), column)


def test_a_long_column_of_every_width_comes_back(rng):
    column = (rng.integers(0, 2**62, 150_000) >> rng.integers(0, 60, 150_000)).astype(np.int64)
    packed = pack(column)
    assert packed[0] in (2, 3), "split, in more than one chunk"
    np.testing.assert_array_equal(unpack(packed), column)
    wide = rng.integers(0, 2**11, 150_000)
    assert pack(wide)[0] == 0
    np.testing.assert_array_equal(unpack(pack(wide)), wide)


@given(st.sampled_from([0, 1, 2, 3, 4, 5]), st.binary(max_size=60), st.integers(0, 200))
def test_noise_in_any_layout_is_refused_or_read(mode, noise, count):
    with contextlib.suppress(WireError):
        assert len(unpack(bytes([mode]) + _varint(count) + noise)) == count


def test_a_squeezed_part_of_another_size_is_refused():
    column = np.arange(100) ** 2 % 7
    packed = pack(column)
    assert packed[0] in (4, 5)
    with pytest.raises(WireError, match="not those of"):
        unpack(packed[:1] + _varint(101) + packed[2:])


@given(COLUMNS, st.data())
def test_a_truncated_column_is_refused(values, data):
    packed = pack(np.array(values, np.int64))
    cut = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(WireError):
        unpack(packed[:cut])


@given(st.binary(max_size=80))
def test_noise_is_refused_or_read_but_never_crashes(noise):
    with contextlib.suppress(WireError):
        assert unpack(noise).dtype == np.int64


def test_stray_bytes_and_absurd_counts_are_refused():
    with pytest.raises(WireError, match="stray"):
        unpack(pack(np.arange(5)) + b"\0")
    with pytest.raises(WireError, match="at most"):
        unpack(b"\0" + _varint(MAX_COUNT + 1) + b"\0\0")
    with pytest.raises(WireError, match="unknown packing mode"):
        unpack(b"\7\2\0\0")
