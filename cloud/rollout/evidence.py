"""What devices reported of a release, summed up for the gates.

A device has one voice a release: its first report after it was placed in a group. A figure that cannot be is counted as
absurd and not used; what can be, but is forged, is bounded: a quality is cut, a cost is only above its bound or not.
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


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over a group. rated: devices whose quality counts. squares: of the qualities. absurd: figures that were not
    used."""

    devices: int = 0
    failures: int = 0
    rated: int = 0
    quality: float = 0.0
    squares: float = 0.0
    absurd: int = 0


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """events: what is counted, "failures" or a cost's name -> (treatment, control), among the first `pairs` reports of
    either group: a group that reports more often must not seem to fail more often."""

    treatment: Arm = Arm()
    control: Arm = Arm()
    pairs: int = 0
    events: dict[str, tuple[int, int]] = {}


def summed(treatment: Reports, control: Reports, bounds: Mapping[str, float]) -> Evidence:
    """bounds: cost -> the amount above which a round is costly: its 95 % quantile under the previous release, from
    reports that came before this one began."""
    pairs = min(len(treatment), len(control))
    events = {"failures": (int(treatment.failed[:pairs].sum()), int(control.failed[:pairs].sum()))}
    for name, bound in bounds.items():
        above = [int((_possible(group.costs[name])[:pairs] > bound).sum()) for group in (treatment, control)]
        events[name] = (above[0], above[1])
    return Evidence(treatment=_arm(treatment), control=_arm(control), pairs=pairs, events=events)


def _arm(reports: Reports) -> Arm:
    told = reports.quality[~np.isnan(reports.quality)]
    possible = told[np.abs(told) <= 1]
    cut = np.clip(possible, -MOST_QUALITY, MOST_QUALITY)
    absurd = len(told) - len(possible)
    for amounts in reports.costs.values():
        absurd += int((~np.isnan(amounts) & np.isnan(_possible(amounts))).sum())
    return Arm(
        devices=len(reports),
        failures=int(reports.failed.sum()),
        rated=len(cut),
        quality=float(cut.sum()),
        squares=float(cut @ cut),
        absurd=absurd,
    )


def _possible(amounts: Float64) -> Float64:
    """NaN where an amount cannot be."""
    return np.where(np.isfinite(amounts) & (amounts >= 0), amounts, np.nan)
