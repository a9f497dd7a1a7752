"""Which samples a search may return, beside those of the asker."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloud.pool import Segment
from device_runtime.errors import InputError
from device_runtime.samples import Ragged


@dataclass(frozen=True)
class Filter:
    """What a sample must be; None and () let all pass.

    after, before: its timestamp in seconds, `after` included, `before` not. label_min, label_max: its label, both
    included. equals: (feature, id) pairs, such as ("locale", 3); the features are of kind `id`.
    """

    after: int | None = None
    before: int | None = None
    label_min: float | None = None
    label_max: float | None = None
    equals: tuple[tuple[str, int], ...] = ()

    def passes(self, segment: Segment) -> npt.NDArray[np.bool_]:
        """bool [n], for every row. Raises: InputError: a feature is none of the pool, or not a single id."""
        mask = np.ones(len(segment), bool)
        if self.after is not None:
            mask &= segment.timestamps >= self.after
        if self.before is not None:
            mask &= segment.timestamps < self.before
        if self.label_min is not None:
            mask &= segment.samples.labels >= self.label_min
        if self.label_max is not None:
            mask &= segment.samples.labels <= self.label_max
        for name, wanted in self.equals:
            column = segment.samples.columns.get(name)
            if column is None or isinstance(column, Ragged) or column.ndim != 1:
                ids = [feature.name for feature in segment.samples.schema.features if feature.kind == "id"]
                raise InputError(f"samples cannot be chosen by {name!r}; the pool has {', '.join(ids) or 'no such'}")
            mask &= column == wanted
        return mask
