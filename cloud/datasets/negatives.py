"""Impressions that nobody saw: items that a user has nothing to do with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from device_runtime.samples import Int32


def draw_negatives(
    contributor: Int32, item: Int32, items: int, each: int, rng: np.random.Generator
) -> tuple[Int32, npt.NDArray[np.intp], int]:
    """Uniform items that a user never had an event of: (items, positions of the positives they belong to, how many
    could not be found: those of users who know every item).

    items: rows of the vocabulary, padding included. Drawn with replacement.
    """
    users = int(contributor.max(initial=-1)) + 1
    known = np.unique(contributor.astype(np.int64) * items + item)
    user, seen = known // items, known % items
    count = np.bincount(user, minlength=users)
    start = np.cumsum(count) - count
    # The r-th unknown item of a user lies behind those known items that have at most r unknown ones before them, so one
    # search finds it however much of the catalogue the user knows; drawing until it fits would not.
    unknown_before = user * items + seen - 1 - (np.arange(len(known)) - start[user])
    unknown = items - 1 - count

    at = np.repeat(np.arange(len(item)), each)
    at = at[unknown[contributor[at]] > 0]
    who = contributor[at].astype(np.int64)
    r = rng.integers(0, unknown[who])
    passed = np.searchsorted(unknown_before, who * items + r, side="right") - start[who]
    return (1 + r + passed).astype(np.int32), at, len(item) * each - len(at)
