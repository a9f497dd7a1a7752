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
from cloud.evaluation import leaks, result
from cloud.evaluation.cloud_side import prepare
from cloud.evaluation.methods import METHODS, chosen
from cloud.evaluation.protocols import split
from cloud.evaluation.running import Work, tasks
from cloud.evaluation.running import run as examine_all
from cloud.evaluation.statistics import summarize
from device_runtime import __version__
from device_runtime.bundle import RoundSettings, write_atomically
from device_runtime.errors import InputError
from export.checkpoint import TrainSettings


def run(args: argparse.Namespace) -> int:
    """Raises: CodaError."""
    if args.users < 1 or args.seeds < 1:
        raise InputError("--users and --seeds are at least 1")
    users, seeds = (min(args.users, 16), 1) if args.quick else (args.users, args.seeds)
    methods, settings = chosen(args.methods), read_settings(args.settings)
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    console = Console() if sys.stdout.isatty() else Console(width=132)
    work: Path = args.work or args.json.with_name(args.json.name + ".work")
    training = TrainSettings(model=args.model, threads=_threads(args.jobs), **({"epochs": 2} if args.quick else {}))
    bar = Progress(
        TextColumn("{task.description:34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    shown: dict[str, TaskID] = {}

    def show(name: str, done: int, total: int) -> None:
        stage = name.split(",")[0]
        if stage not in shown:
            shown[stage] = bar.add_task(name, total=total)
        bar.update(shown[stage], description=name, completed=done, total=total)

    with bar:
        dataset = _dataset(args)
        parts = split(dataset, args.protocol, users, validation=args.validation)
        leaks.check_split(parts)
        place = prepare(parts, work, training, show)
        todo = tasks(
            Work(place, settings, tuple(methods), args.growing_histories), parts.cases, range(seeds), work / "results"
        )
        found = examine_all(todo, args.backend, args.jobs, lambda done, total: show("examine users", done, total))
    summary = summarize(found, {name: (METHODS[name].about, METHODS[name].reference) for name in methods})
    outcome = result.Result(
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
        methods=summary,
        examined=result.examined(found),
    )
    write_atomically(args.json, msgspec.json.format(msgspec.json.encode(outcome)) + b"\n")
    console.print(result.table(outcome))
    return 0


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


def _dataset(args: argparse.Namespace) -> Dataset:
    if args.interactions is None:
        return example()
    return read(args.interactions, args.items, positive_at=args.positive_at)


def _threads(jobs: int) -> int:
    return max(1, jobs) if jobs > 0 else os.cpu_count() or 1
