"""Who plays a device in the demo, what it knows, and what it is tested on, without a leak.

The cloud is trained on, and its pool made of, other people's events up to the cut. A device's tested events are its
newest, and all lie after the cut; whatever it trains or judges on is strictly older than they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloud.datasets import Dataset
from device_runtime.errors import InputError
from device_runtime.stream import Events

CUT = 0.8
"""Quantile of the events' time up to which the cloud sees them."""
HELD_OUT = 0.2
"""Share of a device's events, the newest, that it is tested on."""
MIN_LOCAL, MAX_LOCAL, MIN_HELD_OUT = 20, 1000, 20
MIN_EACH = 5
"""Tested events of either label: an AUC over one dislike is a coin toss, and a dozen devices do not average it away."""


@dataclass(frozen=True)
class DeviceData:
    """user: external key. local, held_out: the user's events, ordered by time, every one of the latter later."""

    user: str
    local: Events
    held_out: Events


@dataclass(frozen=True)
class DemoSplit:
    """cut: seconds since 1970. eligible: users that could have been devices."""

    cloud: Dataset
    devices: tuple[DeviceData, ...]
    cut: int
    eligible: int


def split(dataset: Dataset, devices: int, rng: np.random.Generator) -> DemoSplit:
    """Choose devices at random among the users who were active long enough after the cut.

    Raises:
        InputError: no user was, or nothing is left for the cloud.
    """
    events = dataset.events
    cut = int(np.quantile(events.timestamp, CUT))
    edges = np.flatnonzero(np.diff(events.contributor)) + 1
    users = [part for part in np.split(np.arange(len(events)), edges) if len(part)]
    candidates = [found for part in users if (found := _device(dataset, part, cut)) is not None]
    if not candidates:
        raise InputError(
            f"no user can play a device: it takes {MIN_LOCAL} to {MAX_LOCAL} events, then {MIN_HELD_OUT} newer ones, "
            f"{MIN_EACH} of either label at least, that all come after {CUT:.0%} of the table's time; give a table "
            "with more active users"
        )
    picked = rng.permutation(len(candidates))[:devices]
    chosen = tuple(candidates[i] for i in sorted(picked))
    names = {device.user for device in chosen}
    excluded = np.array([user in names for user in dataset.users])
    cloud = dataset.take((events.timestamp <= cut) & ~excluded[events.contributor])
    if len(cloud.events) < 100:
        raise InputError(
            f"only {len(cloud.events)} events are left for the cloud; give a larger table or fewer devices"
        )
    return DemoSplit(cloud, chosen, cut, len(candidates))


def _device(dataset: Dataset, positions: npt.NDArray[np.int64], cut: int) -> DeviceData | None:
    times = dataset.events.timestamp[positions]
    border = int(len(positions) * (1 - HELD_OUT))
    while 0 < border < len(positions) and times[border] == times[border - 1]:
        border += 1  # events of one second stay on one side
    local, held_out = positions[:border], positions[border:]
    if not MIN_LOCAL <= len(local) <= MAX_LOCAL or len(held_out) < MIN_HELD_OUT or times[border] <= cut:
        return None
    liked = dataset.events.label[held_out] >= 0.5
    if min(liked.sum(), (~liked).sum()) < MIN_EACH:
        return None
    user = dataset.users[int(dataset.events.contributor[positions[0]])]
    return DeviceData(user, dataset.events.take(local), dataset.events.take(held_out))


def arrivals(local: Events, rounds: int) -> list[Events]:
    """The local events in the portions in which they arrive: 60 % before the first round, then equal shares."""
    shares = np.linspace(0.6, 1.0, rounds) if rounds > 1 else np.ones(1)
    ends = [round(len(local) * share) for share in shares]
    return [local.take(np.arange(a, b)) for a, b in zip([0, *ends], ends, strict=False)]
