"""Events to samples, against a plain loop that anyone can read."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.samples import Feature, Schema
from device_runtime.stream import Events, histories, samples


@st.composite
def events(draw):
    size = draw(st.integers(0, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return Events(
        rng.integers(0, 3, size).astype(np.int32),
        rng.integers(1, 9, size).astype(np.int32),
        rng.integers(0, draw(st.sampled_from([2, 1000])), size).astype(np.int64),
        rng.integers(0, 2, size).astype(np.float32),
        rng.random(size) < 0.8,
    ).ordered()


@given(events(), st.integers(1, 6))
def test_a_history_is_what_was_liked_strictly_before(stream, bound):
    found = histories(stream, bound)
    for i in range(len(stream)):
        expected = [
            int(stream.item[j])
            for j in range(len(stream))
            if stream.contributor[j] == stream.contributor[i]
            and stream.timestamp[j] < stream.timestamp[i]
            and stream.label[j] >= 0.5
            and stream.observed[j]
        ]
        assert found.row(i).tolist() == expected[-bound:]


@given(events())
def test_nothing_that_happens_later_changes_a_sample(stream):
    schema = Schema((Feature("item", "id", "item"), Feature("history", "ids", "item", 5)))
    whole = samples(stream, schema)
    if len(stream):
        cut = int(np.median(stream.timestamp))
        early = stream.take(stream.timestamp <= cut)
        np.testing.assert_array_equal(
            samples(early, schema).columns["history"].dense(5),
            whole.columns["history"].dense(5)[stream.timestamp <= cut],
        )


def test_ordering_keeps_the_order_of_one_second():
    one = np.ones(3, np.int32)
    stream = Events(one, np.array([5, 6, 7], np.int32), np.array([9, 1, 9]), one.astype(np.float32), one.astype(bool))
    assert stream.ordered().item.tolist() == [6, 5, 7]
