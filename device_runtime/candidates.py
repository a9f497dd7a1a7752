"""Candidates as this user would meet them.

Pooled candidates (`cloud/matching/pooled.py`) are of many contributors each: they come without a history, and with an
*offset* in place of a label, by which the logit of a like differs from what the cloud's model says. The device puts in
its user's own history, and the label becomes the model's prediction for this user, moved by the offset.

What everybody says of an item is one part of how far the model is off for this user; the other is the user's own. Where
the bundle has *tastes* (`cloud/tastes.py`: a vector for each item, such that contributors' residuals are products with
a vector of theirs), the device finds its user's vector from the local samples, by logistic regression with a normal
prior, and adds the product to every candidate's offset: what the user's labels say of items that the user never met.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from device_runtime.bundle import RoundSettings
from device_runtime.model import TASTE, Model
from device_runtime.samples import Column, Float32, Float64, Int64, Ragged, SampleBatch
from device_runtime.tables import LocalTable

LARGEST_OFFSET = 4.0
"""Of logits, either way: a pooled candidate's label is its offset, from -4 as 0 to 4 as 1."""
_NEWTON = 5


@dataclass(frozen=True)
class Augmentation:
    """Samples of others to be trained on beside local ones. weights: float32 [n], at least 0. change: float [n], by how
    much the logits of their labels differ from those of the bundle's weights, where that is known (`as_own`)."""

    samples: SampleBatch
    weights: Float32
    change: npt.NDArray[np.floating] | None = None

    @classmethod
    def of(
        cls, candidates: SampleBatch, change: Float64 | None, kept: Int64 | None = None, weights: Float32 | None = None
    ) -> Augmentation:
        """These of the candidates, or all of them; of weight 1 if not told."""
        if kept is not None:
            candidates, change = candidates.take(kept), None if change is None else change[kept]
        return cls(candidates, np.ones(len(candidates), np.float32) if weights is None else weights, change)


def as_own(
    candidates: SampleBatch,
    local: SampleBatch,
    known: SampleBatch,
    model: Model,
    table: LocalTable,
    settings: RoundSettings,
) -> tuple[SampleBatch, Float64 | None]:
    """(candidates with soft labels and the history of the newest local sample, by how much the logit of each label
    differs from the model's, float64 [n]); those that were not pooled as they are, and None.

    local: local samples, oldest first. known: those of them whose labels may be looked at. table: base rows of all.
    """
    if settings.matching != "pooled" or not len(candidates):
        return candidates, None
    own = with_history_of(candidates, local)
    offset = np.zeros(len(table))
    at = table.local(_items(candidates))
    offset[at] = offsets(candidates.labels)
    if settings.tastes and TASTE in table.tensors and len(known):
        taste = np.asarray(table.tensors[TASTE], np.float64)
        mine = table.local(_items(known))
        logit = model.logits(known, table, model.base) + offset[mine]
        offset += taste @ own_taste(taste[mine], logit, known.labels)
    labels: Float32 = sigmoid(model.logits(own, table, model.base) + offset[at]).astype(np.float32)
    return SampleBatch(own.schema, own.columns, labels), offset[at]


def offsets(labels: Float32) -> Float64:
    """float64 [n]: what the labels of pooled candidates stand for, in logits."""
    found: Float64 = (2 * labels.astype(np.float64) - 1) * LARGEST_OFFSET
    return found


def as_labels(found: Float64) -> Float32:
    """float32 [n]: the inverse of `offsets`, for those within its bounds; others become these."""
    labels: Float32 = (0.5 + np.clip(found, -LARGEST_OFFSET, LARGEST_OFFSET) / (2 * LARGEST_OFFSET)).astype(np.float32)
    return labels


def own_taste(taste: Float64, logit: Float64, labels: Float32) -> Float64:
    """float64 [k]: the user's vector w, the mode of prod_i P(label_i | logit_i + c + taste_i w) under standard normal
    priors of w and of the constant c, which takes up how much this user likes on the whole.

    taste: float64 [n, k]. logit, labels: [n].
    """
    x = np.column_stack([taste, np.ones(len(taste))])
    w = np.zeros(x.shape[1])
    for _ in range(_NEWTON):  # steps of Newton's method
        p = sigmoid(logit + x @ w)
        slope = x.T @ (labels - p) - w
        w = w + np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + np.eye(len(w)), slope)
    found: Float64 = w[:-1]
    return found


def sigmoid(logit: Float64 | Float32) -> Float64:
    found: Float64 = 1 / (1 + np.exp(-np.clip(logit, -30, 30).astype(np.float64)))
    return found


def with_history_of(candidates: SampleBatch, local: SampleBatch) -> SampleBatch:
    """The candidates, each with the histories of the last local sample."""
    columns: dict[str, Column] = {}
    for name, column in candidates.columns.items():
        newest = local.columns[name]
        if isinstance(column, Ragged) and isinstance(newest, Ragged):
            mine, n = newest.row(len(local) - 1), len(candidates)
            columns[name] = Ragged(mine, np.zeros(n, np.int32), np.full(n, len(mine), np.int32))
        else:
            columns[name] = column
    return SampleBatch(candidates.schema, columns, candidates.labels)


def _items(samples: SampleBatch) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.asarray(samples.columns["item"]).astype(np.int64)
