"""The bundles that a server answers for, each opened once: its pool, what matches in it, and its encoder."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cloud.encoding import Encoder
from cloud.matching import Counting, Divided, FaissStore, Knowledge, MatchStore, by_profiles
from cloud.pool import Keeper, Pool, Segment
from device_runtime.bundle import Manifest, RoundSettings
from device_runtime.errors import InputError, StoreError
from device_runtime.messages import BundleRef
from device_runtime.samples import Float32, Int64

NEAREST = 50
"""Of so many nearest samples of each centroid the recall is sampled."""


@dataclass(frozen=True)
class Served:
    """A bundle as the server needs it."""

    ref: BundleRef
    manifest: Manifest
    pool: Pool
    store: MatchStore
    encoder: Encoder

    @cached_property
    def settings(self) -> RoundSettings:
        """Of a round, with what training found."""
        return self.manifest.found.completing(self.manifest.settings)

    @cached_property
    def knowledge(self) -> Knowledge:
        """What the pool knows beyond the model: for pooled matching."""
        manifest = self.manifest
        blobs = [manifest.graphs["score"].files["onnx"].file, manifest.weights, *manifest.tables["item"].shards]
        digest = hashlib.sha256("".join(blob.sha256 for blob in blobs).encode())
        counting = Counting.by(self.settings)
        return Knowledge(self.encoder.predict, digest.hexdigest()[:16], manifest.filter_from, counting)

    @cached_property
    def divided(self) -> Divided:
        """The pool's parts: for matching by directory. Raises: InputError: the bundle has none."""
        if self.encoder.directory is None:
            raise InputError(f"bundle {self.manifest.version} has no directory")
        return Divided(self.encoder.directory)

    def prepare(self, segment: Segment) -> None:
        """Put beside a segment what matching will need. For `Pool.compact`."""
        matching = self.settings.matching
        if matching == "nearest":
            self.store.prepare(segment)
        elif matching == "pooled":
            self.knowledge.prepare(segment)
        else:
            self.divided(segment)

    def nearest(self, queries: Float32, exclude: int) -> Sequence[Int64]:
        """Positions of the samples that matching takes for the nearest to each vector, int64; -1 for none. exclude:
        the asker's token."""
        if self.settings.matching == "nearest":
            return list(self.store.search(queries, NEAREST, exclude).positions)
        snapshot, near = self.pool.snapshot(), by_profiles(self.knowledge)
        found = []
        for query in queries:
            parts = near(snapshot, query, exclude, self.settings)
            rows = [s.base + rows for s, (rows, _) in zip(snapshot.segments, parts, strict=True)]
            found.append(np.concatenate([np.zeros(0, np.int64), *rows]))
        return found

    @property
    def depth(self) -> int:
        """How many nearest samples are compared with exact ones."""
        return NEAREST if self.settings.matching == "nearest" else self.settings.neighbours

    def warm(self, wait: bool = False) -> None:
        """Make what matching needs and is not there yet, so that no device waits for it. An index is built in the
        background, unless one shall `wait` for it: until then there is exact search."""
        if len(self.pool) and self.settings.matching == "nearest":
            self.store.search(np.zeros((1, self.manifest.width), np.float32), 1, 0)
            if wait and isinstance(self.store, FaissStore):
                self.store.wait()
            return
        for segment in self.pool.segments:
            self.prepare(segment)


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
                found.warm()
                if all(found.pool is not other.pool for other in self._open.values()):
                    self._keepers.append((found.pool, Keeper(found.pool, found.prepare).__enter__()))
                self._open[version] = found
            return self._open[version]

    def at_hand(self, version: int) -> Served:
        """A bundle if it is open, else the first."""
        return self._open.get(version, self._first)

    def opened(self) -> list[Served]:
        return list(self._open.values())

    def keep(self, versions: Collection[int]) -> None:
        """Close all but these, and open them before a device asks. Raises: StoreError: one is damaged."""
        with self._lock:
            kept = {v: one for v, one in self._open.items() if v in versions or one is self._first}
            for pool, keeper in list(self._keepers):
                if all(one.pool is not pool for one in kept.values()):
                    keeper.__exit__()
                    self._keepers.remove((pool, keeper))
            self._open = kept
        if self._opener is not None:
            for version in sorted(versions):
                self.of(version)
