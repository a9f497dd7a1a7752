"""Early stop: how many passes over local samples are enough, by the held-out ones (Prechelt, Early Stopping, 1998)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from device_runtime.engines import Array
from device_runtime.metrics import at_level, losses
from device_runtime.samples import Float32

FEWEST = 3
"""Held-out samples that say anything: one is used up by the mean logit, another by the mean loss."""


class EarlyStop:
    """Told the values after each pass, it says when to end, and keeps those that predict held-out samples best.

    Attributes:
        best: the values after `passes` passes, 0 of which are those before the first.
    """

    def __init__(
        self,
        logits: Callable[[Mapping[str, Array]], Float32],
        labels: Float32,
        start: Mapping[str, Array],
        patience: int,
    ) -> None:
        """logits: values -> those of the held-out samples, float32 [n]. labels: float32 [n]. start: the values before
        the first pass. patience: passes without a better one after which no more are made, at least 1."""
        self._logits, self._labels, self._patience = logits, labels, patience
        self._before = logits(start)
        self._lowest = float(np.mean(losses(labels, self._before)))
        self._made = 0
        self.best, self.passes = start, 0

    def __call__(self, values: Mapping[str, Array]) -> bool:
        """Whether this pass was the last one. What shifts all scores ranks nothing, and is no gain here either."""
        self._made += 1
        loss = float(np.mean(losses(self._labels, at_level(self._logits(values), self._before))))
        if loss < self._lowest:
            self._lowest, self.best, self.passes = loss, values, self._made
        return self._made - self.passes >= self._patience
