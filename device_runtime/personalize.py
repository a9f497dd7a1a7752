"""Fine-tune the recommender on local and kept samples, and judge whether the result may serve."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from device_runtime.bundle import RoundSettings
from device_runtime.candidates import Augmentation, sigmoid
from device_runtime.engines import Array
from device_runtime.messages import Verdict
from device_runtime.metrics import at_level, auc, log_loss, losses
from device_runtime.model import VOCABULARY, Model, Weights, personal_table
from device_runtime.reach import apart, reach, sliced, with_past
from device_runtime.samples import Float32, Float64, Int64, Ragged, SampleBatch
from device_runtime.stopping import FEWEST, EarlyStop
from device_runtime.tables import LocalTable, features
from device_runtime.trainer import initial_state, scores, train
from device_runtime.wire import Rows

_ROUNDING = 1e-6
"""Log loss that float32 logits cannot tell apart."""
_RARE = 700.0
"""Largest number whose exponential a float holds: what is rarer is never seen."""


@dataclass(frozen=True)
class Tuned:
    """passes: over samples, that led to the weights."""

    weights: Weights
    passes: int


def split(n: int, holdout: float) -> tuple[Int64, Int64]:
    """Positions of n time-ordered samples to train on, and the newest ones, which only the judge sees.

    At least one sample on either side if there are two.
    """
    judged = min(max(round(n * holdout), 1), max(n - 1, 0))
    positions = np.arange(n, dtype=np.int64)
    return positions[: n - judged], positions[n - judged :]


def enough(n: int, settings: RoundSettings) -> bool:
    """Whether so many local samples are worth a round: one to train on and one to judge by, at the very least."""
    return n >= max(settings.min_local, 2)


def corrected(labels: Float32, prior: float) -> Float32:
    """Labels whose mean is the prior, by the affine map of arXiv 2211.01163: ones give way, or zeros do."""
    mean = float(labels.mean()) if len(labels) else prior
    if mean <= 0 or mean >= 1:
        return labels  # one class only: there is nothing to rank, and all would become the prior
    if mean > prior:
        return (labels * (prior / mean)).astype(np.float32)
    return (labels + (1 - labels) * ((prior - mean) / (1 - mean))).astype(np.float32)


def tune(
    model: Model,
    weights: Weights,
    table: LocalTable,
    local: SampleBatch,
    kept: Augmentation | None,
    settings: RoundSettings,
    rng: np.random.Generator,
    held_out: SampleBatch | None = None,
    passed: Tuned | None = None,
) -> Tuned:
    """New weights after `epochs` passes over local samples (weight 1) and kept ones (`outside_weight` times theirs),
    or those at a share of the way (`interpolation`).

    With `patience` and enough held-out samples, they are those of the pass that predicts these best, which may be
    before the first, and passes end after so many without a better one.

    With `row_steps`, passes are over local samples alone, and afterwards the kept items' rows are moved until the new
    weights' logits differ from the local passes' by `row_share` of what the soft labels differ by from the given
    weights' (`reach`); by less for samples whose weight is below one half.
    weights: the bundle's, where kept samples know their change. table: must hold the rows of all. passed: what the same
    gives without kept samples, where that is known and `interpolation` is 1: with `row_steps` it is gone on from. The
    weights given stay as they are.

    Raises:
        EngineError: the training diverged; nothing of it is returned.
    """
    values = model.values("step", weights, table)
    watched = held_out if settings.patience and held_out is not None and len(held_out) >= FEWEST else None
    if kept is None or not len(kept.samples):
        trained, passes = _passes(model, weights, table, values, [(local, 1.0)], local, watched, settings, rng)
    elif settings.row_steps:
        trained, passes = dict(values), 0
        if passed is not None:
            trained = model.values("step", passed.weights, personal_table(table, passed.weights))
            passes = passed.passes
        elif len(local):
            trained, passes = _passes(model, weights, table, values, [(local, 1.0)], local, watched, settings, rng)
        share, change = settings.row_share * np.clip(2 * kept.weights.astype(np.float64), 0, 1), kept.change
        if change is None:
            change = _logit(kept.samples.labels) - model.logits(kept.samples, table, weights)
        past = [c.compact().values for c in kept.samples.columns.values() if isinstance(c, Ragged)]
        own = table.local(np.concatenate([local.ids(VOCABULARY), *past]))
        trained = reach(
            model,
            trained,
            table,
            kept.samples,
            share * change,
            own,
            steps=settings.row_steps,
            probe=settings.table_rate,
            rng=rng,
        )
    else:
        parts: list[tuple[SampleBatch, float | Float32]] = [(local, 1.0)]
        parts.append((kept.samples, (settings.outside_weight * kept.weights).astype(np.float32)))
        trained, passes = _passes(model, weights, table, values, parts, local, watched, settings, rng)
    if settings.interpolation < 1:
        for name in model.spec("step").carry.values():
            if name in values:
                trained[name] = _between(values[name], trained[name], settings.interpolation)
    return Tuned(_personal(model, trained, values, table), passes)


def learn_held_out(
    tuned: Tuned,
    kept: Augmentation | None,
    settings: RoundSettings,
    anew: Callable[[Augmentation | None, RoundSettings], Weights],
) -> Weights:
    """What serves in place of tuned weights that may: tuned anew, from the bundle's weights, on all local samples.

    Held-out samples are the newest, which say most of what comes next, and nothing is left to be judged; a few more
    passes over them alone would forget the others (docs/adr/0019). There are as many passes as there were before. Rows
    that were moved for kept samples by `row_steps` stay as they are: what moved them hardly depends on a few local
    samples more.
    anew: tunes the bundle's weights on all local samples beside such kept ones, by such settings.
    """
    as_long = msgspec.structs.replace(settings, epochs=tuned.passes)
    if settings.row_steps:
        return tuned.weights.followed_by(anew(None, as_long))
    return anew(kept, as_long)


def _passes(
    model: Model,
    weights: Weights,
    table: LocalTable,
    values: dict[str, Array],
    parts: Sequence[tuple[SampleBatch, float | Float32]],
    local: SampleBatch,
    watched: SampleBatch | None,
    settings: RoundSettings,
    rng: np.random.Generator,
) -> tuple[dict[str, Array], int]:
    """Values after passes over all parts at once, and how many passes those are. parts: samples and their weight.
    local: whose rows are put back. watched: samples that say when to stop.

    Steps see the rows of these samples only: they work out something of every row that they are given, and the table
    may hold thousands of candidates'."""
    step = model.graph("step")
    used = [(samples, weight) for samples, weight in parts if len(samples)]
    samples = SampleBatch.concatenate([part for part, _ in used]) if len(used) != 1 else used[0][0]
    weight = np.concatenate([np.full(len(part), mass, np.float32) for part, mass in used])
    labels = np.concatenate([_labels(model, weights, table, part, settings) for part, _ in used])
    seen = samples if watched is None else SampleBatch.concatenate([samples, watched])
    rows = table.of(seen.ids(VOCABULARY))
    at = table.local(rows.ids)
    near = {**values, **{n: values[n][at] for n in sliced(model)}}
    columns, start = features(samples, {VOCABULARY: rows}), near
    if settings.freeze_histories:
        columns, past = apart(model, columns, len(rows))
        start = with_past(model, near, near, past)
    own = rows.local(local.ids(VOCABULARY))  # what histories are made of, now or at the next like

    def cut(trained: Mapping[str, Array]) -> dict[str, Array]:
        if not settings.freeze_histories:
            return dict(trained)
        found = {n: trained[n][: len(rows)].copy() for n in sliced(model)}
        for name in sliced(model):
            found[name][own] = near[name][own]
        return {**trained, **found}

    stop = None
    if watched is not None:
        asked = features(watched, {VOCABULARY: rows})
        stop = EarlyStop(
            lambda trained: scores(model.graph("score"), cut(trained), asked), watched.labels, start, settings.patience
        )
    trained, _ = train(
        step,
        {**start, **initial_state(step.spec, start)},
        columns,
        labels,
        weight,
        rate=settings.rate,
        epochs=settings.epochs,
        rng=rng,
        table_rate=settings.table_rate,
        ended=stop,
    )
    best, passes = (cut(trained), settings.epochs) if stop is None else (cut(stop.best), stop.passes)
    for name in sliced(model):
        whole = values[name].copy()
        whole[at] = best[name]
        best[name] = whole
    return best, passes


