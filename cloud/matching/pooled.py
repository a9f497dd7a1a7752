"""Pooled matching: one candidate an item, which says what the pool knows of it that the cloud's model does not.

A single label of a single stranger is mostly noise, and what it says on average the cloud's model knows already. So
candidates carry *offsets*: by how much the logits of likes differ from the model's, the estimate over an item's samples
since the pool began, moved to that over those samples whose contributors are near the user's profile (Nadaraya, 1964;
Watson, 1964). An estimate is one step of Newton's method from the model's predictions p: the sum of residuals, label
minus p, over that of p (1 - p). Both are shrunk, so an item that hardly anybody met says nothing. What is of many
contributors has no history: the device puts in its user's own, and adds the offset to the model's logit for that user.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloud.matching.store import MatchStore
from cloud.pool import Pool, Segment
from device_runtime.bundle import RoundSettings
from device_runtime.candidates import as_labels
from device_runtime.errors import InputError
from device_runtime.samples import Column, Float32, Float64, Int64, Ragged, SampleBatch, Schema
from device_runtime.wire import MatchQuery, in_steps

Predict = Callable[[SampleBatch], Float32]
"""The cloud model's probability of a like for each sample, float32 [n]."""
EVEN = 0.25
"""p (1 - p) at even odds: what a sample that shrinks weighs."""


@dataclass(frozen=True)
class Unexplained:
    """What a model does not explain of a segment. residuals: float32 [n], label minus prediction p. variances: float32
    [n], p (1 - p). met, sums, mass: float64 [items]: samples of each item, and the sums of both."""

    residuals: Float32
    variances: Float32
    met: Float64
    sums: Float64
    mass: Float64

    @staticmethod
    def of(segment: Segment, predicted: Float32) -> Unexplained:
        residuals = (segment.samples.labels - predicted).astype(np.float32)
        item = items_of(segment)
        variances = (predicted * (1 - predicted)).astype(np.float32)
        met = np.bincount(item).astype(np.float64)
        return Unexplained(residuals, variances, met, _total(item, residuals), _total(item, variances))


Residuals = Callable[[Segment], Unexplained]


class ResidualCache:
    """Predicts each segment when it is first asked for, and keeps the result as long as anybody has the segment's
    samples: these never change, whatever becomes hidden of them."""

    def __init__(self, predict: Predict) -> None:
        self._predict = predict
        self._computing = threading.Lock()
        self._known: dict[int, tuple[weakref.ref[SampleBatch], Unexplained]] = {}

    def __call__(self, segment: Segment) -> Unexplained:
        with self._computing:
            found = self._known.get(segment.base)
            if found is None or found[0]() is not segment.samples:
                self._known = {base: one for base, one in self._known.items() if one[0]() is not None}
                result = Unexplained.of(segment, predictions(segment.samples, self._predict))
                found = self._known[segment.base] = weakref.ref(segment.samples), result
            return found[1]


def predictions(samples: SampleBatch, predict: Predict, at_once: int = 8192) -> Float32:
    """float32 [n]: of any number of samples."""
    parts = [predict(samples.take(slice(at, at + at_once))) for at in range(0, len(samples), at_once)]
    return np.concatenate([np.zeros(0, np.float32), *parts])


def items_of(segment: Segment) -> npt.NDArray[np.int32]:
    column = segment.samples.columns["item"]
    assert not isinstance(column, Ragged)
    return np.asarray(column, np.int32)


def pooled(
    pool: Pool, store: MatchStore, query: MatchQuery, exclude: int, settings: RoundSettings, residuals: Residuals
) -> tuple[SampleBatch, str]:
    """The candidates for a query, by ascending item, and why there are fewer than asked for ("" if there are not).

    A label is an offset (`device_runtime.candidates.as_labels`); histories are empty. query: its first vector is the
    profile; without one, all contributors count alike. exclude: token of the asking contributor; none of its samples
    counts, nor any that the pool hides. Items are preferred by how much their offsets change: squares, times samples.

    Raises:
        InputError: samples have features other than the item and histories.
    """
    snapshot = pool.snapshot()
    segments = snapshot.segments
    known = [residuals(segment) for segment in segments]
    count = max((len(one.met) for one in known), default=1)
    met, sums, mass = np.zeros(count), np.zeros(count), np.zeros(count)
    for segment, one in zip(segments, known, strict=True):
        gone = segment.forbidden(exclude)
        without = items_of(segment)[gone]
        met += _padded(one.met, count) - _total(without, np.ones(len(gone)), count)
        sums += _padded(one.sums, count) - _total(without, one.residuals[gone], count)
        mass += _padded(one.mass, count) - _total(without, one.variances[gone], count)
    offset = sums / (mass + EVEN * settings.shrinkage)
    if len(query.centroids) and settings.neighbours and met.any():
        most = min(len(snapshot), settings.neighbours)
        found = store.search(query.centroids[:1], most, exclude, within=snapshot)
        at = found.positions[0][found.positions[0] >= 0]
        item, residual, variance = _columns(segments, known, at)
        weight = kernel(found.similarities[0][: len(at)], settings)
        near = _total(item, weight * (residual - variance * offset[item]), count)
        offset += near / (_total(item, weight * variance, count) + EVEN * settings.near_shrinkage)
    order = np.lexsort((-met, -met * offset**2))
    order = order[(met[order] > 0) & (order > 0)][: query.limit]
    short = query.limit - len(order)
    reason = f"the pool has only {len(order)} items of other contributors" if short else ""
    picked = np.sort(order)
    return _batch(pool.schema, picked, in_steps(as_labels(offset[picked]))), reason


def kernel(similarities: Float32, settings: RoundSettings) -> Float64:
    """Weights of neighbours, best first: 1 up to the `core`-th, then falling with the lack of similarity to that."""
    core = similarities[min(settings.core, len(similarities)) - 1] if len(similarities) else 0.0
    lack = np.maximum(core - similarities, 0)
    weights: Float64 = np.exp(-settings.sharpness * lack.astype(np.float64))
    return weights


def _total(item: npt.NDArray[np.integer], values: npt.NDArray[np.floating], count: int = 0) -> Float64:
    """float64 [items]: the sum of each item's values."""
    return np.bincount(item, values, count).astype(np.float64)


def _padded(values: Float64, count: int) -> Float64:
    return np.pad(values, (0, count - len(values)))


def _columns(
    segments: tuple[Segment, ...], known: list[Unexplained], positions: Int64
) -> tuple[Int64, Float32, Float32]:
    """Item, residual and variance of these positions in the pool."""
    item = np.zeros(len(positions), np.int64)
    residual, variance = np.zeros(len(positions), np.float32), np.zeros(len(positions), np.float32)
    for segment, one in zip(segments, known, strict=True):
        at = np.flatnonzero((positions >= segment.base) & (positions < segment.base + len(segment)))
        item[at] = items_of(segment)[positions[at] - segment.base]
        residual[at] = one.residuals[positions[at] - segment.base]
        variance[at] = one.variances[positions[at] - segment.base]
    return item, residual, variance


def _batch(schema: Schema, items: Int64, labels: Float32) -> SampleBatch:
    none = np.zeros(len(items), np.int32)
    columns: dict[str, Column] = {}
    for feature in schema.features:
        if feature.kind == "ids":
            columns[feature.name] = Ragged(none[:0], none, none)
        elif feature.name == "item":
            columns[feature.name] = items.astype(np.int32)
        else:
            raise InputError(
                f"pooled matching knows items and histories only, and this model has {feature.name!r}; "
                "export it with the round setting matching = nearest"
            )
    return SampleBatch(schema, columns, labels)
