"""How many users are worse off in expectation, beyond what a dozen test rows of each say by chance.

A user's measured difference d is the true one and noise: d ~ N(true, s²), with s² by DeLong et al. (1988) for two
correlated AUCs on the same rows. True differences vary over users: true ~ N(m, t²), with m and t² by the moments of
DerSimonian and Laird (1986). Then each user's true difference is known up to a normal posterior, and the share of users
below -0.01 is the mean of its tails (empirical Bayes).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from device_runtime.samples import Float32, Float64


def difference_variance(labels: Float32, before: Float32, after: Float32) -> float:
    """Variance of the difference of two AUCs on the same rows; infinite where a class has one row only."""
    positive = labels >= 0.5
    if min(positive.sum(), (~positive).sum()) < 2:
        return math.inf
    wins = _wins(positive, after) - _wins(positive, before)
    return float(sum(part.var(ddof=1) / len(part) for part in (wins.mean(1), wins.mean(0))))


def _wins(positive: npt.NDArray[np.bool_], scores: Float32) -> Float64:
    """float64 [positives, negatives]: 1 where the positive row is above, one half where they are equal."""
    good, bad = scores[positive][:, None], scores[~positive][None]
    return np.asarray((good > bad) + 0.5 * (good == bad), np.float64)


def expected_tails(differences: Float64, variances: Float64, beyond: float) -> tuple[float, float] | None:
    """Shares of users whose true difference is (below -beyond, above beyond); None where too few rows tell.

    differences, variances: float64 [users]. A variance of 0 says that nothing was reordered: the difference is known,
    and these users are no part of the population that is fitted. An infinite one says that nothing is known.
    """
    moved, told = variances > 0, (variances > 0) & np.isfinite(variances)
    exact = differences[~moved]
    below, above = float((exact < -beyond).sum()), float((exact > beyond).sum())
    if moved.any():
        if told.sum() < 2:
            return None
        mean, spread = _population(differences[told], variances[told])
        share = spread / (spread + variances[moved])  # 0 where the variance is infinite
        centre = mean + share * (differences[moved] - mean)
        width = np.sqrt(spread * (1 - share))
        below += _below(-beyond, centre, width)
        above += _below(-beyond, -centre, width)
    return below / len(differences), above / len(differences)


def _population(differences: Float64, variances: Float64) -> tuple[float, float]:
    """Mean and variance of the true differences."""
    weight = 1 / variances
    fixed = (weight * differences).sum() / weight.sum()
    excess = (weight * (differences - fixed) ** 2).sum() - (len(differences) - 1)
    spread = max(float(excess / (weight.sum() - (weight**2).sum() / weight.sum())), 0.0)
    weight = 1 / (variances + spread)
    return float((weight * differences).sum() / weight.sum()), spread


def _below(limit: float, centre: Float64, width: Float64) -> float:
    """Expected number of values below the limit, each normal."""
    if not width.any():
        return float((centre < limit).sum())
    return float(sum(0.5 * math.erfc((c - limit) / (w * math.sqrt(2))) for c, w in zip(centre, width, strict=True)))
