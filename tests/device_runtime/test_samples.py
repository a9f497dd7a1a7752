import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.errors import InputError
from device_runtime.samples import Ragged, SampleBatch
from tests.device_runtime.batches import SCHEMA, assert_same, sample_batches


@given(sample_batches())
def test_dense_histories_hold_the_newest_items_oldest_first(batch):
    history = batch.columns["history"]
    dense = history.dense(7)
    for i in range(len(batch)):
        newest = history.row(i)[-7:]
        np.testing.assert_array_equal(dense[i, : len(newest)], newest)
        assert (dense[i, len(newest) :] == 0).all()


@given(sample_batches())
def test_compacting_keeps_every_row_and_drops_every_unused_value(batch):
    history = batch.columns["history"]
    compact = history.compact()
    assert [compact.row(i).tolist() for i in range(len(batch))] == [history.row(i).tolist() for i in range(len(batch))]
    used = {int(s) + k for s, n in zip(history.starts, history.lengths, strict=True) for k in range(int(n))}
    assert len(compact.values) == len(used)


@given(sample_batches(), st.data())
def test_taking_and_joining_rows_gives_the_same_samples(batch, data):
    cut = data.draw(st.integers(0, len(batch)))
    parts = [batch.take(slice(0, cut)), batch.take(np.arange(cut, len(batch)))]
    assert_same(SampleBatch.concatenate(parts), batch)


@pytest.mark.parametrize("some", [slice(0, 1), slice(None)])
@given(batch=sample_batches())
def test_distinct_values_are_those_of_the_rows(batch, some):
    history = batch.take(some).columns["history"]
    assert history.distinct().tolist() == sorted({v for i in range(len(history)) for v in history.row(i).tolist()})


@given(sample_batches())
def test_ids_are_those_that_the_samples_mention(batch):
    seen = set(batch.columns["item"].tolist()) | set(batch.columns["history"].dense(7).reshape(-1).tolist())
    assert batch.ids("item").tolist() == sorted(seen - {0})


def test_what_does_not_fit_is_refused_with_its_name():
    item = np.array([1, 2], np.int32)
    price = np.zeros((2, 2), np.float32)
    history = Ragged(item, np.zeros(2, np.int32), np.ones(2, np.int32))
    whole = {"item": item, "history": history, "price": price}
    good = np.array([0, 1], np.float32)
    for columns, labels, complaint in [
        ({"item": item, "price": price}, good, "lack the column 'history'"),
        (whole | {"item": item[:1]}, good, "column 'item' has 1 rows"),
        (whole | {"history": item}, good, "'history' does not fit its kind"),
        (whole | {"colour": item}, good, "does not know: \\['colour'\\]"),
        (whole, np.array([0, 2], np.float32), "from 0 to 1"),
        (whole, np.array([0, np.nan], np.float32), "finite"),
    ]:
        with pytest.raises(InputError, match=complaint):
            SampleBatch(SCHEMA, columns, labels)
    with pytest.raises(InputError, match="outside its 2 values"):
        Ragged(item, np.array([1], np.int32), np.array([2], np.int32))
