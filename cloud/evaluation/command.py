"""What `coda evaluate` does: read, split, make the cloud, examine, summarize, show."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from cloud.datasets import Dataset, example, read
from cloud.evaluation import leaks, page, result, synthetic
from cloud.evaluation.making import Show, prepare
from cloud.evaluation.methods import METHODS, chosen
from cloud.evaluation.protocols import split
from cloud.evaluation.running import Work, tasks
from cloud.evaluation.running import run as examine_all
from cloud.evaluation.statistics import summarize
from device_runtime import __version__
from device_runtime.bundle import RoundSettings, write_atomically
from device_runtime.errors import InputError
from export.checkpoint import TrainSettings

SWEEP = (0.0, 0.25, 0.5, 0.75, 1.0)
_QUICK_USERS, _QUICK_EPOCHS = 16, 2


def run(args: argparse.Namespace) -> int:
    """Raises: CodaError."""
    _check(args)
    # a log file has no width of its own, and rich would cut the table to 80 columns
    console = Console() if sys.stdout.isatty() else Console(width=136)
    bar = Progress(
        TextColumn("{task.description:34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    shown: dict[str, TaskID] = {}

    def show(name: str, done: int, total: int) -> None:
        # one line a stage: epochs take turns on theirs
        stage = name.split(",")[0]
        if stage not in shown:
            shown[stage] = bar.add_task(name, total=total)
        bar.update(shown[stage], description=name, completed=done, total=total)

    with bar:
        outcome = evaluate(args, show)
    write_atomically(args.json, msgspec.json.format(msgspec.json.encode(outcome)) + b"\n")
    if args.report:
        page.write(outcome, args.report)
    console.print(result.table(outcome))
    if outcome.sweep:
        console.print(result.sweep_table(outcome))
    return 0


def evaluate(args: argparse.Namespace, show: Show) -> result.Result:
    """Raises: CodaError."""
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if args.protocol != "synthetic":
        dataset = example() if args.interactions is None else _read(args)
        return _evaluated(args, started, dataset, show)
    knobs = SWEEP if args.heterogeneity is None else (args.heterogeneity,)
    world = synthetic.QUICK if args.quick else synthetic.WORLD
    seed = 1 if args.validation else 0  # another world, since there is no earlier time in this one
    each = []
    for knob in knobs:
        made = synthetic.make(knob, seed, world)
        if args.table_out:
            made.write(args.table_out / f"heterogeneity-{knob:g}")
        each.append(
            _evaluated(args, started, made.dataset, lambda *told, k=knob: show(f"{k:g}: {told[0]}", *told[1:]), made)
        )
    sweep = [result.Knob(knob, one.filter, one.methods) for knob, one in zip(knobs, each, strict=True)]
    return msgspec.structs.replace(each[-1], sweep=sweep)


def _evaluated(
    args: argparse.Namespace, started: str, dataset: Dataset, show: Show, made: synthetic.Made | None = None
) -> result.Result:
    users, seeds = (min(args.users, _QUICK_USERS), 1) if args.quick else (args.users, args.seeds)
    methods, settings = chosen(args.methods), read_settings(args.settings)
    training = TrainSettings(model=args.model, threads=_threads(args.jobs))
    if made is not None:  # nothing is to be forgotten in a world that has no accidents but flipped labels
        training = msgspec.structs.replace(training, weight_decay=0.05, item_dropout=0.1)
    if args.quick:
        training = msgspec.structs.replace(training, epochs=_QUICK_EPOCHS)
    if made is None:
        parts = split(dataset, args.protocol, users, validation=args.validation)
    else:
        parts = split(dataset, args.protocol, users, cut=synthetic.CUT)
    leaks.check_split(parts)
    store: Path = args.work or args.json.with_name(args.json.name + ".work")
    place = prepare(parts, store, training, show)
    truth = None if made is None else synthetic.Truth.of(made)
    work = Work(place, settings, tuple(methods), args.growing_histories, truth)
    todo = tasks(work, parts.cases, range(seeds), store / "results")
    found = examine_all(todo, args.backend, args.jobs, lambda done, total: show("examine users", done, total))
    return result.Result(
        command=shlex.join(["coda", *sys.argv[1:]]),
        version=__version__,
        machine=result.machine(),
        started=started,
        dataset=result.dataset_facts(dataset),
        protocol=args.protocol,
        validation=args.validation,
        quick=args.quick,
        growing_histories=args.growing_histories,
        users=len(parts.cases),
        seeds=seeds,
        model=args.model,
        versions=result.versions(),
        cut=parts.cut,
        trained_on=len(parts.cloud.events),
        pool=len(parts.pool.events),
        dropped=result.dropped(dataset, parts),
        settings=settings,
        methods=summarize(found, {name: (METHODS[name].about, METHODS[name].reference) for name in methods}),
        examined=result.examined(found),
        filter=result.filter_truth(found),
    )


def _check(args: argparse.Namespace) -> None:
    if args.users < 1 or args.seeds < 1:
        raise InputError("--users and --seeds are at least 1")
    if args.jobs == 0 or args.jobs < -1:
        raise InputError("--jobs is at least 1, or -1 for one a core")
    made_up = args.protocol == "synthetic"
    if made_up and args.interactions:
        raise InputError("the synthetic protocol makes its own table; leave out --interactions")
    if not made_up and (args.heterogeneity is not None or args.table_out):
        raise InputError("--heterogeneity and --table-out belong to --protocol synthetic")
    if args.items and not args.interactions:
        raise InputError("--items goes with --interactions")


def read_settings(path: Path | None) -> RoundSettings:
    """The defaults with what a JSON file says otherwise.

    Raises:
        InputError: there is no such file, or it is not of that form.
    """
    if path is None:
        return RoundSettings()
    try:
        return msgspec.json.decode(path.read_bytes(), type=RoundSettings)
    except OSError as error:
        raise InputError(f"cannot read the settings {path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        known = ", ".join(RoundSettings.__struct_fields__)
        raise InputError(f"{path} holds no round settings: {error}; there are {known}") from None


def _read(args: argparse.Namespace) -> Dataset:
    return read(args.interactions, args.items, positive_at=args.positive_at)


def _threads(jobs: int) -> int:
    return max(1, jobs) if jobs > 0 else os.cpu_count() or 1
