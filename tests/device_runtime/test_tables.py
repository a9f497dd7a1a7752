import numpy as np
import pytest
from safetensors.numpy import save

from device_runtime.errors import InputError, WireError
from device_runtime.model import Weights, personal_table
from device_runtime.samples import Ragged, SampleBatch
from device_runtime.tables import LocalTable, Shard, features, shard_of
from device_runtime.wire import Rows
from tests.device_runtime.batches import SCHEMA

PADDING = Rows(np.zeros(1, np.int32), {"w": np.zeros((1, 2), np.float16), "c": np.zeros((1, 1), np.int32)})


def _rows(*ids, add=0.0):
    values = np.array(ids, np.int32)
    return Rows(values, {"w": np.stack([values + add, -values], 1).astype(np.float16), "c": values[:, None] % 5})


def test_rows_come_from_the_first_source_that_has_them():
    table = LocalTable.build(np.array([7, 3, 9], np.int32), [_rows(3, 4, add=0.5), _rows(3, 7, 9)], PADDING)
    assert table.ids.tolist() == [0, 3, 7, 9]
    assert table.tensors["w"].tolist() == [[0, 0], [3.5, -3], [7, -7], [9, -9]]
    assert table.tensors["w"].dtype == np.float32 and table.tensors["c"].dtype == np.int64
    assert table.local(np.array([[9, 0], [3, 3]])).tolist() == [[3, 0], [1, 1]]


def test_an_id_without_a_row_is_named():
    with pytest.raises(InputError, match="among them id 8"):
        LocalTable.build(np.array([8], np.int32), [_rows(3)], PADDING)
    table = LocalTable.build(np.array([3], np.int32), [_rows(3)], PADDING)
    with pytest.raises(InputError, match="not in the local table, among them 4"):
        table.local(np.array([3, 4]))


def test_a_table_of_some_rows_has_these_and_padding():
    whole = LocalTable.build(np.array([3, 7, 9], np.int32), [_rows(3, 7, 9)], PADDING)
    some = whole.of(np.array([9, 3], np.int32))
    assert some.ids.tolist() == [0, 3, 9] and some.local(np.array([9])).tolist() == [2]
    for name, tensor in some.tensors.items():
        np.testing.assert_array_equal(tensor, whole.tensors[name][[0, 1, 3]])
    with pytest.raises(InputError, match="1 ids are not in the local table, among them 8"):
        whole.of(np.array([8], np.int32))


def test_a_shard_comes_back_with_keys_of_any_script():
    keys = ("42", "Amélie", "千と千尋", "")
    shard = Shard(np.array([1, 5, 6, 9], np.int32), keys, _rows(1, 5, 6, 9).tensors)
    found = Shard.decode(save({n: np.ascontiguousarray(t) for n, t in shard.encode().items()}), ("w", "c"))
    assert found.keys == keys and found.ids.tolist() == [1, 5, 6, 9]
    some = found.rows(np.array([5, 9, 11], np.int32))
    assert some.ids.tolist() == [5, 9] and some.tensors["w"][:, 0].tolist() == [5, 9]


def test_something_else_is_not_a_shard():
    with pytest.raises(WireError, match="not a readable safetensors"):
        Shard.decode(b"nonsense", ("w",))
    with pytest.raises(WireError, match="lacks key_ends, keys, w"):
        Shard.decode(save({"ids": np.zeros(1, np.int32)}), ("w",))


def test_the_shard_of_a_key_is_the_same_everywhere():
    # CRC-32 of UTF-8, as in zlib and java.util.zip: written down so that no one changes it
    assert [shard_of(k, 10) for k in ("1", "318", "Amélie")] == [3, 9, 6]


def test_features_are_what_graphs_take():
    history = Ragged(np.array([3, 7], np.int32), np.array([0, 0], np.int32), np.array([2, 0], np.int32))
    columns = {"item": np.array([7, 3], np.int32), "history": history, "price": np.ones((2, 2), np.float32)}
    table = LocalTable.build(np.array([3, 7], np.int32), [_rows(3, 7)], PADDING)
    found = features(SampleBatch(SCHEMA, columns, np.zeros(2, np.float32)), {"item": table})
    assert found["item"].tolist() == [2, 1]
    assert found["history"].tolist() == [[1, 2, 0, 0, 0, 0, 0], [0] * 7]
    assert found["price"].dtype == np.float32


def test_personal_rows_lie_over_those_of_the_table_and_others_are_left_out():
    table = LocalTable.build(np.array([3, 7], np.int32), [_rows(3, 7)], PADDING)
    weights = Weights({}, Rows(np.array([5, 7], np.int32), {"w": np.array([[1, 2], [3, 4]], np.float32)}))
    laid = personal_table(table, weights)
    assert laid.ids is table.ids and laid.tensors["w"].tolist() == [[0, 0], [3, -3], [3, 4]]
    assert table.tensors["w"].tolist() == [[0, 0], [3, -3], [7, -7]] and laid.tensors["c"] is table.tensors["c"]
    assert personal_table(table, Weights({})) is table
