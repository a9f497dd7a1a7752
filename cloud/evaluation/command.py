"""What `coda evaluate` does: read, split, make the cloud, examine, summarize, show."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from cloud.datasets import Dataset, example, listed_users, read
from cloud.evaluation import leaks, page, result, synthetic, tuning
from cloud.evaluation.cloud_side import Cloud, Place
from cloud.evaluation.making import Show, prepare
from cloud.evaluation.methods import METHODS, chosen
from cloud.evaluation.protocols import Split, split
from cloud.evaluation.running import UserResult, Work, tasks
from cloud.evaluation.running import run as examine_all
from cloud.evaluation.statistics import judge_errors, summarize
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
    console = Console() if sys.stdout.isatty() else Console(width=150)
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

    if args.tune:
        with bar:
            tuned = tune(args, show)
        write_atomically(args.json, msgspec.json.format(msgspec.json.encode(tuned)) + b"\n")
        if args.settings_out:
            write_atomically(args.settings_out, msgspec.json.format(msgspec.json.encode(tuned.chosen)) + b"\n")
        console.print(tuning.table(tuned))
        return 0
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
    started = now()
    if args.protocol != "synthetic":
        return _evaluated(args, started, _read(args), show)
    knobs = SWEEP if args.heterogeneity is None else (args.heterogeneity,)
    seed = 1 if args.validation else 0  # another world, since there is no earlier time in this one
    each = []
    for knob in knobs:
        made = synthetic.make(knob, seed, _world(args))
        if args.table_out:
            made.write(args.table_out / f"heterogeneity-{knob:g}")
        each.append(
            _evaluated(args, started, made.dataset, lambda *told, k=knob: show(f"{k:g}: {told[0]}", *told[1:]), made)
        )
    sweep = [result.Knob(knob, one.filter, one.methods) for knob, one in zip(knobs, each, strict=True)]
    return msgspec.structs.replace(each[-1], sweep=sweep)


@dataclass(frozen=True)
class Prepared:
    """A split, and the cloud that was made for it."""

    parts: Split
    place: Place
    truth: synthetic.Truth | None

    def settings(self, given: RoundSettings) -> RoundSettings:
        """The settings, with what the cloud's training found where they leave that to it."""
        return Cloud.open(self.place).manifest.found.completing(given)


def _prepared(
    args: argparse.Namespace, dataset: Dataset, show: Show, made: synthetic.Made | None = None, validation: bool = False
) -> Prepared:
    training = TrainSettings(model=args.model, seed=args.training_seed, threads=_threads(args.jobs))
    if made is not None:  # nothing is to be forgotten in a world that has no accidents but flipped labels
        training = msgspec.structs.replace(training, weight_decay=0.05, item_dropout=0.1)
    if args.quick:
        training = msgspec.structs.replace(training, epochs=_QUICK_EPOCHS)
    if made is None:
        listed = None if args.users_table is None else listed_users(args.users_table)
        parts = split(dataset, args.protocol, _users(args), validation=validation, listed=listed)
    else:
        parts = split(dataset, args.protocol, _users(args), cut=synthetic.CUT)
    leaks.check_split(parts)
    place = prepare(parts, _store(args), training, show)
    return Prepared(parts, place, None if made is None else synthetic.Truth.of(made))


def _played(
    args: argparse.Namespace, ready: Prepared, settings: RoundSettings, methods: Sequence[str], show: Show
) -> dict[int, list[UserResult]]:
    work = Work(ready.place, settings, tuple(methods), args.growing_histories, ready.truth)
    todo = tasks(work, ready.parts.cases, range(_seeds(args)), _store(args) / "results")
    return examine_all(todo, args.backend, args.jobs, lambda done, total: show("examine users", done, total))


def _users(args: argparse.Namespace) -> int:
    return min(args.users, _QUICK_USERS) if args.quick else int(args.users)


def _seeds(args: argparse.Namespace) -> int:
    return 1 if args.quick else int(args.seeds)


def _store(args: argparse.Namespace) -> Path:
    return args.work or Path(args.json).with_name(args.json.name + ".work")


def tune(args: argparse.Namespace, show: Show) -> tuning.Tuned:
    """Choose settings on the validation period. Raises: CodaError."""
    started, base = now(), read_settings(args.settings)
    grid = tuning.read_grid(args.tune, base)
    if args.protocol == "synthetic":
        made = synthetic.make(1.0 if args.heterogeneity is None else args.heterogeneity, 1, _world(args))
        ready = _prepared(args, made.dataset, show, made)
    else:
        made = None
        ready = _prepared(args, _read(args), show, validation=True)

    def play(number: int, settings: RoundSettings) -> dict[int, list[UserResult]]:
        told = f"settings {number + 1} of {len(grid)}"
        return _played(
            args, ready, ready.settings(settings), ("cloud", "coda"), lambda _, done, total: show(told, done, total)
        )

    rows = tuning.search(grid, base, play)
    return tuning.Tuned(
        command(),
        __version__,
        result.machine(),
        started,
        ready.parts.cloud.name,
        args.protocol,
        len(ready.parts.cases),
        _seeds(args),
        rows,
        rows[0].changes,
    )


def _evaluated(
    args: argparse.Namespace, started: str, dataset: Dataset, show: Show, made: synthetic.Made | None = None
) -> result.Result:
    methods, given = chosen(args.methods), read_settings(args.settings)
    ready = _prepared(args, dataset, show, made, args.validation)
    settings = ready.settings(given)
    parts, found = ready.parts, _played(args, ready, settings, methods, show)
    return result.Result(
        command=command(),
        version=__version__,
        machine=result.machine(),
        started=started,
        dataset=result.dataset_facts(dataset),
        protocol=args.protocol,
        validation=args.validation,
        quick=args.quick,
        growing_histories=args.growing_histories,
        users=len(parts.cases),
        seeds=_seeds(args),
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
        judge=judge_errors(found),
        training_seed=args.training_seed,
    )


def _check(args: argparse.Namespace) -> None:
    if args.users < 1 or args.seeds < 1:
        raise InputError("--users and --seeds are at least 1")
    if args.training_seed < 0:
        raise InputError(f"--training-seed is at least 0; given: {args.training_seed}")
    if args.jobs == 0 or args.jobs < -1:
        raise InputError("--jobs is at least 1, or -1 for one a core")
    made_up = args.protocol == "synthetic"
    if made_up and (args.interactions or args.users_table):
        raise InputError("the synthetic protocol makes its own tables; leave out --interactions and --users-table")
    if not made_up and (args.heterogeneity is not None or args.table_out):
        raise InputError("--heterogeneity and --table-out belong to --protocol synthetic")
    if args.items and not args.interactions:
        raise InputError("--items goes with --interactions")
    if args.settings_out and not args.tune:
        raise InputError("--settings-out belongs to --tune")


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


def _world(args: argparse.Namespace) -> synthetic.World:
    return synthetic.QUICK if args.quick else synthetic.WORLD


def _read(args: argparse.Namespace) -> Dataset:
    if args.interactions is None:
        return example()
    return read(args.interactions, args.items, positive_at=args.positive_at)


def now() -> str:
    """UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def command() -> str:
    return shlex.join(["coda", *sys.argv[1:]])


def _threads(jobs: int) -> int:
    return max(1, jobs) if jobs > 0 else os.cpu_count() or 1
