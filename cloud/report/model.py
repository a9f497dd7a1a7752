"""What the demo found, and what may be said of it."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

import msgspec
import numpy as np

from device_runtime.messages import RoundReport
from device_runtime.meter import merge

SAME = 0.0005
"""AUCs closer than this count as the same."""
_RESAMPLES = 10_000


class DatasetFacts(msgspec.Struct, frozen=True):
    """cut: the time up to which the cloud saw events, ISO. eligible: users who could have been devices."""

    name: str
    users: int
    items: int
    events: int
    cut: str
    eligible: int
    pool: int
    notes: list[str] = []


class ModelFacts(msgspec.Struct, frozen=True):
    """bundle_bytes: stored bytes by kind of file."""

    name: str
    parameters: int
    epochs: int
    validation_auc: float
    train_seconds: float
    bundle_bytes: dict[str, int]


class Stage(msgspec.Struct, frozen=True):
    name: str
    seconds: float


class Aucs(msgspec.Struct, frozen=True):
    """On held-out later events, under the cloud's weights, locally tuned ones, and those that CoDA left serving. None
    where it could not be had."""

    cloud: float | None = None
    local: float | None = None
    coda: float | None = None


class Overhead(msgspec.Struct, frozen=True):
    cpu_s: float = 0.0
    peak_mib: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0
    bytes_stored: int = 0


class FilterFacts(msgspec.Struct, frozen=True):
    """Counts of candidates by the filter's score; edges has one number more."""

    edges: list[float]
    kept: list[int]
    dropped: list[int]
    kept_positive_share: float | None = None
    candidates_positive_share: float | None = None


class RankedItem(msgspec.Struct, frozen=True):
    """was: the rank under the cloud's weights; None if beyond those looked at."""

    rank: int
    item: str
    title: str
    score: float
    was: int | None = None


class DeviceResult(msgspec.Struct, frozen=True):
    """candidates, kept, activated, overhead: of the last round. traffic: per round, message -> [up, down] bytes."""

    id: str
    engine: str
    local: int = 0
    candidates: int = 0
    kept: int = 0
    activated: bool = False
    held_out: int = 0
    auc: Aucs = Aucs()
    overhead: Overhead = Overhead()
    rounds: list[RoundReport] = []
    bytes_by_message: list[dict[str, tuple[int, int]]] = []
    filter: FilterFacts | None = None
    top: list[RankedItem] = []
    error: str = ""


class Difference(msgspec.Struct, frozen=True):
    """A paired difference of AUCs over n devices, with the 95 % bootstrap interval of its mean."""

    n: int
    mean: float | None = None
    ci95: tuple[float, float] | None = None
    better: float = 0.0
    same: float = 0.0
    worse: float = 0.0
    worst: float | None = None

    @property
    def claim(self) -> str:
        """What the interval allows to say."""
        if self.mean is None or self.ci95 is None:
            return "no device has both"
        low, high = self.ci95
        if self.n < 5:
            return f"{self.n} devices are too few to claim anything"
        if low > 0:
            return "the whole interval is above zero"
        if high < 0:
            return "the whole interval is below zero"
        return f"the interval contains zero: {self.n} devices do not show a difference"


class Summary(msgspec.Struct, frozen=True):
    """left_out: device -> why it is in no difference. overhead: engine -> first or later rounds -> medians."""

    coda_minus_cloud: Difference
    coda_minus_local: Difference
    local_minus_cloud: Difference
    left_out: dict[str, str]
    overhead: dict[str, dict[str, Overhead]]
    bytes_down: int
    bytes_up: int
    cpu_s: float


class DemoReport(msgspec.Struct, frozen=True):
    """The whole result. notes: what failed or was left out; shown loudly."""

    command: str
    version: str
    machine: dict[str, str | int | float]
    started: str
    seconds: float
    quick: bool
    seed: int
    dataset: DatasetFacts
    model: ModelFacts
    stages: list[Stage]
    devices: list[DeviceResult]
    notes: list[str] = []


def difference(pairs: Sequence[tuple[float, float]], seed: int = 0) -> Difference:
    """Of (new, old) AUCs of the same devices."""
    if not pairs:
        return Difference(0)
    values = np.array([new - old for new, old in pairs])
    drawn = np.random.default_rng(seed).integers(0, len(values), (_RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [0.025, 0.975])
    return Difference(
        len(values),
        float(values.mean()),
        (float(low), float(high)),
        float((values > SAME).mean()),
        float((np.abs(values) <= SAME).mean()),
        float((values < -SAME).mean()),
        float(values.min()),
    )


def summarize(report: DemoReport) -> Summary:
    """Differences, medians and totals over all devices."""
    left_out = {}
    for device in report.devices:
        if device.error:
            left_out[device.id] = device.error
        elif device.auc.cloud is None or device.auc.coda is None:
            left_out[device.id] = "its held-out events have one class only"
    by_engine: dict[str, dict[str, list[RoundReport]]] = defaultdict(lambda: defaultdict(list))
    everything = []
    for device in report.devices:
        for number, one in enumerate(device.rounds):
            by_engine[device.engine]["later" if number else "first"].append(one)
            everything += one.phases
    total = merge(everything)
    return Summary(
        difference(_pairs(report, "coda", "cloud"), report.seed),
        difference(_pairs(report, "coda", "local"), report.seed),
        difference(_pairs(report, "local", "cloud"), report.seed),
        left_out,
        {engine: {when: _median(rounds) for when, rounds in sorted(w.items())} for engine, w in by_engine.items()},
        int(total["bytes_down"]),
        int(total["bytes_up"]),
        float(total["cpu_s"]),
    )


def _pairs(report: DemoReport, new: str, old: str) -> list[tuple[float, float]]:
    found = [(getattr(device.auc, new), getattr(device.auc, old)) for device in report.devices]
    return [(a, b) for a, b in found if a is not None and b is not None]


def _median(rounds: list[RoundReport]) -> Overhead:
    each = [merge(one.phases) for one in rounds]

    def median(name: str) -> float:
        return float(statistics.median(cost[name] for cost in each))

    return Overhead(
        median("cpu_s"),
        median("peak_mib"),
        int(median("bytes_down")),
        int(median("bytes_up")),
        int(median("bytes_stored")),
    )
