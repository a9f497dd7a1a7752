"""The seam between matching and whatever searches vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cloud.matching.filter import Filter
from cloud.pool import Segment, Snapshot
from device_runtime.samples import Float32, Int64


@dataclass(frozen=True)
class Found:
    """positions: int64 [q, k], global pool positions, best first, -1 where there are no more. similarities: float32
    [q, k], inner products, larger = more similar; -inf where the position is -1."""

    positions: Int64
    similarities: Float32


class MatchStore(Protocol):
    """Searches a pool. Vectors are of unit length; similarity is the inner product, larger = more similar.

    Every implementation must pass `tests/cloud/matching/test_contract.py`, with `ExactStore` as the oracle.
    """

    name: str

    def search(
        self, queries: Float32, k: int, exclude: int, where: Filter | None = None, within: Snapshot | None = None
    ) -> Found:
        """The k most similar samples to each of the queries, float32 [q, width].

        exclude: a contributor's token; none of that contributor's samples is returned, and as many others are as if
        they were not there. where: samples that it does not let pass count as not there either; the same goes for what
        the pool hides. within: a snapshot of the pool, for those who look at it otherwise too; None = as it is now. A
        sample appears once a row at the most. Samples appended before the call are found.

        Raises:
            InputError: the filter names a feature that the pool lacks.
        """
        ...

    def prepare(self, segment: Segment) -> None:
        """Put beside a segment that is about to join the pool what searching it will need. For `Pool.compact`."""
        ...


def searchable(segment: Segment, exclude: int, where: Filter | None) -> Int64 | None:
    """Rows of a segment that an answer may show, int64 ascending; None = all of them."""
    if where is not None:
        mask = where.passes(segment)
        mask[segment.forbidden(exclude)] = False
        return np.flatnonzero(mask)
    return np.flatnonzero(segment.shown(exclude)) if len(segment.forbidden(exclude)) else None


def merge(parts: list[Found], k: int, queries: int) -> Found:
    """The k best of several searches over disjoint samples, each best first."""
    if not parts:
        return Found(np.full((queries, k), -1, np.int64), np.full((queries, k), -np.inf, np.float32))
    positions = np.concatenate([part.positions for part in parts], 1)
    similarities = np.concatenate([part.similarities for part in parts], 1)
    if len(parts) > 1:
        best = np.lexsort((positions, -similarities), axis=1)[:, :k]  # equal similarities go by position
        positions = np.take_along_axis(positions, best, 1)
        similarities = np.take_along_axis(similarities, best, 1)
    positions, similarities = positions[:, :k], similarities[:, :k]
    lacking = k - positions.shape[1]
    if lacking > 0:
        positions = np.pad(positions, ((0, 0), (0, lacking)), constant_values=-1)
        similarities = np.pad(similarities, ((0, 0), (0, lacking)), constant_values=-np.inf)
    return Found(positions, similarities)
