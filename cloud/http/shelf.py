"""The bundles that a server answers for, each opened once: its pool, what matches in it, and its encoder."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from cloud.encoding import Encoder
from cloud.matching import MatchStore, ResidualCache
from cloud.pool import Keeper, Pool
from device_runtime.bundle import Manifest
from device_runtime.errors import StoreError
from device_runtime.messages import BundleRef


@dataclass(frozen=True)
class Served:
    """A bundle as the server needs it."""

    ref: BundleRef
    manifest: Manifest
    pool: Pool
    store: MatchStore
    encoder: Encoder

    @cached_property
    def residuals(self) -> ResidualCache:
        """What the pool knows beyond the model: for pooled matching."""
        return ResidualCache(self.encoder.predict)


Opener = Callable[[int, Sequence[Served]], Served]
"""Opens a bundle by its version, given those that are open: what they share is opened once."""


class Shelf:
    """first: the bundle that the server came up with; it stays, and whoever opened it keeps its pool. The pools of
    others are kept (`cloud.pool.Keeper`) as long as they are open. opener: None where there is no other."""

    def __init__(self, first: Served, opener: Opener | None) -> None:
        self._first, self._opener = first, opener
        self._lock = threading.Lock()
        self._open = {first.ref.version: first}
        self._keepers: list[tuple[Pool, Keeper]] = []

    def of(self, version: int) -> Served:
        """A bundle, opened if it is not. Raises: InputError: there is none of this version. StoreError: damaged."""
        found = self._open.get(version)
        if found is not None:
            return found
        with self._lock:
            if version not in self._open:
                if self._opener is None:
                    raise StoreError(f"bundle {version} is not here")
                found = self._opener(version, list(self._open.values()))
                if all(found.pool is not other.pool for other in self._open.values()):
                    self._keepers.append((found.pool, Keeper(found.pool, found.store.prepare).__enter__()))
                self._open[version] = found
            return self._open[version]

    def at_hand(self, version: int) -> Served:
        """A bundle if it is open, else the first."""
        return self._open.get(version, self._first)

    def opened(self) -> list[Served]:
        return list(self._open.values())

    def keep(self, versions: Collection[int]) -> None:
        """Close all but these; they are opened anew if somebody asks."""
        with self._lock:
            kept = {v: one for v, one in self._open.items() if v in versions or one is self._first}
            for pool, keeper in list(self._keepers):
                if all(one.pool is not pool for one in kept.values()):
                    keeper.__exit__()
                    self._keepers.remove((pool, keeper))
            self._open = kept
