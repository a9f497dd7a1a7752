"""Recall as served: of some queries, what exact search would have found is compared with what matching found."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from cloud.matching.exact import compare
from cloud.matching.store import merge, searchable
from cloud.pool import Pool
from device_runtime.errors import CodaError
from device_runtime.samples import Float32, Int64

log = logging.getLogger("coda.telemetry")
_SHARE = 0.01
"""Of one core, at most, for comparing: exact search over a large pool costs many times what matching does."""
_AT_ONCE, _RESTS = 8192, 3
Find = Callable[[Float32, int], Sequence[Int64]]
"""(queries float32 [q, width], the asker's token) -> of each query the positions that matching takes for the nearest,
int64; -1 for none."""


class RecallSampler:
    """Compares in a thread of its own, one query at a time; queries that come meanwhile are passed over.

    depth: of how many exact nearest of each vector the recall is. observe: told each recall, 0 to 1: the share of these
    that matching found.
    """

    def __init__(
        self,
        pool: Pool,
        find: Find,
        depth: int,
        observe: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool, self._find, self._depth, self._observe, self._clock = pool, find, depth, observe, clock
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
            found = self._find(queries, exclude)
            wanted = sum(int((row >= 0).sum()) for row in exact)
            if wanted:
                hits = sum(len(np.intersect1d(e[e >= 0], f)) for e, f in zip(exact, found, strict=True))
                self._observe(hits / wanted)
        except CodaError as error:  # a pool that is damaged fails the matches themselves, and loudly
            log.warning("recall not sampled", extra={"facts": {"reason": str(error)}})
        finally:
            spent = max(time.thread_time() - used, 1e-3)
            self._not_before = began + spent / _SHARE
            self._free.release()

    def _exact(self, queries: Float32, exclude: int) -> Int64:
        """int64 [q, depth]. In small parts with rests between them: each holds up every match of this process."""
        best = merge([], self._depth, len(queries))
        for segment in self._pool.snapshot().segments:
            allowed = searchable(segment, exclude, None)
            rows = np.arange(len(segment)) if allowed is None else allowed
            for start in range(0, len(rows), _AT_ONCE):
                used = time.thread_time()
                part = compare(segment, queries, self._depth, rows[start : start + _AT_ONCE])
                best = merge([best, part], self._depth, len(queries))
                time.sleep(_RESTS * (time.thread_time() - used))
        return best.positions
