"""Candidates as this user would meet them.

Pooled candidates (`cloud/matching/pooled.py`) are means over many contributors: they come without a history, and with a
residual r, by which labels differ from the cloud model's predictions, in place of a label. The device puts in its
user's own history, and the label becomes the model's prediction for this user plus r.
"""

from __future__ import annotations

import numpy as np

from device_runtime.bundle import RoundSettings
from device_runtime.model import Model
from device_runtime.samples import Column, Float32, Ragged, SampleBatch
from device_runtime.tables import LocalTable


def as_own(
    candidates: SampleBatch, local: SampleBatch, model: Model, table: LocalTable, settings: RoundSettings
) -> SampleBatch:
    """Candidates with soft labels and the history of the newest local sample; those that were not pooled as they are.

    local: local samples, oldest first. table: base rows of both.
    """
    if settings.matching != "pooled" or not len(candidates):
        return candidates
    own = with_history_of(candidates, local)
    predicted = 1 / (1 + np.exp(-np.clip(model.logits(own, table, model.base), -30, 30)))
    labels: Float32 = np.clip(predicted + 2 * candidates.labels - 1, 0, 1).astype(np.float32)
    return SampleBatch(own.schema, own.columns, labels)


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
