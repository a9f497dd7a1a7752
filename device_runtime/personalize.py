"""Fine-tune the recommender on local and kept samples, and judge whether the result may serve."""

from __future__ import annotations

import numpy as np

from device_runtime.bundle import RoundSettings
from device_runtime.engines import Array
from device_runtime.messages import Verdict
from device_runtime.metrics import auc, log_loss, losses
from device_runtime.model import VOCABULARY, Model, Weights
from device_runtime.samples import Float32, Int64, SampleBatch
from device_runtime.tables import LocalTable, features
from device_runtime.trainer import initial_state, train
from device_runtime.wire import Rows

_ROUNDING = 1e-6
"""Log loss that float32 logits cannot tell apart."""


def split(n: int, holdout: float) -> tuple[Int64, Int64]:
    """Positions of n time-ordered samples to train on, and the newest ones, which only the judge sees.

    At least one sample on either side if there are two.
    """
    judged = min(max(round(n * holdout), 1), max(n - 1, 0))
    positions = np.arange(n, dtype=np.int64)
    return positions[: n - judged], positions[n - judged :]


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
    kept: SampleBatch | None,
    kept_weights: Float32 | None,
    settings: RoundSettings,
    rng: np.random.Generator,
) -> Weights:
    """New weights after `epochs` passes over local samples (weight 1) and kept ones (`outside_weight` times theirs),
    or those at a share of the way (`interpolation`).

    table: must hold the rows of both. The weights given stay as they are.

    Raises:
        EngineError: the training diverged; nothing of it is returned.
    """
    step = model.graph("step")
    values = model.values("step", weights, table)
    samples, weight = local, np.ones(len(local), np.float32)
    labels = _labels(model, weights, table, local, settings)
    if kept is not None and kept_weights is not None and len(kept):
        samples = SampleBatch.concatenate([local, kept])
        weight = np.concatenate([weight, settings.outside_weight * kept_weights]).astype(np.float32)
        labels = np.concatenate([labels, _labels(model, weights, table, kept, settings)])
    columns, start = features(samples, {VOCABULARY: table}), values
    if settings.freeze_histories:
        columns, start = _apart(model, columns, values, len(table))
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
    )
    if settings.freeze_histories:
        trained |= {n: trained[n][: len(table)].copy() for n in _sliced(model)}
        own = table.local(local.ids(VOCABULARY))  # what histories are made of, now or at the next like
        for name in _sliced(model):
            trained[name][own] = values[name][own]
    if settings.interpolation < 1:
        for name in step.spec.carry.values():
            if name in values:
                before, after = values[name].astype(np.float32), trained[name].astype(np.float32)
                trained[name] = before + np.float32(settings.interpolation) * (after - before)
    return _personal(model, trained, values, table)


def _apart(
    model: Model, columns: dict[str, Array], values: dict[str, Array], rows: int
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Features and values with a second copy of every row, which histories point to: it trains, and is thrown away.

    A user's history is in each of their samples. Were its rows to move with every one, the user's whole profile would
    drift at the rate that is meant for an item seen once.
    """
    histories = {f.name for f in model.manifest.schema.features if f.kind == "ids" and f.vocabulary == VOCABULARY}
    moved = {n: _shifted(c, rows) if n in histories else c for n, c in columns.items()}
    return moved, values | {n: np.concatenate([values[n], values[n]]) for n in _sliced(model)}


def _shifted(ids: Array, rows: int) -> Array:
    at = ids.astype(np.int64)
    return np.where(at > 0, at + rows, at)


def _sliced(model: Model) -> list[str]:
    """The step's params and attributes that are cut to the rows at hand."""
    return [t.name for t in model.spec("step").of("param", "attribute") if t.table == VOCABULARY]


def _labels(
    model: Model, weights: Weights, table: LocalTable, samples: SampleBatch, settings: RoundSettings
) -> Float32:
    if not settings.label_correction or not len(samples):
        return samples.labels
    logit = model.logits(samples, table, weights).astype(np.float64)
    return corrected(samples.labels, float(np.mean(1 / (1 + np.exp(-np.clip(logit, -30, 30))))))


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


def judge(labels: Float32, before: Float32, after: Float32, settings: RoundSettings) -> Verdict:
    """Whether new weights may serve, on held-out local samples.

    A user holds out a handful of samples, on which a good change loses nearly as often as it wins; so weights are
    refused on evidence of harm only, not for want of proof. Evidence is a mean log loss that is worse by more than
    `tolerance` standard errors, compared at the same mean logit: a shift of all scores ranks nothing.
    labels, before, after: float32 [n]; the latter two are logits under the weights that serve now and the new ones.
    """
    finite = bool(np.isfinite(after).all())
    level = after - after.mean() + before.mean() if finite and len(after) else after
    harm = losses(labels, level) - losses(labels, before)
    error = float(harm.std(ddof=1) / np.sqrt(len(harm))) if len(harm) > 1 else 0.0
    loss_before, loss_after = log_loss(labels, before), log_loss(labels, after)
    if not finite:
        activate, reason = False, "the new weights give scores that are not finite"
    elif not settings.judge:
        activate, reason = True, "the judge is off"
    elif harm.mean() > settings.tolerance * error + _ROUNDING:
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
