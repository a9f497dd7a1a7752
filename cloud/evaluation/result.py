"""The result of an evaluation as JSON and as a table for the terminal."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from importlib import metadata

import msgspec
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from cloud.datasets import Dataset
from cloud.evaluation.protocols import Split
from cloud.evaluation.running import UserResult
from cloud.evaluation.statistics import Difference, JudgeErrors, MethodResult
from cloud.evaluation.synthetic import FilterTruth, Found
from cloud.report import words
from device_runtime import __version__
from device_runtime.bundle import RoundSettings
from device_runtime.platform_info import capability

_VERSIONS = ("numpy", "onnxruntime", "torch", "faiss-cpu", "joblib")


class Dropped(msgspec.Struct, frozen=True):
    """users: reason -> users whom the protocol does not admit. not_drawn: users whom it admits, beyond those asked for.
    rows: reason -> rows that could not be read."""

    users: dict[str, int]
    not_drawn: int
    rows: dict[str, int]


class DatasetFacts(msgspec.Struct, frozen=True):
    """Of what was read; with --validation, what was examined lies within. notes: how labels came to be."""

    name: str
    users: int
    items: int
    events: int
    notes: list[str]


class Examined(msgspec.Struct, frozen=True):
    """One user. aucs: by method, mean over seeds."""

    local: int
    test: int
    positives: float
    aucs: dict[str, float]


class Knob(msgspec.Struct, frozen=True):
    """What came out at one heterogeneity."""

    heterogeneity: float
    filter: FilterTruth | None
    methods: list[MethodResult]


class Result(msgspec.Struct, frozen=True):
    """users: examined. seeds: how many. cut: seconds; the cloud model is trained on earlier events, `trained_on` of
    them, and matching is over `pool` samples, each only after its time. settings: of the round. filter: where the truth
    is known. judge: its errors. sweep: of the synthetic protocol; the other fields are then those of its last
    heterogeneity. training_seed: of the cloud model, which is one and the same for all users and seeds."""

    command: str
    version: str
    machine: dict[str, object]
    started: str
    dataset: DatasetFacts
    protocol: str
    validation: bool
    quick: bool
    growing_histories: bool
    users: int
    seeds: int
    model: str
    versions: dict[str, str]
    cut: int
    trained_on: int
    pool: int
    dropped: Dropped
    settings: RoundSettings
    methods: list[MethodResult]
    examined: list[Examined]
    filter: FilterTruth | None = None
    judge: JudgeErrors | None = None
    sweep: list[Knob] = []
    training_seed: int = 0


def dataset_facts(dataset: Dataset) -> DatasetFacts:
    bare = int((dataset.item_categories[1:].max(1, initial=0) == 0).sum())
    notes = list(dataset.report.notes)
    if bare:
        notes.append(f"{bare} of {len(dataset.items) - 1} items have no known category")
    if future := int((dataset.events.timestamp > time.time()).sum()):
        notes.append(f"{future} rows are later than today; they count as the newest, so check the table's clock")
    return DatasetFacts(dataset.name, len(dataset.users), len(dataset.items) - 1, len(dataset.events), notes)


def dropped(dataset: Dataset, parts: Split) -> Dropped:
    return Dropped(parts.dropped, parts.eligible - len(parts.cases), dict(dataset.report.dropped))


def examined(results: Mapping[int, Sequence[UserResult]]) -> list[Examined]:
    found = []
    for same in zip(*results.values(), strict=True):
        one = same[0]
        aucs = {name: float(np.mean([user.scores[name].auc for user in same])) for name in one.scores}
        found.append(Examined(one.local, one.test, one.positives, aucs))
    return found


def filter_truth(results: Mapping[int, Sequence[UserResult]]) -> FilterTruth | None:
    """Means over users and seeds; None where the truth is not known."""
    known = [user.filter for seed in results.values() for user in seed if user.filter is not None]
    if not known:
        return None

    def mean(each: list[Found]) -> Found:
        return Found(*(float(np.mean([getattr(f, name) for f in each])) for name in Found.__struct_fields__))

    grouped = [one.group for one in known if one.group is not None]
    return FilterTruth(mean(grouped) if grouped else None, mean([one.taste for one in known]))


def sweep_table(result: Result) -> Table:
    """One row a heterogeneity."""
    shown = Table(title=Text("by heterogeneity"), box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    names = [m.name for m in result.sweep[0].methods if m.name in ("local", "coda")]
    shown.add_column("hetero-\ngeneity", justify="right")
    shown.add_column("cloud's\nuser AUC", justify="right")
    for name in names:
        shown.add_column(f"{name}\nminus cloud", justify="right", no_wrap=True)
    shown.add_column("coda\nminus local", justify="right", no_wrap=True)
    for kind in ("own group", "own taste"):
        shown.add_column(f"{kind}\nprecision\n(share)", justify="right")
        shown.add_column("\nrecall\n(kept)", justify="right")
    for knob in result.sweep:
        by = {m.name: m for m in knob.methods}
        cells = [f"{knob.heterogeneity:g}", words.auc(by["cloud"].mean_user_auc)]
        cells += [_difference(by[name].vs_cloud) for name in names]
        cells.append(_difference(by["coda"].vs_local) if "coda" in by else "–")
        for found in (knob.filter.group, knob.filter.taste) if knob.filter else ():
            cells += (
                [f"{found.precision:.2f} ({found.share:.2f})", f"{found.recall:.2f} ({found.kept:.2f})"]
                if found
                else ["–", "–"]
            )
        shown.add_row(*cells)
    return shown


def machine() -> dict[str, object]:
    """Nothing that names the machine or its owner."""
    found: dict[str, object] = msgspec.to_builtins(capability({}))
    return {n: v for n, v in found.items() if n not in ("engines", "runtime")} | {"platform": platform.platform()}


def versions() -> dict[str, str]:
    return {"coda-loop": __version__} | {name: metadata.version(name) for name in _VERSIONS}


def table(result: Result) -> Table:
    """One row a method."""
    period = ", validation period" if result.validation else ""
    shown = Table(
        title=Text(f"{result.protocol} on {result.dataset.name}{period}: {result.users} users, {result.seeds} seeds"),
        caption=Text(_caption(result)),
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    shown.add_column("method", no_wrap=True)
    for name in ("user\nAUC", "GAUC", "log\nloss", "ECE", "minus cloud\n[95 %]", "minus local\n[95 %]"):
        shown.add_column(name, justify="right", no_wrap=True)
    for name in ("up/\ndown", "worse,\nexpected", "p5", "CPU\ns", "KB\ndown", "kept"):
        shown.add_column(name, justify="right", no_wrap=True)
    for m in result.methods:
        shown.add_row(
            f"{m.name} *" if m.reference else m.name,
            words.auc(m.mean_user_auc),
            words.auc(m.gauc),
            words.auc(m.log_loss, 3),
            words.auc(m.calibration, 3),
            _difference(m.vs_cloud),
            _difference(m.vs_local),
            f"{100 * m.better:.0f}/{100 * m.worse:.0f}",
            words.percent(m.expected.worse) if m.expected else "–",
            words.signed(m.p5),
            f"{m.cost.cpu_s:.2f}",
            f"{m.cost.bytes_down / 1e3:.1f}",
            f"{m.cost.kept:.0f}",
            style="dim" if m.reference else "",
        )
    return shown


def _difference(found: Difference) -> str:
    if found.ci95 is None:
        return words.signed(found.mean)
    low, high = (f"{end:+.3f}".replace("-", "−") for end in found.ci95)
    return f"{words.signed(found.mean)} [{low}, {high}]"


def _caption(result: Result) -> str:
    lines = [
        "up/down: % of users more than 0.01 AUC above or below the cloud as measured; worse: the latter behind the "
        "noise of few test rows; p5: the 5th percentile user; ECE: calibration error."
    ]
    lines += [f"not examined: {count} users: {reason}" for reason, count in result.dropped.users.items()]
    if result.dropped.not_drawn:
        lines.append(f"not examined: {result.dropped.not_drawn} users more than were asked for")
    lines += [f"* {m.name}: {m.about}" for m in result.methods if m.reference]
    lines += [f"not read: {count} rows: {reason}" for reason, count in result.dropped.rows.items()]
    if (judge := result.judge) is not None:
        shares = [words.percent(x) if x is not None else "none" for x in (judge.harmful_kept, judge.helpful_refused)]
        lines.append(
            f"the judge let {words.percent(judge.kept)} of {judge.updates} updates serve, "
            f"{words.percent(judge.partly)} in part: {shares[0]} of those that harm by the test rows; "
            f"it refused {shares[1]} of those that help"
        )
    lines += [f"{m.name}: training failed in {m.failed} rounds" for m in result.methods if m.failed]
    return "\n".join(lines)
