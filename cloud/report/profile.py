"""The page of `coda profile`: what rounds cost on one real device, and what nobody measured there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup

from cloud.report import plots, words
from device_runtime.bundle import write_atomically
from device_runtime.messages import PhaseOverhead, RoundReport
from device_runtime.meter import merge

_WIDTH = 1032


class ProfileReport(msgspec.Struct, frozen=True):
    """target: where it ran. machine: what the device says of itself. rounds: in their order. unmeasured: sentences."""

    command: str
    version: str
    started: str
    target: str
    machine: dict[str, Any]
    rounds: list[RoundReport]
    bytes_by_message: list[dict[str, tuple[int, int]]]
    unmeasured: list[str]


def write(report: ProfileReport, folder: Path) -> None:
    """`report.html` and `report.json`. Raises: StoreError: the disk refuses."""
    rows = [_row(number, one, traffic) for number, one, traffic in _numbered(report)]
    content = msgspec.to_builtins(report) | {"rows": rows}
    write_atomically(folder / "report.json", msgspec.json.format(msgspec.json.encode(content)) + b"\n")
    write_atomically(folder / "report.html", page(report, rows).encode())


def page(report: ProfileReport, rows: Sequence[Mapping[str, Any]]) -> str:
    """Self-contained, like the demo's."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"size": words.size, "counted": words.counted}
    sources = files("cloud") / "report"
    cpu = {f"{row['engine']}, round {row['round']}": row["phases"] for row in rows}
    memory = {
        f"{one.engine}, {'first' if number == 1 else 'later'}": _peaks(one.phases)
        for number, one, _ in reversed(_numbered(report))
    }
    return environment.from_string((sources / "profile.html").read_text("utf-8")).render(
        report=report,
        rows=rows,
        style=Markup((sources / "report.css").read_text("utf-8")),
        cpu=plots.cpu(cpu, _WIDTH),
        memory=plots.memory(memory, _WIDTH),
    )


def unmeasured(rounds: Sequence[RoundReport], android: bool) -> list[str]:
    """What the records leave open, in sentences."""
    said = ["Energy: no power meter was read.", "Temperature, clock frequency and throttling: not read."]
    if any(phase.peak_source != "phase" for one in rounds for phase in one.phases):
        said.append("Memory by phase: this kernel does not reset its mark, so peaks are the process's so far.")
    said.append("Bytes are those of the device's sockets; what TCP, IP and the radio add is not in them.")
    if android:
        said.append("Android itself: this is a Python beside the system, no app; ART and its scheduling are not in it.")
    return said


def _peaks(phases: Sequence[PhaseOverhead]) -> dict[str, float]:
    """The highest of each name: a round may tune twice."""
    found: dict[str, float] = {}
    for one in phases:
        found[one.phase] = max(found.get(one.phase, 0.0), one.peak_mib)
    return found


def _numbered(report: ProfileReport) -> list[tuple[int, RoundReport, dict[str, tuple[int, int]]]]:
    pairs = zip(report.rounds, report.bytes_by_message, strict=True)
    return [(number, one, traffic) for number, (one, traffic) in enumerate(pairs, 1)]


def _row(number: int, one: RoundReport, traffic: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    phases: dict[str, list[PhaseOverhead]] = {}
    for phase in one.phases:
        phases.setdefault(phase.phase, []).append(phase)
    cost = {name: float(merge(records)["cpu_s"]) for name, records in phases.items()}
    return {
        "round": number,
        "engine": one.engine,
        "outcome": one.outcome,
        "local": one.local,
        "candidates": one.candidates,
        "first": number == 1,
        **merge(one.phases),
        "wall_s": sum(phase.wall_s for phase in one.phases),
        "bytes_down": sum(down for _, down in traffic.values()),
        "bytes_up": sum(up for up, _ in traffic.values()),
        "phases": cost,
    }
