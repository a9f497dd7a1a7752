"""What a model does not explain of a pool: predicted once a segment, and kept beside it.

Neither a segment nor a released model ever changes. So each sample is predicted once, by whichever process is first,
and the predictions lie beside the segment for all processes to map (`kept`), as do the profiles of its contributors.

What a model leaves unexplained of samples that it was fitted on is what it could not learn, and tells only in part what
it will not explain of others. So these count less; and nothing, where what becomes of items of an age is asked: of that
the model was told (docs/adr/0029).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from cloud import drift
from cloud.matching.kept import BySegment, kept
from cloud.matching.profiles import Profiles, stretches
from cloud.pool import Segment
from device_runtime.bundle import RoundSettings
from device_runtime.samples import Float32, Float64, Int64, Ragged, SampleBatch

Predict = Callable[[SampleBatch], Float32]
"""The cloud model's probability of a like for each sample, float32 [n]."""
NEVER = np.iinfo(np.int64).max
AGES = np.array([*(2.0**i for i in range(3, 12)), np.inf])
"""Days. Items that were first liked within the same two of these are of an age."""
GROUPS = len(AGES) + 1
"""The last one is of items that nobody likes."""


@dataclass(frozen=True)
class Counting:
    """What samples count. half_life: days after which one counts half (`cloud.drift`), 0 for never. fitted_until:
    seconds; the model was fitted on samples up to then, which count `fitted_weight`; 0 where nothing is known of it."""

    half_life: float = 0.0
    fitted_until: float = 0.0
    fitted_weight: float = 1.0

    @staticmethod
    def by(settings: RoundSettings) -> Counting:
        return Counting(settings.half_life or 0.0, settings.fitted_until or 0.0, settings.fitted_weight)

    def fitted(self, times: Int64) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = times <= (self.fitted_until or -np.inf)
        return found

    def faded(self, seconds: npt.NDArray[np.integer]) -> Float64:
        """float64 [n]: what samples of such an age count, fitted or not."""
        return drift.weights(seconds, self.half_life)


ALIKE = Counting()


@dataclass(frozen=True)
class Unexplained:
    """Of a segment. predicted: float32 [n], the model's probabilities p. asked: int64 [n], seconds, see `asked`. met,
    sums, mass: float64 [items]: samples of each item, as they fade, and what these count times their residuals, label
    minus p, and their variances, p (1 - p). newest: seconds, of the newest sample, as of which they are counted. liked:
    int64 [items], seconds, of the first sample that likes it; NEVER where there is none."""

    predicted: Float32
    labels: Float32
    timestamps: Int64
    asked: Int64
    counting: Counting
    newest: int
    met: Float64
    sums: Float64
    mass: Float64
    liked: Int64

    @staticmethod
    def of(segment: Segment, predicted: Float32, counting: Counting = ALIKE, known: Int64 | None = None) -> Unexplained:
        """known: what `asked` gives, where that has been found before."""
        item, labels, times = items_of(segment), segment.samples.labels, segment.timestamps
        newest = int(times.max()) if len(times) else 0
        faded = counting.faded(newest - times)
        counted = np.where(counting.fitted(times), counting.fitted_weight, 1.0) * faded
        sums = total(item, counted * (labels - predicted))
        mass = total(item, counted * (predicted * (1 - predicted)))
        return Unexplained(
            predicted,
            labels,
            times,
            asked(segment) if known is None else known,
            counting,
            newest,
            total(item, faded),
            sums,
            mass,
            first_liked(segment),
        )

    def residuals(self, rows: npt.NDArray[np.integer]) -> Float32:
        found: Float32 = self.labels[rows] - self.predicted[rows]
        return found

    def variances(self, rows: npt.NDArray[np.integer]) -> Float32:
        p = self.predicted[rows]
        found: Float32 = p * (1 - p)
        return found

    def newest_but(self, gone: Int64) -> int:
        """Seconds, of the newest sample aside from these rows; 0 if there is no other."""
        if not len(gone) or self.timestamps[gone].max() < self.newest:
            return self.newest
        return int(np.delete(self.timestamps, gone).max(initial=0))

    def faded(self, rows: npt.NDArray[np.integer], newest: int) -> Float64:
        """float64 [rows]: what they count as of a time, fitted or not."""
        return self.counting.faded(newest - self.timestamps[rows])

    def weights(self, rows: npt.NDArray[np.integer], newest: int) -> Float64:
        """float64 [rows]: what they count as of a time."""
        fitted = self.counting.fitted(self.timestamps[rows])
        found: Float64 = np.where(fitted, self.counting.fitted_weight, 1.0) * self.faded(rows, newest)
        return found


