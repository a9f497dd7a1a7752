"""Who is examined, on what, and what the cloud may know by then. `docs/accuracy.md` says why the protocols are so.

A user's events are cut in three: *context*, which only histories see; *local*, what the device trains and judges on;
and *test*. The device matches right after its last local event (its match time): a pool sample that is later does not
exist for it. Test histories end there too, so that no test row is in a feature of another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from cloud.datasets import Dataset
from device_runtime.errors import InputError
from device_runtime.samples import Int64
from device_runtime.stream import Events

PROTOCOLS = ("paper", "fresh", "cold", "synthetic")
CUT = 0.7
"""Quantile of time up to which the cloud model is trained, where it stops earlier than the devices."""
PAPER_CUT = 0.75
LOCAL_SHARE = 0.6
"""Of a user's events after the cut in `fresh`: the oldest, which are local."""
CAPS = (10, 20, 50)
"""Local samples of a user in `cold`, at most."""
MIN_TEST, MIN_LOCAL, MIN_LOCAL_PAPER, MIN_LOCAL_COLD, MAX_LOCAL = 8, 8, 20, 6, 1000
MIN_CLOUD = 100


@dataclass(frozen=True)
class Case:
    """One examined user. events: context, local and test, ordered. local_from, test_from: positions in them. cap: of
    the local samples; 0 where there is none."""

    user: int
    events: Events
    local_from: int
    test_from: int
    cap: int = 0

    @property
    def match_time(self) -> int:
        """Seconds: the first moment of which the device can know nothing."""
        return int(self.events.timestamp[self.test_from - 1]) + 1

    @property
    def local(self) -> Events:
        return self.events.take(np.arange(self.local_from, self.test_from))

    @property
    def test(self) -> Events:
        return self.events.take(np.arange(self.test_from, len(self.events)))


@dataclass(frozen=True)
class Split:
    """cloud: what the cloud model is trained on. pool: what may be matched, each sample only after its time. cut:
    seconds; cloud events are earlier. eligible: users that could have been examined. dropped: reason -> users."""

    protocol: str
    cloud: Dataset
    pool: Dataset
    cases: tuple[Case, ...]
    cut: int
    eligible: int
    dropped: dict[str, int]


def split(
    dataset: Dataset,
    protocol: str,
    users: int,
    *,
    validation: bool = False,
    seed: int = 0,
    cut: int | None = None,
    listed: Collection[str] | None = None,
) -> Split:
    """Choose at most `users` examined users at random among those that the protocol admits, and cut their events.

    validation: the same protocol played within the events that the real one trains the cloud model on; no event that is
    local or tested there is touched, so choices may be made on it. cut: seconds, where the data has a natural one.
    listed: keys of the users who may be examined; the others stay in the cloud's training and in the pool.

    Raises:
        InputError: nobody can be examined, or nothing is left for the cloud.
    """
    kind = "fresh" if protocol == "synthetic" else protocol
    share = PAPER_CUT if kind == "paper" else CUT
    if validation:
        dataset = dataset.take(dataset.events.timestamp < _cut(dataset.events, share))
        _require(dataset, "the validation period")
    cut = _cut(dataset.events, share) if cut is None else cut
    found: list[Case] = []
    dropped: Counter[str] = Counter()
    rng = np.random.default_rng([seed, PROTOCOLS.index(protocol)])
    for positions in by_user(dataset.events):
        events = dataset.events.take(positions)
        case = _CUTTERS[kind](events, cut, rng)
        if listed is not None and dataset.users[int(events.contributor[0])] not in listed:
            case = "not in the table of users"
        if isinstance(case, Case):
            found.append(case)
        else:
            dropped[case] += 1
    if not found:
        reasons = "; ".join(f"{count} users: {reason}" for reason, count in dropped.most_common())
        raise InputError(f"no user of {dataset.name} can be examined by the protocol {protocol!r}: {reasons}")
    picked = np.sort(rng.permutation(len(found))[:users])
    cases = tuple(found[i] for i in picked)
    before = dataset.events.timestamp < cut
    if kind == "cold":
        strangers = np.zeros(len(dataset.users), bool)
        strangers[[case.user for case in cases]] = True
        known = ~strangers[dataset.events.contributor]
        cloud, pool = dataset.take(before & known), dataset.take(known)
    else:
        cloud, pool = dataset.take(before), dataset.take(before) if kind == "paper" else dataset
    _require(cloud, f"the cloud model, before {cut}")
    return Split(protocol, cloud, pool, cases, cut, len(found), dict(dropped.most_common()))


def by_user(events: Events) -> list[Int64]:
    """The positions of each contributor's events."""
    edges = np.flatnonzero(np.diff(events.contributor)) + 1
    return [part for part in np.split(np.arange(len(events), dtype=np.int64), edges) if len(part)]


def _cut(events: Events, share: float) -> int:
    return int(np.quantile(events.timestamp, share))


def _require(dataset: Dataset, what: str) -> None:
    if len(dataset.events) < MIN_CLOUD:
        raise InputError(
            f"only {len(dataset.events)} events of {dataset.name} are left for {what}; at least {MIN_CLOUD} are needed"
        )


def _paper(events: Events, cut: int, _: np.random.Generator) -> Case | str:
    """All rows before the cut are local, all others are tested."""
    border = int(np.searchsorted(events.timestamp, cut))
    return _admitted(events, 0, border, MIN_LOCAL_PAPER)


def _fresh(events: Events, cut: int, _: np.random.Generator) -> Case | str:
    """Rows before the cut are context; of the others, the older ones are local."""
    start = int(np.searchsorted(events.timestamp, cut))
    if start == len(events):
        return "no row after the cloud model's time"
    border = _between_seconds(events, start + int((len(events) - start) * LOCAL_SHARE))
    return _admitted(events, start, border, MIN_LOCAL)


def _cold(events: Events, cut: int, rng: np.random.Generator) -> Case | str:
    """Users whose first row is after the cut; their first rows are local, as many as a cap that is drawn allows."""
    if events.timestamp[0] < cut:
        return "not new: has rows from before the cloud model's time"
    fitting = [cap for cap in CAPS if len(events) >= cap + MIN_TEST]
    if not fitting:
        return f"fewer than {CAPS[0] + MIN_TEST} rows"
    cap = int(rng.choice(fitting))
    return _admitted(events, 0, _between_seconds(events, cap), MIN_LOCAL_COLD, cap)


def _admitted(events: Events, start: int, border: int, least: int, cap: int = 0) -> Case | str:
    labels = events.label[border:] >= 0.5
    if border - start < least:
        return f"fewer than {least} local rows"
    if border - start > MAX_LOCAL:
        return f"more than {MAX_LOCAL} local rows"
    if not len(labels):
        return "no test row"
    if len(labels) < MIN_TEST:
        return f"fewer than {MIN_TEST} test rows"
    if labels.all() or not labels.any():
        return "test rows of one class only: they have no AUC"
    return Case(int(events.contributor[0]), events, start, border, cap)


def _between_seconds(events: Events, border: int) -> int:
    """The last border up to the given one that does not part events of the same second."""
    while 0 < border < len(events) and events.timestamp[border] == events.timestamp[border - 1]:
        border -= 1
    return border


_CUTTERS: dict[str, Callable[[Events, int, np.random.Generator], Case | str]] = {
    "paper": _paper,
    "fresh": _fresh,
    "cold": _cold,
}
