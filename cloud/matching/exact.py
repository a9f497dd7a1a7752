"""Search by comparing with every sample: slow, exact, the oracle for the others."""

from __future__ import annotations

import numpy as np

from cloud.matching.store import Found, merge
from cloud.pool import Pool
from device_runtime.samples import Float32


class ExactStore:
    """See `MatchStore`."""

    name = "exact"

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def search(self, queries: Float32, k: int, exclude: int) -> Found:
        parts = []
        for segment in self._pool.segments:
            similarity = queries @ segment.embeddings.T
            similarity[:, segment.contributors == np.uint64(exclude)] = -np.inf
            taken = min(k, len(segment))
            at = np.argpartition(-similarity, taken - 1, axis=1)[:, :taken].astype(np.int64)
            value = np.take_along_axis(similarity, at, 1)
            at = np.where(np.isneginf(value), -1, at + segment.base)
            parts.append(Found(at, value))
        return merge(parts, k, len(queries))
