"""Random sample batches for property tests: shared and overlapping histories, empty ones, soft labels."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from device_runtime.samples import Feature, Ragged, SampleBatch, Schema

SCHEMA = Schema((Feature("item", "id", "item"), Feature("history", "ids", "item", 7), Feature("price", "float", "", 2)))

UNORDERED = Schema((SCHEMA["item"], Feature("history", "ids", "item", 7, ordered=False), SCHEMA["price"]))
"""The same, for a model that does not look at the order within a history."""


@st.composite
def sample_batches(draw: st.DrawFn, schema: Schema = SCHEMA) -> SampleBatch:
    size = draw(st.integers(0, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.integers(1, draw(st.sampled_from([3, 300, 2**31 - 1])), draw(st.integers(0, 60))).astype(np.int32)
    ends = rng.integers(0, len(values) + 1, size)
    lengths = rng.integers(0, ends + 1)
    labels = rng.random(size) if draw(st.booleans()) else rng.integers(0, 2, size)
    columns = {
        "item": rng.integers(1, 50, size).astype(np.int32),
        "history": Ragged(values, (ends - lengths).astype(np.int32), lengths.astype(np.int32)),
        "price": rng.normal(size=(size, 2)).astype(np.float32),
    }
    return SampleBatch(schema, columns, labels.astype(np.float32))


def assert_same(a: SampleBatch, b: SampleBatch) -> None:
    """Same samples, however their histories are stored. Histories count up to the schema's bound."""
    assert len(a) == len(b)
    np.testing.assert_array_equal(a.labels, b.labels)
    for feature in a.schema.features:
        one, other = a.columns[feature.name], b.columns[feature.name]
        if isinstance(one, Ragged) and isinstance(other, Ragged):
            np.testing.assert_array_equal(one.dense(feature.bound), other.dense(feature.bound))
        else:
            np.testing.assert_array_equal(one, other)
