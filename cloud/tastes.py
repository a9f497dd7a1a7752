"""Tastes: what contributors' labels have in common beyond what the model says of them.

A contributor's residuals, label minus the model's prediction, are approximated by products of a vector of the
contributor's with a vector of each item's: matrix factorization (Hu, Koren and Volinsky, 2008) of what the model does
not explain. Contributors' vectors are thrown away. Items' go into the bundle, where a device finds its own user's
vector from local labels (`device_runtime/candidates.py`), which never leave it.

How far a device may trust them differs from data to data, so the cloud tries it: contributors who were left out of the
factorization play devices, their earlier labels being known and their later ones to be ranked. Vectors are scaled by
what was best for these; where nothing was better than leaving them out, there are none.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cloud.careful import most_careful
from device_runtime.candidates import own_taste
from device_runtime.metrics import auc
from device_runtime.samples import Float32, Float64, Int32, Int64

WIDTH = 16
_RIDGE = 8.0
_ROUNDS = 6
_SHRINKAGE = 10.0
"""Samples of residual 0 that an item's mean is shrunk by, before what is left is factorized."""
_FOLDS = 3
_LEAST, _MOST = 10, 50
"""Labels of a contributor who plays a device: known, at least and at most; and to be ranked."""
_TOGETHER = 50_000
"""Samples, padding included, that are solved for together: some 6 MB of vectors."""
_DEVICES = 600
"""Contributors who play devices, at most."""
_SCALES = (0.0, 0.4, 0.6, 0.8, 1.1, 1.6)
"""What is tried. About 0.8 would be right if contributors were as the factorization takes them to be: a ridge of 8 is a
prior variance of p (1 - p) / 8, and a residual of p (1 - p) is a logit of 1."""


def learn(contributor: Int32, item: Int32, label: Float32, logit: Float32, items: int) -> Float32 | None:
    """float32 [items, WIDTH], row 0 being zeros; None where devices are better off without.

    contributor, item, label, logit: [n], ordered by contributor and time; logit: the model's.
    """
    p = 1 / (1 + np.exp(-np.clip(logit.astype(np.float64), -30, 30)))
    residual = label - p
    edges = np.flatnonzero(np.diff(contributor)) + 1
    each = [part for part in np.split(np.arange(len(item)), edges) if len(part)]
    scale = _best_scale(each, item, label, logit, residual, items)
    if not scale:
        return None
    found: Float32 = (scale * _factors(each, item, residual, items)[0]).astype(np.float32)
    return found


def _best_scale(each: list[Int64], item: Int32, label: Float32, logit: Float32, residual: Float64, items: int) -> float:
    rng = np.random.default_rng(0)
    order = rng.permutation(len(each))
    gains: list[list[float]] = []
    for fold in range(_FOLDS):
        left_out = order[fold::_FOLDS]
        others = [each[i] for i in np.sort(np.setdiff1d(order, left_out))]
        if not others:
            return 0.0
        factors, offset = _factors(others, item, residual, items)
        for i in left_out[: _DEVICES // _FOLDS]:
            if (found := _played(each[i], item, label, logit, factors, offset)) is not None:
                gains.append(found)
    return _SCALES[most_careful(np.array(gains))] if gains else 0.0


def _played(
    mine: Int64, item: Int32, label: Float32, logit: Float32, factors: Float64, offset: Float64
) -> list[float] | None:
    """AUC with each scale minus that without; None of a contributor who has too few labels, or of one class only."""
    border = len(mine) * 3 // 5
    known, later = mine[max(0, border - _MOST) : border], mine[border : border + _MOST]
    if len(known) < _LEAST or len(later) < _LEAST:
        return None
    plain = logit[later] + offset[item[later]]
    if (base := auc(label[later], plain.astype(np.float32))) is None:
        return None
    gains = []
    for scale in _SCALES:
        vectors = scale * factors
        own = own_taste(vectors[item[known]], logit[known] + offset[item[known]], label[known])
        moved = auc(label[later], (plain + vectors[item[later]] @ own).astype(np.float32))
        gains.append((moved or 0.0) - base)
    return gains


def _factors(each: list[Int64], item: Int32, residual: Float64, items: int) -> tuple[Float64, Float64]:
    """(vectors float64 [items, WIDTH], offsets float64 [items] in logits), by alternating least squares."""
    used = np.concatenate(each)
    met = np.bincount(item[used], minlength=items)
    mean = np.bincount(item[used], residual[used], items) / (met + _SHRINKAGE)
    left = residual - mean[item]
    of_item = used[np.argsort(item[used], kind="stable")]
    by_item = np.split(of_item, np.cumsum(met)[:-1])
    person = np.zeros(len(item), np.int64)
    for number, part in enumerate(each):
        person[part] = number
    vectors = 0.1 * np.random.default_rng(0).normal(size=(items, WIDTH))
    for _ in range(_ROUNDS):
        people = _solved(each, vectors, item, left)
        vectors = _solved(by_item, people, person, left)
    return vectors, mean / 0.2  # a residual of p (1 - p), at common odds 0.2, is a logit of 1


def _solved(groups: list[Int64], other: Float64, other_of: npt.NDArray[np.integer], left: Float64) -> Float64:
    """float64 [groups, WIDTH]: each group's ridge regression of what is left on the other side's vectors; groups of
    about the same size together, since a call costs more than the arithmetic of a small group."""
    found, ridge = np.zeros((len(groups), WIDTH)), _RIDGE * np.eye(WIDTH)
    sizes = np.array([len(at) for at in groups])
    order = np.argsort(sizes, kind="stable")
    start = int(np.count_nonzero(sizes == 0))
    while start < len(order):
        longest = sizes[order[start]] * 5 // 4
        stop = start + max(1, _TOGETHER // longest)
        chosen = order[start : min(stop, int(np.searchsorted(sizes[order], longest, side="right")))]
        present = np.arange(longest) < sizes[chosen, None]
        at = np.zeros(present.shape, np.int64)
        at[present] = np.concatenate([groups[i] for i in chosen])
        x = other[other_of[at]] * present[..., None]
        turned = x.transpose(0, 2, 1)
        found[chosen] = np.linalg.solve(turned @ x + ridge, turned @ left[at][..., None])[..., 0]
        start += len(chosen)
    return found
