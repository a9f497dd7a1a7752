"""Choosing among options that were tried on several contributors, when in doubt the most careful one."""

from __future__ import annotations

import numpy as np

from device_runtime.samples import Float64


def most_careful(gains: Float64) -> int:
    """The number of the first option that is hardly worse than the best one, 0 if none is surely better than that.

    gains: float64 [contributors, options], of each option over the first, most careful ones first. Surely: by two
    standard errors. Hardly: within one of the best (Breiman et al., 1984: the rule of one standard error).
    """
    if len(gains) < 2:
        return 0
    mean, error = gains.mean(0), gains.std(0, ddof=1) / np.sqrt(len(gains))
    sure = mean > 2 * error
    if not sure.any():
        return 0
    best = int(np.argmax(np.where(sure, mean, -np.inf)))
    return int(np.argmax(sure & (mean >= mean[best] - error[best])))