def first_liked(segment: Segment, hidden: Int64 | None = None) -> Int64:
    """int64 [items], seconds, of the first sample that likes each, hidden rows aside; NEVER where there is none."""
    item, like = items_of(segment), segment.samples.labels >= 0.5
    if hidden is not None:
        like[hidden] = False
    found = np.full(int(item.max(initial=0)) + 1, NEVER)
    np.minimum.at(found, item[like], segment.timestamps[like])
    return found


def ages(liked: Int64, now: Int64 | int) -> Int64:
    """int64, of `GROUPS`: of items that were first liked at such times, as of others; NEVER, or later: not yet."""
    found: Int64 = np.where(liked < now, np.searchsorted(AGES, (now - np.minimum(liked, now)) / drift.DAY), len(AGES))
    return found


def asked(segment: Segment) -> Int64:
    """int64 [n], seconds: when a device which went on to meet each sample's item may have asked last. That is at the
    sample before it of the same contributor in the segment; at its own time, of a contributor's first."""
    owners = segment.owners
    number = np.repeat(np.arange(len(owners.ends)), np.diff(owners.ends, prepend=0))
    rows = owners.rows[np.lexsort((segment.timestamps[owners.rows], number))]
    times, found = segment.timestamps[rows], np.empty(len(rows), np.int64)
    found[rows] = np.where(np.diff(number, prepend=-1) != 0, times, np.concatenate((times[:1], times[:-1])))
    return found


@dataclass(frozen=True)
class Aged:
    """Of the samples of a segment that the model was not fitted on. age: int8 [n], of `GROUPS`, of each sample's item
    as of when a device may have `asked`; -1 of those that it was fitted on. sums, mass: float64 [GROUPS], as in
    `Unexplained`."""

    age: npt.NDArray[np.int8]
    sums: Float64
    mass: Float64

    @staticmethod
    def of(segment: Segment, part: Unexplained, liked: Int64) -> Aged:
        """liked: int64 [items], seconds, of the first sample that likes each, in this segment or in one before it."""
        rows = np.flatnonzero(~part.counting.fitted(segment.timestamps))
        age = np.full(len(segment), -1, np.int8)
        age[rows] = ages(liked[items_of(segment)[rows]], part.asked[rows])
        return Aged(age, *_by_age(age, part, rows, part.newest))

    def without(self, part: Unexplained, rows: Int64, newest: int) -> tuple[Float64, Float64]:
        """What these rows are of sums and mass, as of a time."""
        return _by_age(self.age, part, rows[self.age[rows] >= 0], newest)


def _by_age(age: npt.NDArray[np.int8], part: Unexplained, rows: Int64, newest: int) -> tuple[Float64, Float64]:
    counted, at = part.faded(rows, newest), age[rows]
    return total(at, counted * part.residuals(rows), GROUPS), total(at, counted * part.variances(rows), GROUPS)


