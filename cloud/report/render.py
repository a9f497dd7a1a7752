"""The report as HTML, JSON and a table for the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import jinja2
import msgspec
from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from cloud.report import diagram, plots, words
from cloud.report.model import (
    SAME,
    DemoReport,
    DeviceResult,
    FilterFacts,
    PhaseCost,
    Summary,
    by_phase,
    finished_rounds,
    summarize,
)
from cloud.report.svg import shorten
from device_runtime.bundle import write_atomically
from device_runtime.messages import RoundReport
from device_runtime.meter import merge

_WIDE, _HALF, _NARROW = 1032, 496, 358
"""Pictures' widths in px: across the page, half of it, and on a phone."""


def write(report: DemoReport, folder: Path) -> None:
    """`report.html` and `report.json`. Raises: StoreError: the disk refuses."""
    summary = summarize(report)
    content = msgspec.to_builtins(report) | {"summary": msgspec.to_builtins(summary)}
    write_atomically(folder / "report.json", msgspec.json.format(msgspec.json.encode(content)) + b"\n")
    write_atomically(folder / "report.html", page(report, summary).encode())


def page(report: DemoReport, summary: Summary) -> str:
    """The whole page, self-contained: no script, and nothing that a browser would fetch."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    filters: dict[str, Callable[..., object]] = {
        "auc": words.auc,
        "size": words.size,
        "signed": words.signed,
        "percent": words.percent,
        "number": words.number,
        "counted": words.counted,
        "duration": words.duration,
        "cost": lambda one: merge(one.phases),
    }
    environment.filters.update(filters)
    sources = files("cloud") / "report"
    template = environment.from_string((sources / "report.html").read_text("utf-8"))
    devices = sorted((d for d in report.devices if not d.error), key=_by_gain)
    seconds, peaks = _mean_seconds(report.devices), _median_peaks(summary)
    together = _together([d.filter for d in devices if d.filter is not None])
    return template.render(
        report=report,
        summary=summary,
        style=Markup((sources / "report.css").read_text("utf-8")),
        same_within=SAME,
        remarks=_remarks(report, summary),
        tested=sum(device.held_out for device in devices),
        comparisons=[
            ("CoDA against the cloud's model", summary.coda_minus_cloud),
            ("CoDA against tuning on local samples alone", summary.coda_minus_local),
            ("Local tuning against the cloud's model", summary.local_minus_cloud),
        ],
        highest_peak=max((p.peak_mib for d in report.devices for r in d.rounds for p in r.phases), default=None),
        process_peaks=any(p.peak_source != "phase" for d in report.devices for r in d.rounds for p in r.phases),
        phases=plots.phase_order(seconds),
        seconds=seconds,
        peaks=peaks,
        engines=[engine for engine in summary.overhead if engine != "all"],
        loop=both(lambda width: diagram.loop(_sizes(summary), width), _WIDE),
        aucs=both(lambda width: plots.aucs(devices, summary, width)),
        gains=both(lambda width: plots.gains(devices, summary.coda_minus_cloud, width)),
        cpu=both(lambda width: plots.cpu(seconds, width)),
        memory=both(lambda width: plots.memory(peaks, width)),
        scores=both(lambda width: plots.scores(together, width)) if together else None,
        kept=both(lambda width: plots.kept(devices, width)),
        together=together,
        ranked=_ranked(devices),
    )


def terminal_table(report: DemoReport) -> Table:
    """One row a device, then means of AUC and medians of cost; failures below. Needs 80 columns."""
    summary = summarize(report)
    compared, costs = summary.coda_minus_cloud, [d.overhead for d in report.devices if not d.error]
    remarks = ["Last row: mean AUC; median cost of a device's last round."] if costs else []
    remarks += [f"{d.id} failed: {d.error}" for d in report.devices if d.error]
    table = Table(
        title=Text(f"CoDA on {report.dataset.name}"),
        caption=Text("\n".join([f"CoDA against the cloud: {compared.claim}", *remarks])),
        caption_justify="left",
        show_footer=bool(costs),
        box=SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    means = summary.means
    table.add_column("device", "all", overflow="fold")
    table.add_column("engine", no_wrap=True)
    table.add_column("kept", justify="right", no_wrap=True)
    table.add_column("serves", no_wrap=True)
    for name, value in (("cloud", means.cloud), ("local", means.local), ("CoDA", means.coda)):
        table.add_column(f"AUC\n{name}", words.auc(value, 3), justify="right", no_wrap=True)
    table.add_column("CoDA −\ncloud", words.signed(compared.mean), justify="right", no_wrap=True)
    for name, form, each in (
        ("CPU\ns", ".2f", [cost.cpu_s for cost in costs]),
        ("peak\nMiB", ".0f", [cost.peak_mib for cost in costs]),
        ("KB\ndown", ".1f", [cost.bytes_down / 1e3 for cost in costs]),
        ("KB\nup", ".1f", [cost.bytes_up / 1e3 for cost in costs]),
    ):
        total = format(statistics.median(each), form) if each else ""
        table.add_column(name, total, justify="right", no_wrap=True)
    for d in report.devices:
        shown = Text(shorten(d.id, 16))
        if d.error:
            table.add_row(shown, Text(d.engine), "", "failed", style="red")
            continue
        table.add_row(
            shown,
            Text(d.engine),
            f"{d.kept}/{d.candidates}",
            "own" if d.personal else "cloud's",
            *(words.auc(value, 3) for value in (d.auc.cloud, d.auc.local, d.auc.coda)),
            words.signed(d.gain),
            f"{d.overhead.cpu_s:.2f}",
            f"{d.overhead.peak_mib:.0f}",
            f"{d.overhead.bytes_down / 1e3:.1f}",
            f"{d.overhead.bytes_up / 1e3:.1f}",
        )
    return table


def _remarks(report: DemoReport, summary: Summary) -> list[str]:
    """What failed or was left out, each once: the demo may have noted a device's failure already."""
    fresh = {name: why for name, why in summary.left_out.items() if not any(why in note for note in report.notes)}
    return [*report.notes, *(f"Device {name} is in no comparison: {why}" for name, why in fresh.items())]


