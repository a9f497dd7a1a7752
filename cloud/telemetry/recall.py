"""Recall as served: of some queries, what exact search would have found is compared with what matching found."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import numpy as np

from cloud.matching import MatchStore
from cloud.matching.exact import compare
from cloud.matching.store import Found, merge, searchable
from cloud.pool import Pool
from device_runtime.errors import CodaError
from device_runtime.samples import Float32, Int64

log = logging.getLogger("coda.telemetry")
_SHARE = 0.01
"""Of one core, at most, for comparing: exact search over a large pool costs many times what matching does."""
_DEPTH = 50
_AT_ONCE, _RESTS = 8192, 3


class RecallSampler:
    """Compares in a thread of its own, one query at a time; queries that come meanwhile are passed over.

    observe: told each recall, 0 to 1: of the 50 exact nearest of each centroid, the share that the store found.
    """

    def __init__(
        self,
        pool: Pool,
        store: MatchStore,
        observe: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool, self._store, self._observe, self._clock = pool, store, observe, clock
        self._free = threading.Lock()
        self._not_before = 0.0

    def offer(self, queries: Float32, exclude: int) -> threading.Thread | None:
        """Compare for this query if it is time to; returns the thread that does, which nobody need wait for."""
        if self._clock() < self._not_before or not self._free.acquire(blocking=False):
            return None
        thread = threading.Thread(target=self._compare, args=(queries, exclude), name="recall", daemon=True)
        thread.start()
        return thread

    def _compare(self, queries: Float32, exclude: int) -> None:
        began, used = self._clock(), time.thread_time()
        try:
            exact = self._exact(queries, exclude)
            found = self._store.search(queries, _DEPTH, exclude).positions
            wanted = sum(int((row >= 0).sum()) for row in exact)
            if wanted:
                hits = sum(len(set(e) & set(f) - {-1}) for e, f in zip(exact.tolist(), found.tolist(), strict=True))
                self._observe(hits / wanted)
        except CodaError as error:  # a pool that is damaged fails the matches themselves, and loudly
            log.warning("recall not sampled", extra={"facts": {"reason": str(error)}})
        finally:
            spent = max(time.thread_time() - used, 1e-3)
            self._not_before = began + spent / _SHARE
            self._free.release()

    def _exact(self, queries: Float32, exclude: int) -> Int64:
        """int64 [q, 50]. In small parts with rests between them: each holds up every match of this process."""
        parts: list[Found] = []
        for segment in self._pool.snapshot().segments:
            allowed = searchable(segment, exclude, None)
            rows = np.arange(len(segment)) if allowed is None else allowed
            for start in range(0, len(rows), _AT_ONCE):
                used = time.thread_time()
                parts.append(compare(segment, queries, _DEPTH, rows[start : start + _AT_ONCE]))
                time.sleep(_RESTS * (time.thread_time() - used))
        return merge(parts, _DEPTH, len(queries)).positions
