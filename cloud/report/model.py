"""What the demo found, and what may be said of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from device_runtime.messages import PhaseOverhead, RoundReport
from device_runtime.meter import merge

SAME = 0.0005
"""AUCs closer than this count as the same."""
ENOUGH = 6
"""Devices below which nothing is claimed: if all of five agree, a sign test still says p = 2^(1-5) > 0.05, while the
bootstrap's interval would exclude zero."""
_RESAMPLES = 10_000
_ZERO = 1e-12
"""A bound nearer to zero than this is a sum's rounding error."""


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
    """Counts of candidates by the filter's score. edges: one number more, and the same on every device."""

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
    """One device. candidates, kept, activated, overhead, filter: of the last round. held_out: rows tested on.
    bytes_by_message: of each round, message -> (up, down). error: why it did not reach its end."""

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

    @property
    def personal(self) -> bool:
        """Whether it serves weights of its own: those of any round, not only of the last."""
        return any(one.outcome == "activated" for one in self.rounds)

    @property
    def gain(self) -> float | None:
        """CoDA minus cloud; None where either AUC is missing."""
        if self.auc.coda is None or self.auc.cloud is None:
            return None
        return self.auc.coda - self.auc.cloud


class Difference(msgspec.Struct, frozen=True):
    """A paired difference of AUCs over n devices.

    ci95: the bootstrap interval of the mean; None with fewer than two devices. better, same, worse: shares of devices;
    `same` is within `SAME` of zero. worst: the lowest difference, and worst_device whose it is.
    """

    n: int
    mean: float | None = None
    ci95: tuple[float, float] | None = None
    better: float = 0.0
    same: float = 0.0
    worse: float = 0.0
    worst: float | None = None
    worst_device: str = ""

    @property
    def claim(self) -> str:
        """What the interval allows to say, as a sentence."""
        if self.mean is None:
            return "Nothing can be said: no device has both AUCs."
        if self.ci95 is None or self.n < ENOUGH:
            return f"No difference can be claimed from {_devices(self.n)}: too few, whatever they show."
        low, high = self.ci95
        if low < _ZERO and high > -_ZERO:
            return f"No difference can be claimed from {_devices(self.n)}: the interval includes zero."
        side = "above" if low > 0 else "below"
        return f"Over these {_devices(self.n)} there is a difference: the whole interval lies {side} zero."


class PhaseCost(msgspec.Struct, frozen=True):
    """Medians of one phase over the rounds that had it; a phase that ran twice in a round counts once, with both."""

    cpu_s: float
    peak_mib: float
    bytes_down: int
    bytes_up: int


class MessageBytes(msgspec.Struct, frozen=True):
    """Medians over all rounds of the kind; 0 for those without the message."""

    down: int
    up: int


class Summary(msgspec.Struct, frozen=True):
    """What the page says in numbers.

    means: over the n devices that have all three AUCs. personal: devices that serve weights of their own. left_out:
    device -> why it is in no difference. overhead, phases: engine -> "first" or "later" -> medians over the rounds that
    reached a verdict; "all" stands for every engine. messages: the same kinds of rounds -> message -> medians.
    unfinished: rounds without a verdict. bytes and cpu_s: totals over everything, those rounds included.
    """

    n: int
    means: Aucs
    coda_minus_cloud: Difference
    coda_minus_local: Difference
    local_minus_cloud: Difference
    personal: int
    left_out: dict[str, str]
    overhead: dict[str, dict[str, Overhead]]
    phases: dict[str, dict[str, dict[str, PhaseCost]]]
    messages: dict[str, dict[str, MessageBytes]]
    rounds: int
    unfinished: int
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


def difference(pairs: Mapping[str, tuple[float, float]], seed: int = 0) -> Difference:
    """Of the (new, old) AUCs of each device."""
    if not pairs:
        return Difference(0)
    values = np.array([new - old for new, old in pairs.values()])
    interval = None
    if len(values) > 1:
        drawn = np.random.default_rng(seed).integers(0, len(values), (_RESAMPLES, len(values)))
        low, high = np.quantile(values[drawn].mean(1), [0.025, 0.975])
        interval = (float(low), float(high))
    better, worse = (values > SAME).mean(), (values < -SAME).mean()
    return Difference(
        n=len(values),
        mean=float(values.mean()),
        ci95=interval,
        better=float(better),
        same=float((np.abs(values) <= SAME).mean()),
        worse=float(worse),
        worst=float(values.min()),
        worst_device=list(pairs)[int(values.argmin())],
    )


