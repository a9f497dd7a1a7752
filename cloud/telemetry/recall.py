"""Recall as served: of some queries, what exact search would have found is compared with what matching found."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from cloud.matching import ExactStore, MatchStore
from cloud.pool import Pool
from device_runtime.errors import CodaError
from device_runtime.samples import Float32

log = logging.getLogger("coda.telemetry")
_SHARE = 0.01
"""Of one core, at most, for comparing: exact search over a large pool costs many times what matching does."""
_DEPTH = 50


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
            exact = ExactStore(self._pool).search(queries, _DEPTH, exclude).positions
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