def _by_gain(device: DeviceResult) -> tuple[bool, float, float]:
    """Best first; those without a difference last."""
    return device.gain is None, -(device.gain or 0.0), -(device.auc.cloud or 0.0)


def both(draw: Callable[[int], Markup], width: int = _HALF) -> Markup:
    """A picture for wide screens and one for narrow ones; the page shows one of them."""
    wide = draw(width)
    if not wide:
        return wide
    kind = "across" if width == _WIDE else "half"
    narrow = draw(_NARROW)
    return Markup('<div class="wide {0}">{1}</div><div class="narrow {0}">{2}</div>').format(kind, wide, narrow)


def _sizes(summary: Summary) -> dict[str, str]:
    """What passes between cloud and device in the diagram."""
    everywhere = summary.phases.get("all", {})
    pull = everywhere.get("first", {}).get("pull")
    kinds = [everywhere[when]["match"] for when in ("later", "first") if "match" in everywhere.get(when, {})]
    match = kinds[0] if kinds else None
    report = next((m["report"] for m in reversed(summary.messages.values()) if "report" in m), None)
    return {
        "bundle": words.size(pull.bytes_down) if pull else "",
        "query": words.size(match.bytes_up) if match else "",
        "candidates": words.size(match.bytes_down) if match else "",
        "report": words.size(report.up) if report else "",
    }


def _mean_seconds(devices: list[DeviceResult]) -> dict[str, dict[str, float]]:
    """Mean CPU seconds of each phase by engine and kind of round. Means, because they add up to the whole round."""
    found: dict[str, dict[str, float]] = {}
    for engine, kinds in finished_rounds(devices).items():
        for when, rounds in kinds.items():
            if engine != "all":
                found[f"{engine}, {when}"] = _mean_of(rounds)
    return found


def _mean_of(rounds: list[RoundReport]) -> dict[str, float]:
    each = [{name: float(merge(records)["cpu_s"]) for name, records in by_phase(one).items()} for one in rounds]
    names = plots.phase_order({str(number): row for number, row in enumerate(each)})
    return {name: statistics.mean(row.get(name, 0.0) for row in each) for name in names}


def _median_peaks(summary: Summary) -> dict[str, dict[str, float]]:
    def of(phases: dict[str, PhaseCost]) -> dict[str, float]:
        return {name: cost.peak_mib for name, cost in phases.items()}

    kinds = [(engine, when) for engine, found in summary.phases.items() for when in found if engine != "all"]
    return {f"{engine}, {when}": of(summary.phases[engine][when]) for engine, when in kinds}


def _together(each: list[FilterFacts]) -> FilterFacts | None:
    """All devices' counts in one; shares over all candidates, not over devices."""
    if not each:
        return None
    kept = [sum(column) for column in zip(*(facts.kept for facts in each), strict=True)]
    dropped = [sum(column) for column in zip(*(facts.dropped for facts in each), strict=True)]
    if not sum(kept) + sum(dropped):
        return None
    return FilterFacts(
        each[0].edges,
        kept,
        dropped,
        _share([(facts.kept_positive_share, sum(facts.kept)) for facts in each]),
        _share([(facts.candidates_positive_share, sum(facts.kept) + sum(facts.dropped)) for facts in each]),
    )


def _share(parts: list[tuple[float | None, int]]) -> float | None:
    known = [(share, count) for share, count in parts if share is not None and count]
    return sum(share * count for share, count in known) / sum(count for _, count in known) if known else None


def _ranked(devices: list[DeviceResult]) -> DeviceResult | None:
    """The device whose list moved most."""

    def moved(device: DeviceResult) -> int:
        return sum(1000 if item.was is None else abs(item.was - item.rank) for item in device.top)

    return max((device for device in devices if device.top), key=moved, default=None)