def _logit(probability: Float32) -> Float64:
    p = np.clip(probability.astype(np.float64), 1e-6, 1 - 1e-6)
    found: Float64 = np.log(p / (1 - p))
    return found


def _labels(
    model: Model, weights: Weights, table: LocalTable, samples: SampleBatch, settings: RoundSettings
) -> Float32:
    if not settings.label_correction or not len(samples):
        return samples.labels
    logit = model.logits(samples, table, weights)
    return corrected(samples.labels, float(np.mean(sigmoid(logit))))


def _personal(model: Model, trained: dict[str, Array], before: dict[str, Array], table: LocalTable) -> Weights:
    """Only tensors that train, and rows that moved, are kept: the rest stays the bundle's, and follows its next
    version."""
    params = [t for t in model.spec("step").of("param") if t.name in model.spec("step").carry.values()]
    dense = {t.name: trained[t.name] for t in params if not t.table}
    sliced = [t.name for t in params if t.table == VOCABULARY]
    if not sliced:
        return Weights(dense, None, "")
    moved = np.zeros(len(table), bool)
    for name in sliced:
        moved |= (trained[name] != before[name]).reshape(len(table), -1).any(1)
    moved[0] = False
    return Weights(dense, Rows(table.ids[moved], {n: trained[n][moved] for n in sliced}), "")


