"""The report as HTML, JSON and a table for the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import jinja2
import msgspec
from rich.table import Table

from cloud.report import plots
from cloud.report.model import DemoReport, DeviceResult, FilterFacts, Summary, summarize
from device_runtime.bundle import write_atomically
from device_runtime.messages import PhaseOverhead, RoundReport
from device_runtime.meter import merge


def write(report: DemoReport, folder: Path) -> None:
    """`report.html` and `report.json`. Raises: StoreError: the disk refuses."""
    summary = summarize(report)
    content = msgspec.to_builtins(report) | {"summary": msgspec.to_builtins(summary)}
    write_atomically(folder / "report.json", msgspec.json.format(msgspec.json.encode(content)) + b"\n")
    write_atomically(folder / "report.html", page(report, summary).encode())


def page(report: DemoReport, summary: Summary) -> str:
    """The whole page, self-contained."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    filters: dict[str, Callable[..., object]] = {"auc": _auc, "size": _size, "signed": _signed, "cost": merge}
    environment.filters.update(filters)
    template = environment.from_string((files("cloud") / "report" / "report.html").read_text())
    devices = [device for device in report.devices if not device.error]
    together = _together([d.filter for d in devices if d.filter is not None])
    known = {name: _known(devices, name) for name in ("cloud", "local", "coda")}
    means = {name: statistics.mean(values) if values else None for name, values in known.items()}
    return template.render(
        report=report,
        summary=summary,
        means=means,
        rounds=sum(len(device.rounds) for device in devices),
        aucs=plots.aucs(devices),
        differences=plots.differences(devices, summary.coda_minus_cloud),
        cpu=plots.bars(_phases(devices), "s", "CPU seconds by phase, median round"),
        memory=_peaks(devices),
        traffic=plots.bars(_traffic(devices), "KB", "Bytes by message, median device", ".1f"),
        filtered=plots.histogram(together.edges, together.kept, together.dropped) if together else "",
        together=together,
        ranked=next((device for device in devices if device.top and device.activated), None)
        or next((device for device in devices if device.top), None),
    )


def terminal_table(report: DemoReport) -> Table:
    """One row a device, and their means."""
    table = Table(title=f"CoDA on {report.dataset.name}", caption=summarize(report).coda_minus_cloud.claim)
    for name in ("device", "engine", "local", "kept / candidates", "weights", "AUC cloud", "local", "CoDA"):
        table.add_column(name, justify="left" if name in ("device", "engine", "weights") else "right")
    for name in ("CPU s", "peak MiB", "KB down", "KB up"):
        table.add_column(name, justify="right")
    for d in report.devices:
        if d.error:
            table.add_row(d.id, d.engine, d.error, style="red")
            continue
        table.add_row(
            d.id,
            d.engine,
            str(d.local),
            f"{d.kept} / {d.candidates}",
            "personal" if any(r.outcome == "activated" for r in d.rounds) else "cloud's",
            _auc(d.auc.cloud),
            _auc(d.auc.local),
            _auc(d.auc.coda),
            f"{d.overhead.cpu_s:.2f}",
            f"{d.overhead.peak_mib:.0f}",
            f"{d.overhead.bytes_down / 1e3:.1f}",
            f"{d.overhead.bytes_up / 1e3:.1f}",
        )
    return table


def _known(devices: list[DeviceResult], name: str) -> list[float]:
    return [value for device in devices if (value := getattr(device.auc, name)) is not None]


def _auc(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}"


def _size(count: float) -> str:
    return f"{count:.0f} B" if count < 1e3 else f"{count / 1e3:.1f} KB" if count < 1e6 else f"{count / 1e6:.2f} MB"


def _groups(devices: list[DeviceResult]) -> dict[str, list[RoundReport]]:
    """First and later rounds by engine."""
    found: dict[str, list[RoundReport]] = {}
    for device in devices:
        for number, one in enumerate(device.rounds):
            found.setdefault(f"{device.engine}, {'later' if number else 'first'}", []).append(one)
    return dict(sorted(found.items()))


def _phases(devices: list[DeviceResult]) -> dict[str, dict[str, float]]:
    groups = _groups(devices)
    return {name: _median_of(rounds, lambda p: p.cpu_user_s + p.cpu_system_s) for name, rounds in groups.items()}


def _median_of(rounds: list[RoundReport], value: Callable[[PhaseOverhead], float]) -> dict[str, float]:
    names = list(dict.fromkeys(phase.phase for one in rounds for phase in one.phases))
    found = {}
    for name in names:
        each = [sum(value(p) for p in one.phases if p.phase == name) for one in rounds]
        found[name] = statistics.median(each)
    return found


def _peaks(devices: list[DeviceResult]) -> list[tuple[str, dict[str, float]]]:
    """Median peak memory of each phase, by engine and kind of round."""
    return [(name, _median_of(rounds, lambda p: p.peak_mib)) for name, rounds in _groups(devices).items()]


def _traffic(devices: list[DeviceResult]) -> dict[str, dict[str, float]]:
    """Kilobytes by message: in the first round and in later ones, down and up."""
    found: dict[str, dict[str, float]] = {}
    for when in ("first", "later"):
        rounds = [
            one
            for device in devices
            for number, one in enumerate(device.bytes_by_message)
            if bool(number) == (when == "later")
        ]
        for side, name in ((1, "down"), (0, "up")):
            labels = list(dict.fromkeys(label for one in rounds for label in one))
            parts = {label: statistics.median(one.get(label, (0, 0))[side] for one in rounds) / 1e3 for label in labels}
            if parts:
                found[f"{when}, {name}"] = parts
    return found


def _together(each: list[FilterFacts]) -> FilterFacts | None:
    if not each:
        return None
    kept = [sum(column) for column in zip(*(f.kept for f in each), strict=True)]
    dropped = [sum(column) for column in zip(*(f.dropped for f in each), strict=True)]
    liked = [f.kept_positive_share for f in each if f.kept_positive_share is not None]
    before = [f.candidates_positive_share for f in each if f.candidates_positive_share is not None]
    return FilterFacts(
        each[0].edges,
        kept,
        dropped,
        statistics.mean(liked) if liked else None,
        statistics.mean(before) if before else None,
    )
