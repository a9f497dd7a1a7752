"""A thread that merges segments as they come, for whoever serves a pool."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from cloud.pool.pool import Pool
from cloud.pool.segment import Segment
from device_runtime.errors import StoreError

_log = logging.getLogger(__name__)


class Keeper:
    """Looks every `every_s` seconds whether the pool is due, and compacts it. Use it in a `with`. Several workers may
    each have one: they take turns, and who comes second finds it done.

    prepare: see `Pool.compact`.
    """

    def __init__(self, pool: Pool, prepare: Callable[[Segment], None], every_s: float = 30.0) -> None:
        self._pool, self._prepare, self._every_s = pool, prepare, every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="pool-keeper", daemon=True)

    def __enter__(self) -> Keeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Does not wait for a merge that is going on: cut short, it leaves the pool as it was."""
        self._stopping.set()

    def _keep(self) -> None:
        while not self._stopping.wait(self._every_s):
            try:
                if self._pool.due():
                    done = self._pool.compact(prepare=self._prepare)
                    _log.info("%d segments rewritten, %d now", done, len(self._pool.segments))
            except (StoreError, RuntimeError) as error:  # FAISS's own are RuntimeErrors; the next time may go better
                _log.error("segments could not be merged: %s", error)
