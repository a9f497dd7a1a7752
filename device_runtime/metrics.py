"""Ranking and probability metrics, exact, in NumPy. Scores are logits throughout."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from device_runtime.samples import Float32


def auc(labels: Float32, logits: Float32) -> float | None:
    """Area under the ROC curve of float32 [n] logits; ties count half. None where one class is missing."""
    positive = labels >= 0.5
    good, bad = int(positive.sum()), int((~positive).sum())
    if not good or not bad:
        return None
    _, group, size = np.unique(logits, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(size) - (size - 1) / 2
    return float((mean_rank[group][positive].sum() - good * (good + 1) / 2) / (good * bad))


def mean_user_auc(users: npt.NDArray[np.integer], labels: Float32, logits: Float32) -> float | None:
    """Mean of the users' AUCs; users with one class only do not count. None where none counts."""
    order = np.argsort(users, kind="stable")
    edges = np.flatnonzero(np.diff(users[order])) + 1
    found = [auc(labels[part], logits[part]) for part in np.split(order, edges)]
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if known else None


def log_loss(labels: Float32, logits: Float32) -> float:
    """Mean binary cross-entropy; labels may be soft."""
    return float(np.mean(losses(labels, logits)))


def at_level(logits: Float32, of: Float32) -> Float32:
    """The logits, shifted so that their mean is that of the others."""
    return np.asarray(logits - logits.mean() + of.mean(), np.float32)


def losses(labels: Float32, logits: Float32) -> npt.NDArray[np.float64]:
    """Binary cross-entropy of each, float64 [n]."""
    x = logits.astype(np.float64)
    return np.asarray(np.maximum(x, 0) - x * labels + np.log1p(np.exp(-np.abs(x))), np.float64)
