"""Pooled matching: one candidate an item, which says what the pool knows of it that the cloud's model does not.

A single label of a single stranger is mostly noise, and what it says on average the cloud's model knows already. So
candidates carry *offsets*: by how much the logits of likes differ from the model's, the estimate over an item's samples
since the pool began, moved to that over those samples whose contributors are near the user's profile (Nadaraya, 1964;
Watson, 1964). Older samples weigh less where `cloud.drift` found that they say less, and so do those that the model was
fitted on (docs/adr/0029). An estimate is one step of
Newton's method from the model's predictions p: the sum of residuals, label minus p, over that of p (1 - p). Both are
shrunk: an item that hardly anybody met is taken to be as all are that were first liked as long ago (docs/adr/0024).
What is of many contributors has no history: the device puts in its user's own, and adds the offset to the model's logit
for that user.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cloud.matching.profiles import nearest
from cloud.matching.store import MatchStore
from cloud.matching.unexplained import Knowledge, Whole, ages, items_of, total
from cloud.pool import Pool, Segment, Snapshot
from cloud.shrinkage import EVEN
from device_runtime.bundle import Found, RoundSettings
from device_runtime.candidates import LARGEST_OFFSET, as_labels
from device_runtime.errors import InputError
from device_runtime.samples import Column, Float32, Float64, Int64, Ragged, SampleBatch, Schema
from device_runtime.wire import MatchQuery, in_steps

NOTHING = 1e-9
"""What is left of an item whose faded samples have been taken away again, at most."""
Together = Callable[[Sequence[Segment]], Whole]
"""`unexplained.Summed`, or what stands in for it."""
Near = Callable[[Snapshot, Float32, int, RoundSettings], Sequence[tuple[Int64, Float64]]]
"""(snapshot, profile float32 [width], the asker's token, settings) -> for each segment (rows int64, weights float64):
the samples whose contributors are near the profile, and what each weighs."""


def by_profiles(knowledge: Knowledge) -> Near:
    """By the profiles of contributors, which needs no index."""

    def find(
        snapshot: Snapshot, profile: Float32, exclude: int, settings: RoundSettings
    ) -> Sequence[tuple[Int64, Float64]]:
        known = [knowledge.profiles(segment) for segment in snapshot.segments]
        return nearest(snapshot.segments, known, profile[: knowledge.columns], exclude, settings)

    return find


def by_search(store: MatchStore) -> Near:
    """By every sample's own embedding: what profiles stand in for."""

    def find(
        snapshot: Snapshot, profile: Float32, exclude: int, settings: RoundSettings
    ) -> Sequence[tuple[Int64, Float64]]:
        most = min(len(snapshot), settings.neighbours)
        found = store.search(profile[None], most, exclude, within=snapshot)
        at = found.positions[0][found.positions[0] >= 0]
        weight = kernel(found.similarities[0][: len(at)], settings)
        parts = []
        for segment in snapshot.segments:
            mine = np.flatnonzero((at >= segment.base) & (at < segment.base + len(segment)))
            parts.append((at[mine] - segment.base, weight[mine]))
        return parts

    return find


def pooled(
    pool: Pool, near: Near, query: MatchQuery, exclude: int, settings: RoundSettings, whole: Together
) -> tuple[SampleBatch, str]:
    """The candidates for a query, by ascending item, and why there are fewer than it asks for: "" if there are not, or
    if fewer cover what is wanted.

    A label is an offset (`device_runtime.candidates.as_labels`); histories are empty. query: its first vector is the
    profile; without one, all contributors count alike. exclude: token of the asking contributor; none of its samples
    counts, nor any that the pool hides. near: `by_profiles`, or `by_search`. Items are preferred by how much their
    offsets change: squares, times samples; and there are as few as make up the settings' `cover` of all change.

    Raises:
        InputError: samples have features other than the item and histories.
    """
    snapshot = pool.snapshot()
    segments = snapshot.segments
    all_of_them = whole(segments)
    met, sums, mass = (part.copy() for part in (all_of_them.met, all_of_them.sums, all_of_them.mass))
    count = len(met)
    age_sums, age_mass, now = all_of_them.age_sums.copy(), all_of_them.age_mass.copy(), 0
    for segment, one, aged in zip(segments, all_of_them.parts, all_of_them.aged, strict=True):
        gone = segment.forbidden(exclude)
        now = max(now, one.newest_but(gone))
        if len(gone):
            without, counted = items_of(segment)[gone], one.weights(gone, all_of_them.newest)
            met -= total(without, one.faded(gone, all_of_them.newest), count)
            sums -= total(without, counted * one.residuals(gone), count)
            mass -= total(without, counted * one.variances(gone), count)
            gone_sums, gone_mass = aged.without(one, gone, all_of_them.newest)
            age_sums, age_mass = age_sums - gone_sums, age_mass - gone_mass
    used = Found().completing(settings)
    assert used.shrinkage is not None and used.age_shrinkage is not None
    # the asker's newest sample makes no item older in its own answer; all fade as of it, which shrinkage alone feels
    age = all_of_them.age if now == all_of_them.newest else ages(all_of_them.liked, now + 1)
    expected = (age_sums / (age_mass + EVEN * used.age_shrinkage))[age]
    offset = expected + (sums - mass * expected) / (mass + EVEN * used.shrinkage)
    if len(query.centroids) and settings.neighbours and met.any():
        found = near(snapshot, query.centroids[0], exclude, settings)
        parts = [
            (
                items_of(segment)[rows],
                one.residuals(rows),
                one.variances(rows),
                weight * one.weights(rows, all_of_them.newest),
            )
            for segment, one, (rows, weight) in zip(segments, all_of_them.parts, found, strict=True)
            if len(rows)
        ]
        if parts:
            item, residual, variance, weight = map(np.concatenate, zip(*parts, strict=True))
            moved = total(item, weight * (residual - variance * offset[item]), count)
            offset += moved / (total(item, weight * variance, count) + EVEN * settings.near_shrinkage)
    picked, enough = _foremost(met, offset, query.limit, settings.cover)
    reason = "" if enough else f"the pool has only {len(picked)} items of other contributors"
    return _batch(pool.schema, picked, in_steps(as_labels(offset[picked]))), reason


def kernel(similarities: Float32, settings: RoundSettings) -> Float64:
    """Weights of neighbours, best first: 1 up to the `core`-th, then falling with the lack of similarity to that."""
    core = similarities[min(settings.core, len(similarities)) - 1] if len(similarities) else 0.0
    lack = np.maximum(core - similarities, 0)
    weights: Float64 = np.exp(-settings.sharpness * lack.astype(np.float64))
    return weights


def _foremost(met: Float64, offset: Float64, most: int, cover: float) -> tuple[Int64, bool]:
    """(int64, ascending: the items that were met and whose offsets change most; whether these are as many as are asked
    for, or cover what is wanted). Of equals those met most, then the first ones. Sorts equals and bare numbers only:
    there are a catalogue's items."""
    items = np.flatnonzero(met[1:] > NOTHING) + 1
    change = met[items] * np.clip(offset[items], -LARGEST_OFFSET, LARGEST_OFFSET) ** 2
    left = np.cumsum(np.sort(change))
    needed = len(items)
    if cover < 1 and needed and left[-1] > 0:
        needed -= int(np.searchsorted(left, (1 - cover) * left[-1], side="right"))
    count = min(needed, most)
    if count == len(items):
        return items, count == most
    if not count:
        return items[:0], True
    least = np.partition(change, len(change) - count)[len(change) - count]
    above, equal = items[change > least], items[change == least]
    equal = equal[np.argsort(-met[equal], kind="stable")][: count - len(above)]
    return np.union1d(above, equal), True


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
