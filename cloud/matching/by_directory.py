"""Matching by directory: so many samples of each part of the pool as the query's weights say. Needs no vector index.

A *part* of the pool is the samples that one of the directory's centroids is nearest to. Which sample lies in which part
is found once a segment and kept beside it. The number of candidates is divided over the parts by their weights. Within
a part samples are drawn without replacement, with odds that grow with their similarity to the centroid, as the device's
own weights do; as many liked ones as others, as far as there are; and contributors take turns of `TURN` samples, so
that nobody's taste stands for a part. Chance is seeded by the query: who asks the same again gets the same answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloud.matching.filter import Filter
from cloud.matching.kept import BySegment, kept
from cloud.pool import Pool, Segment
from device_runtime.directory import Directory
from device_runtime.samples import Bool, Float32, Float64, Int32, Int64, SampleBatch
from device_runtime.wire import DirectoryQuery

TURN = 4
"""Samples that a contributor gives before the next one does: their shared history is sent once."""
REACH, LEAST = 8, 64
"""Of a part, the samples that are nearest to the centroid are drawn from: so many times what is wanted of it, and at
least so many. It bounds what a query costs, however large the pool."""
_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Parts:
    """Of a segment. rows: int32 [n], those of part c being `rows[ends[c - 1] : ends[c]]`, most similar to its centroid
    first. ends: int32 [k]."""

    rows: Int32
    ends: Int32

    @staticmethod
    def of(embeddings: Float32, centroids: Float32) -> Parts:
        """embeddings: float32 [n, width]. centroids: float32 [k, width]."""
        n = len(embeddings)
        part, similarity = np.zeros(n, np.int32), np.zeros(n, np.float32)
        for start in range(0, n, _AT_ONCE):
            some = slice(start, min(start + _AT_ONCE, n))
            similarities = np.asarray(embeddings[some]) @ centroids.T
            part[some] = similarities.argmax(1)
            similarity[some] = np.take_along_axis(similarities, part[some, None], 1)[:, 0]
        rows = np.lexsort((-similarity, part)).astype(np.int32)  # which is stable: equal ones stay in the pool's order
        ends = np.cumsum(np.bincount(part, minlength=len(centroids))).astype(np.int32)
        return Parts(rows, ends)

    def of_part(self, number: int) -> Int32:
        return self.rows[self.ends[number - 1] if number else 0 : self.ends[number]]

    def before(self, end: int) -> Parts:
        """Of the segment's first rows, `end` not included."""
        stay = self.rows < end
        counts = np.concatenate((np.zeros(1, np.int64), np.cumsum(stay)))
        return Parts(self.rows[stay], counts[self.ends].astype(np.int32))


