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
