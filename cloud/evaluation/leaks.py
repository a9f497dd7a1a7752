"""What must hold before any number is believed; checked on the arrays that are about to be used, in every run.

The rules are written against raw events and timestamps, not against the code that made the split.
"""

from __future__ import annotations

import numpy as np

from cloud.evaluation.protocols import Case, Split
from cloud.pool import Pool
from device_runtime.errors import CodaError
from device_runtime.samples import Ragged, SampleBatch


class Leak(CodaError):
    """Something would know what it must not; no result is given."""


def check_split(split: Split) -> None:
    """Raises: Leak: the cloud model or the pool sees what it must not, or a user's rows are out of order."""
    cloud = split.cloud.events
    if len(cloud) and cloud.timestamp.max() >= split.cut:
        raise Leak(f"the cloud model is trained on an event of {cloud.timestamp.max()}; its time ends at {split.cut}")
    examined = {case.user for case in split.cases}
    if len(examined) != len(split.cases):
        raise Leak("a user is examined twice")
    for case in split.cases:
        check_case(case, split.cut, split.protocol)
    if split.protocol == "cold":
        for what, dataset in (("cloud model's training", split.cloud), ("pool", split.pool)):
            if known := examined & set(np.unique(dataset.events.contributor).tolist()):
                raise Leak(f"{len(known)} users who must be new are in the {what}, among them number {min(known)}")
    if split.protocol == "paper" and split.pool.events.timestamp.max() >= split.cut:
        raise Leak("the pool holds samples of the test period")


def check_case(case: Case, cut: int, protocol: str) -> None:
    """Raises: Leak: test rows that are not all later than every local one, or local rows that the cloud has seen."""
    context, local, test = (
        case.events.timestamp[part]
        for part in (
            slice(0, case.local_from),
            slice(case.local_from, case.test_from),
            slice(case.test_from, None),
        )
    )
    who = f"user number {case.user}"
    if (case.events.contributor != case.user).any():
        raise Leak(f"{who}: rows of somebody else are among the user's")
    if not (len(local) and len(test)):
        raise Leak(f"{who}: {len(local)} local and {len(test)} test rows")
    if test.min() <= local.max():
        raise Leak(f"{who}: a test row of {test.min()} is not later than the newest local row, of {local.max()}")
    if len(context) and context.max() > local.min():
        raise Leak(f"{who}: context of {context.max()} is later than the oldest local row, of {local.min()}")
    if protocol == "paper":
        if local.max() >= cut or test.min() < cut:
            raise Leak(f"{who}: local and test rows are not parted by the split at {cut}")
    elif local.min() < cut:
        raise Leak(f"{who}: the cloud model's time ends at {cut}, but a local row is of {local.min()}")


def check_histories(case: Case, samples: SampleBatch, first: int, growing: bool) -> None:
    """Every history holds only what its user had liked before the row and, unless histories grow, before the match.

    samples: those of `case.events` from position `first` on.

    Raises:
        Leak: a history knows more.
    """
    history = samples.columns["history"]
    assert isinstance(history, Ragged)
    liked = (case.events.label >= 0.5) & case.events.observed
    for row in range(len(samples)):
        until = int(case.events.timestamp[first + row])
        if not growing:
            until = min(until, case.match_time)
        allowed = set(case.events.item[liked & (case.events.timestamp < until)].tolist())
        if wrong := set(history.row(row).tolist()) - allowed:
            raise Leak(f"user number {case.user}: item {min(wrong)} is in a history before the user liked it")


def check_pool(pool: Pool, before: int) -> None:
    """Raises: Leak: a sample that is about to be searched is of the match time or later."""
    for segment in pool.segments:
        if len(segment) and segment.timestamps.max() >= before:
            raise Leak(f"the pool shows a sample of {segment.timestamps.max()} to a match at {before}")
