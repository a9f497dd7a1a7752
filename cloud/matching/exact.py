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
        at, value = _foremost(similarity, best, k)
        positions = segment.base + (at + start if picked is None else picked[at])
        positions[np.isneginf(value)] = -1
        best = merge([best, Found(positions, value)], min(k, best.positions.shape[1] + at.shape[1]), len(queries))
    return best


def _foremost(similarity: Float32, best: Found, k: int) -> tuple[Int64, Float32]:
    """(columns, similarities), both [q, at most k]: of a chunk, those that may join the best so far. Where a query has
    fewer than others, -inf."""
    if best.positions.shape[1] < k:
        taken = min(k, similarity.shape[1])
        at = np.argpartition(-similarity, taken - 1, axis=1)[:, :taken].astype(np.int64)
        return at, np.take_along_axis(similarity, at, 1)
    better = similarity > best.similarities[:, -1:]  # a comparison costs a tenth of what partitioning does
    each = [np.flatnonzero(row) for row in better]
    each = [
        found if len(found) <= k else found[np.argpartition(-line[found], k - 1)[:k]]
        for found, line in zip(each, similarity, strict=True)
    ]
    shape = (len(each), max((len(found) for found in each), default=0))
    columns, value = np.zeros(shape, np.int64), np.full(shape, -np.inf, np.float32)
    for number, found in enumerate(each):
        columns[number, : len(found)], value[number, : len(found)] = found, similarity[number, found]
    return columns, value
