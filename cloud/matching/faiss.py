"""Search by FAISS: one immutable index a segment; exact where a segment is small, or few of its samples count."""

from __future__ import annotations

import logging
import queue
import threading
from typing import Any

import faiss
import numpy as np

from cloud.matching.exact import compare
from cloud.matching.filter import Filter
from cloud.matching.index import FLAT_UP_TO, Codes, SegmentIndex, build, library
from cloud.matching.store import Found, merge, searchable
from cloud.pool import Segment, Snapshot
from device_runtime.errors import StoreError
from device_runtime.samples import Float32, Int64

_TIGHT = 20_000
_TIGHT_SHARE = 0.01
"""So few samples of a segment, or such a share, are compared one by one: else nearly all lists would be looked into."""
_log = logging.getLogger(__name__)


class FaissStore:
    """See `MatchStore`.

    Indexes are built, or opened, by a thread of their own; until a segment has one, it is searched exactly. Segments
    never change, so nothing is ever removed from an index (FAISS's HNSW cannot, and its removal from inverted lists is
    a full pass); what must not show is passed over by a bitmap. codes: see `index`.
    """

    name = "faiss"

    def __init__(self, pool: Snapshot, codes: Codes = "sq8") -> None:
        self._pool, self._codes = pool, codes
        self._indexes: dict[str, SegmentIndex | None] = {}  # None: asked for, or not to be had
        self._wanted: queue.Queue[Segment] = queue.Queue()
        self._starting = threading.Lock()
        self._builder: threading.Thread | None = None

    def search(
        self, queries: Float32, k: int, exclude: int, where: Filter | None = None, within: Snapshot | None = None
    ) -> Found:
        # the server runs searches in its own threads; more inside each would only contend. OpenMP keeps it per thread
        faiss.omp_set_num_threads(1)
        queries = np.ascontiguousarray(queries, np.float32)
        segments = (within or self._pool).segments
        parts = [self._searched(segment, queries, k, exclude, where) for segment in segments]
        return merge(parts, k, len(queries))

    def wait(self) -> None:
        """Until every large segment that is in the pool now has its index, or it failed."""
        for segment in self._pool.segments:
            self._index(segment)
        self._wanted.join()

    def prepare(self, segment: Segment) -> None:
        """See `MatchStore`: its index."""
        if len(segment) > FLAT_UP_TO:
            build(segment, self._codes)

    def _searched(self, segment: Segment, queries: Float32, k: int, exclude: int, where: Filter | None) -> Found:
        index = self._index(segment)
        if index is None or k > len(segment) // 8:
            return compare(segment, queries, k, searchable(segment, exclude, where))
        forbidden = segment.forbidden(exclude)
        if where is None and len(forbidden) <= max(k, _TIGHT_SHARE * len(segment)) // 4:
            # few do not count: fetch as many more, and drop them
            wanted = min(k + len(forbidden), len(segment))
            similarity, at = index.search(segment, queries, wanted, wanted, None)
            similarity, at = _without(similarity, at, forbidden, min(k, len(segment) - len(forbidden)))
        else:
            rows = searchable(segment, exclude, where)
            assert rows is not None
            if len(rows) <= max(_TIGHT, _TIGHT_SHARE * len(segment)):
                return compare(segment, queries, k, rows)
            mask = np.zeros(len(segment), bool)
            mask[rows] = True
            selector = library.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
            deep = max(k * len(segment) / len(rows), k + len(forbidden))
            similarity, at = index.search(segment, queries, min(k, len(rows)), deep, selector)
        lacking = at < 0
        if lacking.any():  # the lists looked into hold too few that count
            return compare(segment, queries, k, searchable(segment, exclude, where))
        return Found(at + segment.base, similarity)

    def _index(self, segment: Segment) -> SegmentIndex | None:
        """The index if it is there; else it is asked for."""
        if len(segment) <= FLAT_UP_TO or not segment.name:
            return None
        try:
            return self._indexes[segment.name]
        except KeyError:
            with self._starting:
                if segment.name not in self._indexes:
                    self._indexes[segment.name] = None
                    self._wanted.put(segment)
                if self._builder is None:
                    # no daemon: one that is in FAISS when the interpreter ends aborts the process
                    self._builder = threading.Thread(target=self._build, name="faiss-indexes")
                    self._builder.start()
            return self._indexes[segment.name]

    def _build(self) -> None:
        faiss.omp_set_num_threads(1)
        while True:
            with self._starting:
                if self._wanted.empty() or not threading.main_thread().is_alive():  # nobody will search any more
                    self._builder = None
                    return
                segment = self._wanted.get()
            try:
                self._indexes[segment.name] = build(segment, self._codes)
                held = {s.name for s in self._pool.segments}
                for name in [name for name in self._indexes if name not in held]:
                    del self._indexes[name]
            except (OSError, StoreError, RuntimeError) as error:  # FAISS's own are RuntimeErrors
                if segment.folder and segment.folder.exists():  # else it was compacted away meanwhile
                    _log.error("no index for %s, it is searched exactly: %s", segment.folder, error)
            finally:
                self._wanted.task_done()


def _without(similarity: Float32, at: Int64, forbidden: Int64, k: int) -> tuple[Float32, Int64]:
    """The first k of each row that are not forbidden."""
    if not len(forbidden):
        return similarity[:, :k], at[:, :k]
    bad = np.isin(at, forbidden)
    order: Any = np.argsort(bad, axis=1, kind="stable")[:, :k]
    at, bad = np.take_along_axis(at, order, 1), np.take_along_axis(bad, order, 1)
    return np.take_along_axis(similarity, order, 1), np.where(bad, -1, at)
