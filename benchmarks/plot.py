"""Plots of benchmarks as SVG files of their own, drawn with the report's tools and in its colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cloud.report.plots import phase_order
from cloud.report.svg import Scale, picture, rect, text, width_of
from device_runtime.bundle import write_atomically

_WIDTH = 720
_ROW = 22
_OUTSIDE = "start and end"


def write(path: Path, drawn: Markup) -> None:
    """A picture as a file that stands alone, in light and in dark. Raises: StoreError."""
    style = (files("cloud") / "report" / "report.css").read_text("utf-8")
    head = '<svg xmlns="http://www.w3.org/2000/svg" '
    ground = '<rect width="100%" height="100%" style="fill:var(--paper)"/>'
    body = str(drawn).replace("<svg ", head, 1).replace("</title>", f"</title><style>{style}</style>{ground}", 1)
    write_atomically(path, body.encode())


def phases(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """CPU seconds of each row of `coda bench round`, by phase; what is in no phase is the process's start and end."""
    costs = {}
    for row in rows:
        when = "first" if row["first"] else "later"
        name = f"{row['engine']}, {row['local']} local samples, {row['candidates']} candidates, {when} round"
        inside = {phase: cost["cpu_s"] for phase, cost in row["phases"].items()}
        costs[name] = {_OUTSIDE: max(row["cpu_s"] - sum(inside.values()), 0.0)} | inside
    names = phase_order(costs)
    most = max(sum(row.values()) for row in costs.values())
    body, y = [], 0.0
    for name, row in costs.items():
        body.append(text(0, y + 13, name, "small"))
        x = 0.0
        for phase, seconds in row.items():
            length = seconds / most * (_WIDTH - 70)
            body.append(rect(x, y + 19, length, 16, f"p{names.index(phase) % 9}", f"{phase}: {seconds:.3f} s"))
            x += length
        body.append(text(x + 6, y + 32, f"{sum(row.values()):.2f} s", "small"))
        y += 44
    x = 0.0
    for number, phase in enumerate(names):
        if x + width_of(phase) + 30 > _WIDTH:
            x, y = 0.0, y + 20
        body += [rect(x, y + 6, 11, 11, f"p{number % 9}"), text(x + 16, y + 16, phase, "small")]
        x += width_of(phase) + 30
    told = "; ".join(f"{name} {sum(row.values()):.2f} s" for name, row in costs.items())
    return picture(_WIDTH, y + 26, "CPU seconds of a device's whole process, by phase", told, body)


def bars(title: str, values: Mapping[str, float], form: str) -> Markup:
    """One bar a name, its value beside it."""
    left = 12 + 7.5 * max(len(name) for name in values)
    scale = Scale([0, *values.values()], left, _WIDTH - 70)
    bottom = 30 + _ROW * len(values)
    body = [text(0, 16, title, "strong"), *scale.axis(28, bottom)]
    for number, (name, value) in enumerate(values.items()):
        y = 30 + _ROW * number
        body.append(text(0, y + 14, name, "small"))
        body.append(rect(left, y + 3, scale(value) - left, _ROW - 8, f"p{number % 9}", f"{name}: {value:{form}}", 2))
        body.append(text(scale(value) + 6, y + 14, f"{value:{form}}", "small"))
    return picture(_WIDTH, bottom + 26, title, "; ".join(f"{n} {v:{form}}" for n, v in values.items()), body)
