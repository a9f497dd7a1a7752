"""Search by FAISS: one immutable index a segment, exact while a segment is small, inverted lists when it is large."""

from __future__ import annotations

import threading
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from cloud.matching.store import Found, merge
from cloud.pool import Pool, Segment
from device_runtime.samples import Float32, Int64

FLAT_UP_TO = 50_000
"""Samples in a segment up to which comparing with all of them is fast enough."""
_SHARE = 0.1
_PER_HIT = 25
"""Inverted lists searched: a tenth, or so many that they hold 25 samples for each one wanted. Measured on 60,000 to
250,000 vectors of 32 numbers: recall 0.95 and more from tight clusters to almost none."""


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

    def search(self, queries: Float32, k: int, exclude: int) -> Found:
        # the server runs searches in its own threads; more inside each would only contend. OpenMP keeps it per thread
        faiss.omp_set_num_threads(1)
        queries = np.ascontiguousarray(queries, np.float32)
        parts = []
        for segment in self._pool.segments:
            own = np.flatnonzero(segment.contributors == np.uint64(exclude))
            taken = min(k, len(segment) - len(own))
            if not taken:
                continue
            similarity, at = _search(self._index(segment), queries, taken, own)
            lacking = at < 0
            at = np.where(lacking, -1, at.astype(np.int64) + segment.base)
            parts.append(Found(at, np.where(lacking, np.float32(-np.inf), similarity)))
        return merge(parts, k, len(queries))

    def _index(self, segment: Segment) -> faiss.Index:
        if (built := self._indexes.get(segment.base)) is not None:
            return built
        with self._building:
            if segment.base not in self._indexes:
                self._indexes[segment.base] = _build(np.ascontiguousarray(segment.embeddings))
            return self._indexes[segment.base]


def _search(index: faiss.Index, queries: Float32, k: int, own: npt.NDArray[np.intp]) -> tuple[Float32, Int64]:
    """(similarities, positions in the segment), both [q, k]; `own` positions are passed over."""
    hidden = faiss.IDSelectorBatch(own.astype(np.int64))
    others = faiss.IDSelectorNot(hidden) if len(own) else None
    # the wheel's stubs know neither its keyword constructors nor that the factory gives the most derived class
    library: Any = faiss
    found: tuple[Float32, Int64]
    if isinstance(index, faiss.IndexFlat):
        found = index.search(queries, k, params=library.SearchParameters(sel=others))
        return found
    lists: int = library.extract_index_ivf(index).nlist
    share = min(max(_SHARE, _PER_HIT * (k + len(own)) / index.ntotal), 1.0)
    for probes in (int(np.ceil(share * lists)), lists):
        found = index.search(queries, k, params=library.SearchParametersIVF(sel=others, nprobe=probes))
        if (found[1] >= 0).all():
            break
    return found


def _build(vectors: Float32) -> faiss.Index:
    count, width = vectors.shape
    lists = int(4 * np.sqrt(count))
    kind = "Flat" if count <= FLAT_UP_TO else f"IVF{lists},SQ8"
    index = faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
    if count > FLAT_UP_TO:
        chosen = np.random.default_rng(0).permutation(count)[: 40 * lists]
        index.train(vectors[np.sort(chosen)])
    index.add(vectors)
    return index
