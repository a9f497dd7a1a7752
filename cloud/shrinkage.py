"""How much what the pool says is to be doubted: of an item, and of all items of an age.

An item's offset is an estimate, shrunk as if its true one were drawn with some variance around 0 (James and Stein,
1961; `cloud/matching/pooled.py`). That variance differs from data to data: where items stay as they are it is small;
where fashion moves on after training, an item's few new samples say much. So it is measured on the samples that the
model was validated on, by the method of moments: two samples of one item have residuals whose product is, in
expectation, that of their variances times the variance of offsets.

The offset of all items of an age is of many samples, which may yet be of a few contributors who are not like others.
There it is people that count.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from device_runtime.bundle import Found
from device_runtime.samples import Float32

EVEN = 0.25
"""p (1 - p) at even odds: what a sample that shrinks weighs."""
MOST, LEAST = Found().shrinkage, 1.0
"""Samples at even odds that offsets are shrunk by: at most, which is what is right for most data and is kept unless it
is surely too much; and at least."""
CROWD = 10.0
"""Contributors that the offset of all items of an age is shrunk by (docs/adr/0027, docs/adr/0029)."""
_NEWTON = 10


def shrinkage(item: npt.NDArray[np.integer], label: Float32, logit: Float32) -> float:
    """Samples at even odds, from `LEAST` to `MOST`. item, label, logit: [n], of samples that the model has not seen."""
    x, level = np.clip(logit.astype(np.float64), -30, 30), 0.0
    if not len(x) or not 0 < label.mean() < 1:
        return MOST
    for _ in range(_NEWTON):  # the mean residual becomes 0: that all labels moved is no difference between items
        p = 1 / (1 + np.exp(-(x + level)))
        level += float(np.clip((label - p).sum() / max((p * (1 - p)).sum(), 1e-9), -1, 1))
    residual, variance = label - p, p * (1 - p)
    mass = np.bincount(item, variance)
    products = np.bincount(item, residual) ** 2 - np.bincount(item, residual**2)
    expected = mass**2 - np.bincount(item, variance**2)
    # items with many samples say most, but each says only once how far it is off
    weight = 1 / (1 + mass / (EVEN * MOST)) ** 2
    if not (total := float((weight * expected).sum())):
        return MOST
    spread = float((weight * products).sum()) / total
    error = float(np.sqrt(((weight * (products - spread * expected)) ** 2).sum())) / total
    sure = spread - error
    return float(np.clip(1 / (EVEN * sure), LEAST, MOST)) if sure > 0 else MOST


def age_shrinkage(contributor: npt.NDArray[np.integer]) -> float:
    """Samples that are worth `CROWD` contributors: times as many as the contributor of a sample has in the mean over
    samples. contributor: [n], of each sample."""
    has = np.unique(contributor, return_counts=True)[1].astype(np.float64)
    return CROWD * float((has**2).sum() / has.sum()) if len(has) else Found().age_shrinkage