def summarize(report: DemoReport) -> Summary:
    """Differences, medians and totals over all devices."""
    compared = [d for d in report.devices if not why_left_out(d)]
    complete = [d.auc for d in compared if d.auc.local is not None]
    finished = finished_rounds(report.devices)
    rounds = [one for device in report.devices for one in device.rounds]
    total = merge(phase for one in rounds for phase in one.phases)
    return Summary(
        n=len(complete),
        means=Aucs(*(_mean([getattr(auc, name) for auc in complete]) for name in ("cloud", "local", "coda"))),
        coda_minus_cloud=difference(_pairs(compared, "coda", "cloud"), report.seed),
        coda_minus_local=difference(_pairs(compared, "coda", "local"), report.seed),
        local_minus_cloud=difference(_pairs(compared, "local", "cloud"), report.seed),
        personal=sum(device.personal for device in report.devices),
        left_out={d.id: reason for d in report.devices if (reason := why_left_out(d))},
        overhead={e: {when: _median_round(each) for when, each in kinds.items()} for e, kinds in finished.items()},
        phases={e: {when: _median_phases(each) for when, each in kinds.items()} for e, kinds in finished.items()},
        messages=_messages(report.devices),
        rounds=len(rounds),
        unfinished=sum(one.verdict is None for one in rounds),
        bytes_down=int(total["bytes_down"]),
        bytes_up=int(total["bytes_up"]),
        cpu_s=float(total["cpu_s"]),
    )


def why_left_out(device: DeviceResult) -> str:
    """Why a device is in no difference of CoDA and cloud; empty if it is in."""
    if device.error:
        return device.error
    if not device.held_out:
        return "it has no held-out events"
    if device.auc.cloud is None and device.auc.coda is None:
        return "its held-out events have one class only, so there is no AUC"
    if device.auc.cloud is None or device.auc.coda is None:
        return f"its AUC under {'CoDA' if device.auc.coda is None else 'the cloud'}'s weights is missing"
    return ""


def finished_rounds(devices: Sequence[DeviceResult]) -> dict[str, dict[str, list[RoundReport]]]:
    """Rounds that reached a verdict: engine (and "all") -> "first" or "later" -> rounds."""
    found: dict[str, dict[str, list[RoundReport]]] = {}
    for when, wanted in (("first", slice(0, 1)), ("later", slice(1, None))):
        for device in sorted(devices, key=lambda d: d.engine):
            for one in device.rounds[wanted]:
                if one.verdict is not None:
                    for engine in ("all", device.engine):
                        found.setdefault(engine, {}).setdefault(when, []).append(one)
    return found


def by_phase(one: RoundReport) -> dict[str, list[PhaseOverhead]]:
    """A round's records by the phase's name, in order; a phase may have run more than once."""
    found: dict[str, list[PhaseOverhead]] = {}
    for record in one.phases:
        found.setdefault(record.phase, []).append(record)
    return found


def _devices(count: int) -> str:
    return "one device" if count == 1 else f"{count} devices"


def _mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None


def _pairs(devices: Sequence[DeviceResult], new: str, old: str) -> dict[str, tuple[float, float]]:
    found = {device.id: (getattr(device.auc, new), getattr(device.auc, old)) for device in devices}
    return {name: pair for name, pair in found.items() if None not in pair}


def _median_round(rounds: Sequence[RoundReport]) -> Overhead:
    each = [merge(one.phases) for one in rounds]
    medians = {name: statistics.median(cost[name] for cost in each) for name in each[0]}
    whole = {name: round(value) for name, value in medians.items() if name.startswith("bytes")}
    return msgspec.convert(medians | whole, Overhead)


def _median_phases(rounds: Sequence[RoundReport]) -> dict[str, PhaseCost]:
    costs: dict[str, list[dict[str, float | int]]] = {}
    for one in rounds:
        for name, records in by_phase(one).items():
            costs.setdefault(name, []).append(merge(records))

    def median(name: str, what: str) -> float:
        return float(statistics.median(cost[what] for cost in costs[name]))

    return {
        name: PhaseCost(
            median(name, "cpu_s"),
            median(name, "peak_mib"),
            round(median(name, "bytes_down")),
            round(median(name, "bytes_up")),
        )
        for name in costs
    }


def _messages(devices: Sequence[DeviceResult]) -> dict[str, dict[str, MessageBytes]]:
    found: dict[str, dict[str, MessageBytes]] = {}
    for when, wanted in (("first", slice(0, 1)), ("later", slice(1, None))):
        rounds = [one for device in devices for one in device.bytes_by_message[wanted]]
        for label in dict.fromkeys(label for one in rounds for label in one):
            up, down = (statistics.median(one.get(label, (0, 0))[side] for one in rounds) for side in (0, 1))
            found.setdefault(when, {})[label] = MessageBytes(round(down), round(up))
    return found