def part_of_the_way(model: Model, weights: Weights, table: LocalTable, share: float) -> Weights:
    """The average of the bundle's weights and these, `share` of it being these.

    table: base rows of all that the weights have rows of, and maybe others.
    """
    if share == 1:
        return weights
    dense = {name: _between(model.base.dense[name], tensor, share) for name, tensor in weights.dense.items()}
    if weights.rows is None:
        return Weights(dense, None, weights.version)
    at = table.local(weights.rows.ids)
    rows = {name: _between(table.tensors[name][at], moved, share) for name, moved in weights.rows.tensors.items()}
    return Weights(dense, Rows(weights.rows.ids, rows), weights.version)


def _between(before: Array, after: Array, share: float) -> Array:
    start = before.astype(np.float32)
    return start + np.float32(share) * (after.astype(np.float32) - start)


def consider(labels: Float32, before: Float32, after: Callable[[float], Float32], settings: RoundSettings) -> Verdict:
    """Whether the tuned weights may serve, or those at the share `partial` of the way to them, if the whole way shows
    evidence of harm.

    after: a share of the way -> logits under those weights, float32 [n]. The others: as for `judge`.
    """
    whole = judge(labels, before, after(1.0), settings)
    if whole.activate or not settings.partial:
        return whole
    part = judge(labels, before, after(settings.partial), settings)
    if not part.activate:
        return whole
    reason = f"{settings.partial:.0%} of the way, since of all of it {whole.reason}: {part.reason}"
    return msgspec.structs.replace(part, reason=reason, share=settings.partial)


def judge(labels: Float32, before: Float32, after: Float32, settings: RoundSettings) -> Verdict:
    """Whether new weights may serve, on held-out local samples.

    A user holds out a handful of samples, on which a good change loses nearly as often as it wins; so weights are
    refused on evidence of harm only, not for want of proof. Evidence is a mean log loss that is worse by more than
    `tolerance` standard errors, or as many more as Student's t asks for so few samples, compared at the same mean
    logit: a shift of all scores ranks nothing.
    labels, before, after: float32 [n]; the latter two are logits under the weights that serve now and the new ones.
    """
    finite = bool(np.isfinite(after).all())
    level = at_level(after, before) if finite and len(after) else after
    harm = losses(labels, level) - losses(labels, before)
    freedom = len(harm) - 2  # both the mean harm and the mean logit are taken from these samples
    error = float(harm.std(ddof=2) / np.sqrt(len(harm))) if freedom > 0 else 0.0
    loss_before, loss_after = log_loss(labels, before), log_loss(labels, after)
    if not finite:
        activate, reason = False, "the new weights give scores that are not finite"
    elif not settings.judge:
        activate, reason = True, "the judge is off"
    elif freedom < 1:
        activate, reason = True, f"too few held-out samples to give evidence of harm: {len(harm)}"
    elif harm.mean() > students(settings.tolerance, freedom) * error + _ROUNDING:
        activate = False
        reason = f"held-out log loss rose by {harm.mean():.4f}, its standard error being {error:.4f}"
    else:
        activate = True
        reason = f"held-out log loss changed by {harm.mean():+.4f}, no evidence of harm (standard error {error:.4f})"
    return Verdict(
        activate=activate,
        reason=reason,
        samples=len(labels),
        loss_before=loss_before,
        loss_after=loss_after,
        auc_before=auc(labels, before),
        auc_after=auc(labels, after),
    )


def students(normal: float, freedom: int) -> float:
    """The quantile of Student's t that is as rare as this one of the normal distribution, by the inverse of Wallace's
    approximation (1959), which is within 5 % for a tolerance of 2 and 2 degrees of freedom, above it for 1."""
    scaled = normal * (8 * freedom + 3) / (8 * freedom + 1)
    return math.sqrt(freedom * math.expm1(min(scaled**2 / freedom, _RARE)))
