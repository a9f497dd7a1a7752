"""What a model does not explain of a pool: predicted once a segment, and kept beside it.

Neither a segment nor a released model ever changes. So each sample is predicted once, by whichever process is first,
and the predictions lie beside the segment for all processes to map (`kept`), as do the profiles of its contributors.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloud import drift
from cloud.matching.kept import BySegment, kept
from cloud.matching.profiles import Profiles, stretches
from cloud.pool import Segment
from device_runtime.samples import Float32, Float64, Int64, Ragged, SampleBatch

Predict = Callable[[SampleBatch], Float32]
"""The cloud model's probability of a like for each sample, float32 [n]."""
NEVER = np.iinfo(np.int64).max
AGES = np.array([*(2.0**i for i in range(3, 12)), np.inf])
"""Days. Items that were first liked within the same two of these are of an age."""


@dataclass(frozen=True)
class Unexplained:
    """Of a segment. predicted: float32 [n], the model's probabilities p. met, sums, mass: float64 [items]: samples of
    each item, and the sums of their residuals, label minus p, and of their variances, p (1 - p). half_life: days after
    which a sample counts half (`cloud.drift`), 0 for none. newest: seconds, of the newest sample, as of which they
    are counted. liked: int64 [items], seconds, of the first sample that likes it; NEVER where there is none."""

    predicted: Float32
    labels: Float32
    timestamps: Int64
    half_life: float
    newest: int
    met: Float64
    sums: Float64
    mass: Float64
    liked: Int64

    @staticmethod
    def of(segment: Segment, predicted: Float32, half_life: float = 0.0) -> Unexplained:
        item, labels, times = items_of(segment), segment.samples.labels, segment.timestamps
        newest = int(times.max()) if len(times) else 0
        residuals, variances, weight = labels - predicted, predicted * (1 - predicted), None
        if half_life:
            weight = drift.weights(newest - times, half_life)
            residuals, variances = weight * residuals, weight * variances
        met, sums, mass = total(item, weight), total(item, residuals), total(item, variances)
        return Unexplained(predicted, labels, times, half_life, newest, met, sums, mass, first_liked(segment))

    def residuals(self, rows: npt.NDArray[np.integer]) -> Float32:
        found: Float32 = self.labels[rows] - self.predicted[rows]
        return found

    def variances(self, rows: npt.NDArray[np.integer]) -> Float32:
        p = self.predicted[rows]
        found: Float32 = p * (1 - p)
        return found

    def weights(self, rows: npt.NDArray[np.integer], newest: int) -> Float64:
        """float64 [rows]: what they count as of a time."""
        return drift.weights(newest - self.timestamps[rows], self.half_life) if self.half_life else np.ones(len(rows))


def first_liked(segment: Segment, hidden: Int64 | None = None) -> Int64:
    """int64 [items], seconds, of the first sample that likes each, hidden rows aside; NEVER where there is none."""
    item, like = items_of(segment), segment.samples.labels >= 0.5
    if hidden is not None:
        like[hidden] = False
    found = np.full(int(item.max(initial=0)) + 1, NEVER)
    np.minimum.at(found, item[like], segment.timestamps[like])
    return found


@dataclass(frozen=True)
class Whole:
    """Of several segments. parts: of each. newest, met, sums, mass: as in `Unexplained`, of all together. age: int64
    [items], the place in `AGES` of the days that an item had been liked for by the newest sample; beyond its end for
    items that nobody likes."""

    parts: Sequence[Unexplained]
    newest: int
    met: Float64
    sums: Float64
    mass: Float64
    age: Int64


class Summed:
    """What all segments of a pool come to. It is added up anew when the pool changes, not for each question. Sums have
    hidden samples in them, which whoever asks takes out; ages do not."""

    def __init__(self, one: Callable[[Segment], Unexplained]) -> None:
        self._one = one
        self._last: tuple[Sequence[tuple[weakref.ref[SampleBatch], Int64]], Whole] | None = None

    def __call__(self, segments: Sequence[Segment]) -> Whole:
        last = self._last
        if last and len(last[0]) == len(segments):
            pairs = zip(last[0], segments, strict=True)
            if all(known() is s.samples and hidden is s.hidden for (known, hidden), s in pairs):
                return last[1]
        parts = [self._one(segment) for segment in segments]
        count = max((len(part.met) for part in parts), default=1)
        met, sums, mass, liked = np.zeros(count), np.zeros(count), np.zeros(count), np.full(count, NEVER)
        newest = max((part.newest for part in parts), default=0)
        for segment, part in zip(segments, parts, strict=True):
            faded = float(drift.weights(np.array([newest - part.newest]), part.half_life)[0])
            for whole, some in ((met, part.met), (sums, part.sums), (mass, part.mass)):
                whole[: len(some)] += faded * some
            first = first_liked(segment, segment.hidden) if len(segment.hidden) else part.liked
            np.minimum(liked[: len(first)], first, out=liked[: len(first)])
        age = np.where(liked == NEVER, len(AGES), np.searchsorted(AGES, (newest - liked) / drift.DAY))
        made = Whole(parts, newest, met, sums, mass, age)
        self._last = [(weakref.ref(segment.samples), segment.hidden) for segment in segments], made
        return made


class Knowledge:
    """`Unexplained` and `Profiles` of segments: made when first asked for, and kept (`kept.BySegment`).

    key: a name for the model, the same for the same predictions. columns: of an embedding, that describe the person.
    half_life: see `Unexplained`.
    """

    def __init__(self, predict: Predict, key: str, columns: int, half_life: float = 0.0) -> None:
        self._predict, self._key, self.columns, self._half_life = predict, key, columns, half_life
        self._known = BySegment(self._made)
        self.whole = Summed(self.residuals)

    def residuals(self, segment: Segment) -> Unexplained:
        return self._known(segment)[0]

    def profiles(self, segment: Segment) -> Profiles:
        return self._known(segment)[1]

    def prepare(self, segment: Segment) -> None:
        """Put beside a segment what matching will need. For `Pool.compact`."""
        self._known(segment)

    def _made(self, segment: Segment) -> tuple[Unexplained, Profiles]:
        predicted = kept(
            segment,
            f"predicted-{self._key}",
            (len(segment),),
            np.float32,
            lambda: predictions(segment.samples, self._predict),
        )
        ends = stretches(segment)
        vectors = kept(
            segment,
            f"profiles-{self.columns}",
            (len(ends), self.columns),
            np.float32,
            lambda: Profiles.of(segment, self.columns).vectors,
        )
        return Unexplained.of(segment, predicted, self._half_life), Profiles(vectors, ends)


def predictions(samples: SampleBatch, predict: Predict, at_once: int = 8192) -> Float32:
    """float32 [n]: of any number of samples."""
    parts = [predict(samples.take(slice(at, at + at_once))) for at in range(0, len(samples), at_once)]
    return np.concatenate([np.zeros(0, np.float32), *parts])


def items_of(segment: Segment) -> npt.NDArray[np.int32]:
    column = segment.samples.columns["item"]
    assert not isinstance(column, Ragged)
    return np.asarray(column, np.int32)


def total(item: npt.NDArray[np.integer], values: npt.NDArray[np.floating] | None, count: int = 0) -> Float64:
    """float64 [items]: the sum of each item's values; without any, how often it is there."""
    return np.bincount(item, values, count).astype(np.float64)