@dataclass(frozen=True)
class Whole:
    """Of several segments. parts, aged: of each. newest, met, sums, mass: as in `Unexplained`, of all together.
    age_sums, age_mass: float64 [GROUPS], as in `Aged`. liked: int64 [items], seconds, of each item's first like that is
    not hidden, or NEVER; age: int64 [items], of `GROUPS`, by it as of the newest sample."""

    parts: Sequence[Unexplained]
    aged: Sequence[Aged]
    newest: int
    met: Float64
    sums: Float64
    mass: Float64
    age_sums: Float64
    age_mass: Float64
    liked: Int64
    age: Int64


@dataclass(frozen=True)
class _Known:
    """A segment as it was when it was counted. liked: as of `first_liked`, hidden rows aside."""

    samples: weakref.ref[SampleBatch]
    hidden: Int64
    part: Unexplained
    liked: Int64
    aged: Aged

    def still(self, segment: Segment) -> bool:
        return self.samples() is segment.samples and self.hidden is segment.hidden


class Summed:
    """What all segments of a pool come to. It is added up anew when the pool changes, not for each question, and only
    segments that are new are looked at. Sums have hidden samples in them, which whoever asks takes out; ages do not.
    """

    def __init__(self, one: Callable[[Segment], Unexplained]) -> None:
        self._one = one
        self._last: tuple[Sequence[_Known], Whole] | None = None

    def __call__(self, segments: Sequence[Segment]) -> Whole:
        last = self._last
        pairs = zip(last[0] if last else (), segments, strict=False)
        known = [one for one, _ in takewhile(lambda pair: pair[0].still(pair[1]), pairs)]
        if last and len(known) == len(segments) == len(last[0]):
            return last[1]
        liked = _earliest([one.liked for one in known])
        for segment in segments[len(known) :]:
            part = self._one(segment)
            own = first_liked(segment, segment.hidden) if len(segment.hidden) else part.liked
            liked = _earliest([liked, own])
            known.append(_Known(weakref.ref(segment.samples), segment.hidden, part, own, Aged.of(segment, part, liked)))
        made = _whole(known, liked)
        self._last = known, made
        return made


def _earliest(times: Sequence[Int64]) -> Int64:
    """int64 [items, 1 at least]: the earliest of each item's, of arrays that may differ in length."""
    found = np.full(max((len(one) for one in times), default=1), NEVER)
    for one in times:
        np.minimum(found[: len(one)], one, out=found[: len(one)])
    return found


def _whole(known: Sequence[_Known], liked: Int64) -> Whole:
    count = len(liked)
    met, sums, mass = np.zeros(count), np.zeros(count), np.zeros(count)
    age_sums, age_mass = np.zeros(GROUPS), np.zeros(GROUPS)
    newest = max((one.part.newest for one in known), default=0)
    for one in known:
        faded = float(one.part.counting.faded(np.array([newest - one.part.newest]))[0])
        some = (one.part.met, one.part.sums, one.part.mass, one.aged.sums, one.aged.mass)
        for whole, part in zip((met, sums, mass, age_sums, age_mass), some, strict=True):
            whole[: len(part)] += faded * part
    parts, aged = [one.part for one in known], [one.aged for one in known]
    return Whole(parts, aged, newest, met, sums, mass, age_sums, age_mass, liked, ages(liked, newest + 1))


class Knowledge:
    """`Unexplained` and `Profiles` of segments: made when first asked for, and kept (`kept.BySegment`).

    key: a name for the model, the same for the same predictions. columns: of an embedding, that describe the person.
    """

    def __init__(self, predict: Predict, key: str, columns: int, counting: Counting = ALIKE) -> None:
        self._predict, self._key, self.columns, self._counting = predict, key, columns, counting
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
        times = kept(segment, "asked-last", (len(segment),), np.int64, lambda: asked(segment))
        ends = stretches(segment)
        vectors = kept(
            segment,
            f"profiles-{self.columns}",
            (len(ends), self.columns),
            np.float32,
            lambda: Profiles.of(segment, self.columns).vectors,
        )
        return Unexplained.of(segment, predicted, self._counting, times), Profiles(vectors, ends)


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
