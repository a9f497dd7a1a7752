"""Whose samples are near a person: contributors compared by a few means each, instead of sample by sample.

A pooled answer weighs samples by how near their contributor is to the asker, so all samples of a contributor from about
the same time weigh the same. A *stretch* is up to `LONGEST` samples of one contributor that lie together; its profile
is the mean of what of their embeddings describes the person. There are some thirty times fewer stretches than samples,
so a query compares with all of them, exactly, and needs no index; and leaving the asker out is leaving out stretches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cloud.pool import Segment
from device_runtime.bundle import RoundSettings
from device_runtime.samples import Float32, Float64, Int32, Int64

LONGEST = 32
"""A history changes while its owner goes on; docs/adr/0012 has what other lengths give."""
_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Profiles:
    """Of the stretches of a segment. vectors: float32 [s, persons' columns]. ends: int32 [s], ascending: stretch i is
    `segment.owners.rows[ends[i - 1] : ends[i]]`."""

    vectors: Float32
    ends: Int32

    @staticmethod
    def of(segment: Segment, columns: int) -> Profiles:
        """columns: the first ones of an embedding, which describe the person."""
        ends = stretches(segment)
        starts = np.concatenate(([0], ends[:-1]))
        vectors = np.zeros((len(ends), columns), np.float32)
        first = 0
        while first < len(ends):  # some stretches at a time, for the memory
            last = max(first + 1, int(np.searchsorted(ends, starts[first] + _AT_ONCE, "right")))
            rows = segment.owners.rows[starts[first] : ends[last - 1]]
            sums = np.add.reduceat(segment.embeddings[rows, :columns], starts[first:last] - starts[first])
            vectors[first:last] = sums / (ends[first:last] - starts[first:last])[:, None]
            first = last
        return Profiles(vectors, ends)

    @cached_property
    def starts(self) -> Int32:
        return np.concatenate((np.zeros(1, np.int32), self.ends))[:-1].astype(np.int32)

    @cached_property
    def sizes(self) -> Int32:
        return self.ends - self.starts

    def similarities(self, segment: Segment, profile: Float32, exclude: int) -> Float32:
        """float32 [s]: inner products with the profile, float32 [columns]; -inf of the asker's own stretches."""
        found: Float32 = self.vectors @ profile
        owners = segment.owners
        at = int(np.searchsorted(owners.tokens, np.uint64(exclude)))
        if at < len(owners.tokens) and owners.tokens[at] == np.uint64(exclude):
            begin, end = owners.ends[at - 1] if at else 0, owners.ends[at]
            own = np.searchsorted(self.ends, [begin, end - 1], "right")
            found[own[0] : own[1] + 1] = -np.inf
        return found


def nearest(
    segments: Sequence[Segment], known: Sequence[Profiles], profile: Float32, exclude: int, settings: RoundSettings
) -> list[tuple[Int64, Float64]]:
    """For each segment (rows int64, weights float64): the samples whose contributors are nearest to the profile.

    Whole stretches are taken, nearest first, until there are `settings.neighbours` samples. They weigh 1 up to the one
    with the `settings.core`-th sample, then less with the lack of similarity to that. What the pool hides weighs
    nothing; until it is compacted away it counts as neighbours.
    """
    if not segments:
        return []
    sizes = np.concatenate([p.sizes for p in known])
    similarities = np.concatenate(
        [p.similarities(segment, profile, exclude) for segment, p in zip(segments, known, strict=True)]
    )
    best = _best(similarities, sizes, settings.neighbours)
    reached = np.cumsum(sizes[best])
    core = similarities[best[np.searchsorted(reached, min(settings.core, reached[-1]))]] if len(best) else np.float32(0)
    weights = np.exp(-settings.sharpness * np.maximum(core - similarities[best], 0).astype(np.float64))
    found, ends = [], np.cumsum([len(p.ends) for p in known])
    of_segment = np.searchsorted(ends, best, "right")
    for number, (segment, p) in enumerate(zip(segments, known, strict=True)):
        mine = np.flatnonzero(of_segment == number)
        if not len(mine):  # of the many small segments of a pool that grows, few have any
            found.append((np.zeros(0, np.int64), np.zeros(0)))
            continue
        stretch, size = best[mine] - (ends[number] - len(p.ends)), sizes[best[mine]]
        first = np.cumsum(size) - size
        places = np.arange(size.sum()) + np.repeat(p.starts[stretch] - first, size)
        rows = segment.owners.rows[places].astype(np.int64)
        weight = np.repeat(weights[mine], size)
        if len(segment.hidden):
            at = np.minimum(np.searchsorted(segment.hidden, rows), len(segment.hidden) - 1)
            shown = segment.hidden[at] != rows
            rows, weight = rows[shown], weight[shown]
        found.append((rows, weight))
    return found


def _best(similarities: Float32, sizes: npt.NDArray[np.integer], most: int) -> Int64:
    """int64: stretches, most similar first, of `most` samples or of the few more that the last one brings."""
    allowed = int(np.count_nonzero(similarities > -np.inf))
    count = min(allowed, max(16, 2 * most // max(int(sizes.mean()), 1)) if len(sizes) else 0)
    while True:
        best = (
            np.argpartition(-similarities, count - 1)[:count] if 0 < count < len(similarities) else _all(similarities)
        )
        best = best[np.lexsort((best, -similarities[best]))]
        reached = np.cumsum(sizes[best])
        if count >= allowed or reached[-1] >= most:
            return best[: int(np.searchsorted(reached, most)) + 1]
        count = min(2 * count, allowed)


def _all(similarities: Float32) -> Int64:
    return np.flatnonzero(similarities > -np.inf)


def stretches(segment: Segment) -> Int32:
    """int32: where each stretch ends in `segment.owners.rows`. A contributor's samples are cut into the fewest parts,
    of about equal length."""
    owner_ends = segment.owners.ends
    begins = np.concatenate((np.zeros(1, np.int32), owner_ends))[:-1]
    sizes = owner_ends - begins
    parts = -(-sizes // LONGEST)
    number = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)  # of the part, within its contributor
    whole = np.repeat(parts, parts)
    ends = np.repeat(begins, parts) + (number + 1) * np.repeat(sizes, parts).astype(np.int64) // whole
    last: Int32 = ends.astype(np.int32)
    return last
