"""How soon what is said of an item goes stale: learned from the order of the training events.

Fashion passes: what people said of an item years ago tells less of it than what they said last month, or as much,
depending on the data. So the cloud tries it before a model is released (prequential validation; Dawid, 1984): it goes
through the newest events in blocks, ranks each contributor's by what had been said of their items until then, older
labels weighing less by a half-life, and takes the longest half-life that is hardly worse than the best one. Pooled
matching then weighs the pool's samples by it (`cloud/matching/unexplained.py`).

No model is asked: it has seen these labels, so what it leaves unexplained of them says nothing of what comes.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from cloud.careful import most_careful
from device_runtime.samples import Float32, Float64, Int32, Int64

DAY = 86_400.0
_HALF_LIVES = tuple(2.0**k for k in range(11, -2, -1))
"""Days that are tried, beside no half-life at all."""
_SHARE, _MOST = 0.25, 250_000
"""Of the events, the newest, that are ranked; and how many, at most."""
_BLOCKS = 16
_SHRINKAGE = 10.0
"""Samples of the mean label that an item's own is shrunk by."""
_LEAST = 30
"""Contributors with labels of both kinds among the newest events: of fewer nothing is concluded."""
_STEEPEST = 3.0
_NEWTON = 8


def half_life(contributor: Int32, item: Int32, timestamp: Int64, label: Float32) -> float:
    """Days; 0 where nothing is known to go stale. All arrays: [n], in any order. timestamp: seconds."""
    order = np.argsort(timestamp, kind="stable")
    first = len(order) - min(int(len(order) * _SHARE), _MOST)
    pairs, group = _pairs(contributor[order[first:]], label[order[first:]])
    if not len(group) or group[-1] + 1 < _LEAST:
        return 0.0
    item, age = item[order], (timestamp[order[-1]] - timestamp[order]) / DAY
    residual = label[order].astype(np.float64) - label.mean()
    variance = float(label.mean() * (1 - label.mean()))
    tried = [0.0, *(days for days in _HALF_LIVES if days < age[0])]
    losses = np.stack(
        [_losses(_offsets(item, residual, variance, age, days, first), pairs, group) for days in tried], 1
    )
    return tried[most_careful(losses[:, :1] - losses)]


def weights(age: npt.NDArray[np.floating | np.integer], days: float) -> Float64:
    """float64 [n]: what samples of this age, in seconds, weigh; 1 where days is 0."""
    if not days:
        return np.ones(len(age))
    found: Float64 = np.exp2(-np.asarray(age, np.float64) / (days * DAY))
    return found


def _offsets(item: Int32, residual: Float64, variance: float, age: Float64, days: float, first: int) -> Float64:
    """float64 [n - first]: of each of the newest samples, what had been said of its item before its block; logits."""
    items, found = int(item.max()) + 1, np.empty(len(item) - first)
    sums, mass = np.zeros(items), np.zeros(items)
    edges = np.linspace(first, len(item), _BLOCKS + 1).astype(np.int64)
    done, then = 0, age[0]
    for start, stop in itertools.pairwise(edges.tolist()):
        if start == stop:
            continue
        known, block, now = slice(done, start), slice(start, stop), age[start]
        faded = float(weights(np.array([then - now]) * DAY, days)[0])
        weight = weights((age[known] - now) * DAY, days)
        sums = faded * sums + np.bincount(item[known], weight * residual[known], items)
        mass = faded * mass + np.bincount(item[known], weight, items)
        found[start - first : stop - first] = sums[item[block]] / (variance * (mass[item[block]] + _SHRINKAGE))
        done, then = start, now
    return found


def _pairs(contributor: Int32, label: Float32) -> tuple[Int64, Int64]:
    """(positions int64 [pairs, 2] of a like and another of the same contributor, ascending groups int64 [pairs])."""
    order = np.random.default_rng(0).permutation(len(contributor))
    order = order[np.argsort(contributor[order], kind="stable")]
    found, sizes = [], []
    for part in np.split(order, np.flatnonzero(np.diff(contributor[order])) + 1):
        liked = label[part] >= 0.5
        most = max(int(liked.sum()), int((~liked).sum()))
        if 0 < liked.sum() < len(part):
            found.append(np.column_stack([np.resize(part[liked], most), np.resize(part[~liked], most)]))
            sizes.append(most)
    if not found:
        return np.zeros((0, 2), np.int64), np.zeros(0, np.int64)
    return np.concatenate(found).astype(np.int64), np.repeat(np.arange(len(sizes)), sizes)


def _losses(offset: Float64, pairs: Int64, group: Int64) -> Float64:
    """float64 [groups]: mean logistic loss of a contributor's pairs by the difference of their offsets.

    All of these are scaled as suits them best: only the order that they give is compared, not how large they are.
    """
    apart = offset[pairs[:, 0]] - offset[pairs[:, 1]]
    mass = 1 / np.bincount(group)[group]
    scale = 0.0
    for _ in range(_NEWTON):
        p = 1 / (1 + np.exp(np.minimum(scale * apart, 700.0)))
        slope, curvature = (mass * p * apart).sum(), (mass * p * (1 - p) * apart**2).sum()
        scale = float(np.clip(scale + slope / max(curvature, 1e-9), 0, _STEEPEST))
    return np.bincount(group, mass * np.logaddexp(0, -scale * apart)).astype(np.float64)
