"""Search by comparing with every sample: slow, exact, the oracle for the others, and what they fall back on."""

from __future__ import annotations

import numpy as np

from cloud.matching.filter import Filter
from cloud.matching.store import Found, merge, searchable
from cloud.pool import Segment, Snapshot
from device_runtime.samples import Float32, Int64

_CHUNK = 1 << 16


class ExactStore:
    """See `MatchStore`."""

    name = "exact"

    def __init__(self, pool: Snapshot) -> None:
        self._pool = pool

    def search(
        self, queries: Float32, k: int, exclude: int, where: Filter | None = None, within: Snapshot | None = None
    ) -> Found:
        segments = (within or self._pool).segments
        parts = [compare(s, queries, k, searchable(s, exclude, where)) for s in segments]
        return merge(parts, k, len(queries))

    def prepare(self, segment: Segment) -> None:
        """Nothing: the vectors themselves are searched."""


def compare(segment: Segment, queries: Float32, k: int, rows: Int64 | None) -> Found:
    """The k most similar of these rows of a segment, int64 [m]; None = of all. At most m, or n, are found."""
    queries = np.asarray(queries, np.float32)
    count = len(segment) if rows is None else len(rows)
    best = Found(np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0), np.float32))
    for start in range(0, count, _CHUNK):
        some = slice(start, min(start + _CHUNK, count))
        picked = None if rows is None else rows[some]
        similarity = queries @ segment.embeddings[some if picked is None else picked].T
        taken = min(k, similarity.shape[1])
        at = np.argpartition(-similarity, taken - 1, axis=1)[:, :taken].astype(np.int64)
        value = np.take_along_axis(similarity, at, 1)
        positions = segment.base + (at + start if picked is None else picked[at])
        best = merge([best, Found(positions, value)], min(k, best.positions.shape[1] + taken), len(queries))
    return best
