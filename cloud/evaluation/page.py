"""An evaluation as a page of its own: no script, and nothing that a browser would fetch."""

from __future__ import annotations

import time
from importlib.resources import files
from pathlib import Path

import jinja2
import msgspec
from markupsafe import Markup

from cloud.evaluation import plots
from cloud.evaluation.result import Result
from cloud.evaluation.statistics import Difference, MethodResult
from cloud.report import words
from cloud.report.render import both
from device_runtime.bundle import write_atomically


def write(result: Result, folder: Path) -> None:
    """`report.html` and `report.json`. Raises: StoreError: the disk refuses."""
    write_atomically(folder / "report.json", msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    write_atomically(folder / "report.html", page(result).encode())


def page(result: Result) -> str:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "auc": words.auc,
        "signed": words.signed,
        "percent": words.percent,
        "size": words.size,
        "number": words.number,
        "counted": words.counted,
        "day": lambda seconds: time.strftime("%Y-%m-%d", time.gmtime(seconds)),
        "difference": _difference,
    }
    template = environment.from_string((files("cloud") / "evaluation" / "page.html").read_text("utf-8"))
    by_name = {m.name: m for m in result.methods}
    shown = by_name["coda" if "coda" in by_name else "local"]
    others = [m for m in result.methods if m.name != "cloud"]
    return template.render(
        r=result,
        shown=shown,
        claims=[
            (f"{shown.name} against the cloud's model", _claim(shown.vs_cloud)),
            (f"{shown.name} against tuning on local samples alone", _claim(shown.vs_local)),
        ],
        style=Markup((files("cloud") / "report" / "report.css").read_text("utf-8")),
        headline=[(by_name[n], kind) for n, kind in (("cloud", "cloud"), ("local", "local")) if n in by_name]
        + ([(shown, "coda")] if shown.name == "coda" else []),
        forest_cloud=both(lambda width: plots.forest(others, _vs_cloud, "Methods minus cloud", width)),
        forest_local=both(lambda width: plots.forest(others, _vs_local, "Methods minus local", width)),
        by_user=both(lambda width: plots.by_user(result, shown.name, width)),
        strata=both(lambda width: plots.strata(shown, width)),
        cost=both(lambda width: plots.cost_against_gain(result.methods, width)),
        knobs=both(lambda width: plots.knobs(result.sweep, shown.name, width)) if len(result.sweep) > 1 else None,
    )


def _vs_cloud(method: MethodResult) -> Difference:
    return method.vs_cloud


def _vs_local(method: MethodResult) -> Difference:
    return method.vs_local


def _difference(found: Difference) -> str:
    if found.ci95 is None:
        return words.signed(found.mean)
    return f"{words.signed(found.mean)} ({words.signed(found.ci95[0])} to {words.signed(found.ci95[1])})"


def _claim(found: Difference) -> str:
    """What the interval allows to say."""
    if found.ci95 is None:
        return "From one user nothing can be said."
    low, high = found.ci95
    if low > 0:
        return "The whole interval lies above zero."
    if high < 0:
        return "The whole interval lies below zero."
    return "The interval includes zero: no difference can be claimed."
