"""What devices reported of a release, summed up for the gates.

A device has one voice a release: its first report after it was placed in a group. A figure that cannot be is counted as
absurd and not used; what can be, but is forged, is bounded: a quality is cut, a cost is only above its bound or not.
Whoever is not heard of again cannot report that; so devices are watched, too: from the first signed request that they
make in their group, whether another one comes within the gate's window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np

from device_runtime.samples import Bool, Float64

MOST_QUALITY = 0.5
"""A device's difference in AUC is cut at this: hardly any honest one is larger, and a forged one should not weigh."""


@dataclass(frozen=True)
class Reports:
    """Of one group, a row a device, in the order of their arrival; NaN: not told.

    failed: bool [n], the round ended in an error or the app crashed. quality: float64 [n], AUC of what the device runs
    less that of the previous release, both on its own held-out rows (federated evaluation). A control device tells the
    same of two evaluations of the previous release, mostly 0. costs: name -> float64 [n], such as CPU seconds.
    """

    failed: Bool
    quality: Float64
    costs: Mapping[str, Float64]

    def __len__(self) -> int:
        return len(self.failed)


@dataclass(frozen=True)
class Watched:
    """Devices of one group whose window is over, in the order in which they were first heard in it.

    silent: bool [n], no further sign of life came within the window.
    """

    silent: Bool

    def __len__(self) -> int:
        return len(self.silent)


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over a group. rated: devices whose quality counts. squares: of the qualities. absurd: figures that were not
    used. watched: devices whose window is over; silent: of these, that were not heard of again."""

    devices: int = 0
    failures: int = 0
    rated: int = 0
    quality: float = 0.0
    squares: float = 0.0
    absurd: int = 0
    watched: int = 0
    silent: int = 0

    def joined(self, more: Arm) -> Arm:
        """With the quality that others of the same bundle tell; their other figures are left out."""
        return msgspec.structs.replace(
            self,
            rated=self.rated + more.rated,
            quality=self.quality + more.quality,
            squares=self.squares + more.squares,
        )


SILENT = "silent"
"""The event that a device is not heard of again."""


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """events: what is counted, "failures", a cost's name or `SILENT` -> (treatment, control), among the first `pairs`
    reports of either group: a group that reports more often must not seem to fail more often. watched: as `pairs`, for
    `SILENT`. reference: devices of the previous bundle beyond the control, of which only the quality is used."""

    treatment: Arm = Arm()
    control: Arm = Arm()
    reference: Arm = Arm()
    pairs: int = 0
    watched: int = 0
    events: dict[str, tuple[int, int]] = {}

    def of(self, event: str) -> int:
        """How many of each group an event was counted among."""
        return self.watched if event == SILENT else self.pairs


def summed(
    treatment: Reports,
    control: Reports,
    bounds: Mapping[str, float],
    *,
    reference: Float64 | None = None,
    watched: tuple[Watched, Watched] | None = None,
) -> Evidence:
    """bounds: cost -> the amount above which a round is costly: its 95 % quantile under the previous release, from
    reports that came before this one began. reference: qualities, as those of `Reports`. watched: of the treatment and
    the control; None where silence is not counted."""
    pairs = min(len(treatment), len(control))
    events = {"failures": (int(treatment.failed[:pairs].sum()), int(control.failed[:pairs].sum()))}
    for name, bound in bounds.items():
        above = [int((_possible(group.costs[name])[:pairs] > bound).sum()) for group in (treatment, control)]
        events[name] = (above[0], above[1])
    both, over = (watched or (None, None)), 0
    if watched is not None:
        over = min(map(len, watched))
        events[SILENT] = (int(watched[0].silent[:over].sum()), int(watched[1].silent[:over].sum()))
    return Evidence(
        treatment=_arm(treatment, both[0]),
        control=_arm(control, both[1]),
        reference=Arm() if reference is None else _rated(reference),
        pairs=pairs,
        watched=over,
        events=events,
    )


def _arm(reports: Reports, watched: Watched | None) -> Arm:
    rated = _rated(reports.quality)
    absurd = rated.absurd
    for amounts in reports.costs.values():
        absurd += int((~np.isnan(amounts) & np.isnan(_possible(amounts))).sum())
    return msgspec.structs.replace(
        rated,
        devices=len(reports),
        failures=int(reports.failed.sum()),
        absurd=absurd,
        watched=0 if watched is None else len(watched),
        silent=0 if watched is None else int(watched.silent.sum()),
    )


def _rated(quality: Float64) -> Arm:
    told = quality[~np.isnan(quality)]
    possible = told[np.abs(told) <= 1]
    cut = np.clip(possible, -MOST_QUALITY, MOST_QUALITY)
    absurd = len(told) - len(possible)
    squares = float(np.square(cut).sum())
    return Arm(devices=len(quality), rated=len(cut), quality=float(cut.sum()), squares=squares, absurd=absurd)


def _possible(amounts: Float64) -> Float64:
    """NaN where an amount cannot be."""
    return np.where(np.isfinite(amounts) & (amounts >= 0), amounts, np.nan)
