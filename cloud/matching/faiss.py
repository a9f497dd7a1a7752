"""Search by FAISS: one immutable index a segment, exact while a segment is small, inverted lists when it is large."""

from __future__ import annotations

import threading

import faiss
import numpy as np

from cloud.matching.store import Found, merge
from cloud.pool import Pool, Segment
from device_runtime.samples import Float32

FLAT_UP_TO = 50_000
"""Samples in a segment up to which comparing with all of them is fast enough."""
_PROBES = 24


class FaissStore:
    """See `MatchStore`.

    Indexes are built when a segment is first searched, and kept; segments never change, so nothing is ever removed
    from an index (FAISS's HNSW cannot, and its removal from inverted lists is a full pass).
    """

    name = "faiss"

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._building = threading.Lock()
        self._indexes: dict[int, faiss.Index] = {}
        # the server runs searches in its own threads; more inside each would only contend
        faiss.omp_set_num_threads(1)

    def search(self, queries: Float32, k: int, exclude: int) -> Found:
        queries = np.ascontiguousarray(queries, np.float32)
        parts = []
        for segment in self._pool.segments:
            index = self._index(segment)
            own = np.flatnonzero(segment.contributors == np.uint64(exclude))
            taken = min(k + len(own), len(segment))
            similarity, at = index.search(queries, taken)
            at = at.astype(np.int64)
            hidden = (at < 0) | np.isin(at, own)
            at = np.where(hidden, -1, at + segment.base)
            parts.append(Found(at, np.where(hidden, np.float32(-np.inf), similarity)))
        return merge(parts, k, len(queries))

    def _index(self, segment: Segment) -> faiss.Index:
        with self._building:
            if segment.base not in self._indexes:
                self._indexes[segment.base] = _build(np.ascontiguousarray(segment.embeddings))
            return self._indexes[segment.base]


def _build(vectors: Float32) -> faiss.Index:
    count, width = vectors.shape
    lists = int(4 * np.sqrt(count))
    kind = "Flat" if count <= FLAT_UP_TO else f"IVF{lists},SQ8"
    index = faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
    if count > FLAT_UP_TO:
        faiss.extract_index_ivf(index).nprobe = _PROBES
        chosen = np.random.default_rng(0).permutation(count)[: 40 * lists]
        index.train(vectors[np.sort(chosen)])
    index.add(vectors)
    return index