class Divided:
    """The parts of segments by a directory: made when first asked for, and kept (`kept.BySegment`)."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self._known = BySegment(self._made)

    def __call__(self, segment: Segment) -> Parts:
        return self._known(segment)

    def _made(self, segment: Segment) -> Parts:
        centroids, n = self.directory.centroids, len(segment)

        def make() -> Int32:
            found = Parts.of(segment.embeddings, centroids)
            return np.concatenate((found.ends, found.rows))

        both = kept(segment, f"directory-{self.directory.id}", (len(centroids) + n,), np.int32, make)
        return Parts(both[len(centroids) :], both[: len(centroids)])


def by_directory(
    pool: Pool,
    query: DirectoryQuery,
    exclude: int,
    directory: Directory,
    sharpness: float,
    parts: Callable[[Segment], Parts],
    where: Filter | None = None,
) -> tuple[SampleBatch, str]:
    """The candidates for a query, in the pool's order, and why there are fewer than asked for ("" if there are not).

    query: of this directory, which is for the caller to check. exclude: token of the asking contributor; none of its
    samples is returned, nor any that the pool hides or that `where` does not let pass. sharpness: see `RoundSettings`.
    parts: such as `Divided`.

    Raises:
        InputError: the filter names a feature that the pool lacks.
    """
    snapshot = pool.snapshot()
    asked = np.flatnonzero(query.weights)
    found: list[list[tuple[Segment, Int32]]] = [[] for _ in query.weights]
    available = np.zeros(len(query.weights), np.int64)
    for segment in snapshot.segments:
        mask, divided = _shown(segment, exclude, where), parts(segment)
        for number in asked:
            rows = divided.of_part(int(number))
            rows = rows if mask is None else rows[mask[rows]]
            available[number] += len(rows)
            found[number].append((segment, rows))
    shares = allot(query.weights, query.limit, available)
    rng = np.random.default_rng(_seed(query))
    picked = [
        _drawn(found[number], directory.centroids[number], int(shares[number]), sharpness, rng)
        for number in np.flatnonzero(shares)
    ]
    positions = np.sort(np.concatenate([np.zeros(0, np.int64), *picked]))
    short, reason = query.limit - len(positions), ""
    if short:
        reason = (
            f"the pool has only {len(positions)} samples of other contributors in the parts of the directory that the "
            "query names"
            if len(snapshot)
            else "the pool is empty"
        )
    return snapshot.gather(positions), reason


def allot(weights: npt.NDArray[np.uint8], wanted: int, available: Int64) -> Int64:
    """int64 [k]: how many of each part, by largest remainders (of equal ones, the first parts'); what a part lacks is
    given to the others by their weights. All of them together are `wanted`, or all that there are.

    weights: uint8 [k]. available: int64 [k], samples in each part.
    """
    weight, given = weights.astype(np.int64), np.zeros(len(weights), np.int64)
    while left := wanted - int(given.sum()):
        open_ = np.where(given < available, weight, 0)
        if not (total := int(open_.sum())):
            break
        share, remainder = np.divmod(open_ * left, total)
        best = np.lexsort((np.arange(len(weight)), -remainder))
        share[best[: left - int(share.sum())]] += 1
        given += np.minimum(share, available - given)
    return given


def _drawn(
    parts: list[tuple[Segment, Int32]], centroid: Float32, wanted: int, sharpness: float, rng: np.random.Generator
) -> Int64:
    """int64 [wanted]: positions of samples of one part. parts: its rows that may be shown, of which there are enough,
    by segment."""
    reach = max(REACH * wanted, LEAST)
    near = [(segment, rows[:reach]) for segment, rows in parts]
    positions = np.concatenate([segment.base + rows.astype(np.int64) for segment, rows in near])
    similarity = np.concatenate([segment.embeddings[rows] @ centroid for segment, rows in near])
    tokens = np.concatenate([segment.contributors[rows] for segment, rows in near])
    liked = np.concatenate([segment.samples.labels[rows] >= 0.5 for segment, rows in near])
    nearest = np.lexsort((positions, -similarity))[:reach]
    # the largest of log-odds with Gumbel noise are a draw without replacement (Vieira, 2014)
    score = sharpness * similarity[nearest].astype(np.float64) + rng.gumbel(size=len(nearest))
    order = nearest[np.lexsort((-score, _turns(tokens[nearest], score)))]
    return positions[_balanced(order, liked, wanted)]


def _turns(tokens: npt.NDArray[np.uint64], score: Float64) -> Int64:
    """int64 [n]: in which of their contributor's turns samples come, best scores first."""
    order = np.lexsort((-score, tokens))
    opens = np.flatnonzero(np.diff(tokens[order], prepend=tokens[order[:1]] + np.uint64(1)) != 0)
    sizes = np.diff(np.append(opens, len(order)))
    turns = np.zeros(len(order), np.int64)
    turns[order] = (np.arange(len(order)) - np.repeat(opens, sizes)) // TURN
    return turns


def _balanced(order: Int64, liked: Bool, wanted: int) -> Int64:
    """The first of each label, half and half, an odd one being of the label that comes first; if one label has too few,
    the other one fills up."""
    first = liked[order[0]]
    leading, others = order[liked[order] == first], order[liked[order] != first]
    half = max(wanted - wanted // 2, wanted - len(others))
    taken: Int64 = np.concatenate((leading[:half], others[: wanted - min(half, len(leading))]))
    return taken


def _shown(segment: Segment, exclude: int, where: Filter | None) -> Bool | None:
    """bool [n]: rows that an answer may show; None = all of them."""
    forbidden = segment.forbidden(exclude)
    if where is None and not len(forbidden):
        return None
    mask = np.ones(len(segment), bool) if where is None else where.passes(segment)
    mask[forbidden] = False
    return mask


def _seed(query: DirectoryQuery) -> int:
    """Of what is asked for; which rows the asker holds already is not a part of it."""
    asked = f"{query.encoder}\n{query.directory}\n{query.limit}\n".encode() + query.weights.tobytes()
    return int.from_bytes(hashlib.blake2b(asked, digest_size=8).digest(), "little")
