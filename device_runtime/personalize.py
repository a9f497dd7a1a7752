"""Fine-tune the recommender on local and kept samples, and judge whether the result may serve."""

from __future__ import annotations

import numpy as np

from device_runtime.bundle import RoundSettings
from device_runtime.engines import Array
from device_runtime.messages import Verdict
from device_runtime.metrics import auc, log_loss
from device_runtime.model import VOCABULARY, Model, Weights
from device_runtime.samples import Float32, Int64, SampleBatch
from device_runtime.tables import LocalTable, features
from device_runtime.trainer import initial_state, train
from device_runtime.wire import Rows


def split(n: int, holdout: float) -> tuple[Int64, Int64]:
    """Positions of n time-ordered samples to train on, and the newest ones, which only the judge sees.

    At least one sample on either side if there are two.
    """
    judged = min(max(round(n * holdout), 1), max(n - 1, 0))
    positions = np.arange(n, dtype=np.int64)
    return positions[: n - judged], positions[n - judged :]


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
    """New weights after `epochs` passes over local samples (weight 1) and kept ones (`outside_weight` times theirs).

    table: must hold the rows of both. The weights given stay as they are.

    Raises:
        EngineError: the training diverged; nothing of it is returned.
    """
    step = model.graph("step")
    values = model.values("step", weights, table)
    samples, weight = local, np.ones(len(local), np.float32)
    if kept is not None and kept_weights is not None and len(kept):
        samples = SampleBatch.concatenate([local, kept])
        weight = np.concatenate([weight, settings.outside_weight * kept_weights]).astype(np.float32)
    trained, _ = train(
        step,
        {**values, **initial_state(step.spec, values)},
        features(samples, {VOCABULARY: table}),
        samples.labels,
        weight,
        rate=settings.rate,
        epochs=settings.epochs,
        rng=rng,
    )
    return _personal(model, trained, values, table)


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


def judge(labels: Float32, before: Float32, after: Float32) -> Verdict:
    """Whether new weights may serve, on held-out local samples.

    They may if their mean log loss is lower and, where both classes are present, their AUC is not. labels, before,
    after: float32 [n]; the latter two are logits under the weights that serve now and under the new ones.
    """
    loss_before, loss_after = log_loss(labels, before), log_loss(labels, after)
    auc_before, auc_after = auc(labels, before), auc(labels, after)
    if not np.isfinite(after).all():
        activate, reason = False, "the new weights give scores that are not finite"
    elif not loss_after < loss_before:
        activate, reason = False, f"log loss did not fall ({loss_before:.4f} to {loss_after:.4f})"
    elif auc_before is not None and auc_after is not None and auc_after < auc_before:
        activate, reason = False, f"AUC fell ({auc_before:.4f} to {auc_after:.4f})"
    else:
        activate, reason = True, f"log loss fell ({loss_before:.4f} to {loss_after:.4f}) and AUC did not"
    return Verdict(
        activate=activate,
        reason=reason,
        samples=len(labels),
        loss_before=loss_before,
        loss_after=loss_after,
        auc_before=auc_before,
        auc_after=auc_after,
    )
