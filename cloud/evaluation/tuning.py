"""Settings chosen by devices: each tries a grid on its own earlier time, and only scores are pooled.

A device plays the round under every setting within the validation period and would hand up one number a setting: how
much its AUC differs from the cloud model's. The cloud adds them up; no row, label or weight leaves a device. The period
is that of `--validation`, so nothing that is tested later is touched.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from cloud.evaluation.running import UserResult
from cloud.evaluation.statistics import BEYOND, Difference, bootstrap, user_aucs
from cloud.report import words
from device_runtime.bundle import RoundSettings
from device_runtime.errors import InputError

MOST = 200
"""Settings in a grid, at most."""


class Row(msgspec.Struct, frozen=True):
    """One setting. changes: what differs from the defaults. score: the devices' mean difference from the cloud model.
    worse: share of the devices that lose more than 0.01 AUC."""

    changes: dict[str, Any]
    score: Difference
    worse: float


class Tuned(msgspec.Struct, frozen=True):
    """rows: of all settings, best first. chosen: what the best one changes; a file for --settings."""

    command: str
    version: str
    machine: dict[str, object]
    started: str
    dataset: str
    protocol: str
    users: int
    seeds: int
    rows: list[Row]
    chosen: dict[str, Any]


def read_grid(path: Path, base: RoundSettings) -> list[dict[str, Any]]:
    """Every combination of a JSON object of lists, the settings as they are first.

    Raises:
        InputError: not such a file, a setting that there is not, a value that does not fit, or too many combinations.
    """
    try:
        grid = msgspec.json.decode(path.read_bytes(), type=dict[str, list[Any]])
    except OSError as error:
        raise InputError(f"cannot read the grid {path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise InputError(
            f'{path} is no grid: {error}; it looks like {{"rate": [0.02, 0.1], "epochs": [1, 5]}}'
        ) from None
    if unknown := set(grid) - set(RoundSettings.__struct_fields__):
        known = ", ".join(RoundSettings.__struct_fields__)
        raise InputError(f"{path}: there is no setting {min(unknown)!r}; there are {known}")
    every = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if not grid or not every or len(every) > MOST:
        raise InputError(f"{path} gives {len(every) if grid else 0} settings; 1 to {MOST} can be tried")
    same = {name: getattr(base, name) for name in grid}
    found = [same, *(one for one in every if one != same)]
    for one in found:
        changed(base, one)
    return found


def changed(base: RoundSettings, changes: dict[str, Any]) -> RoundSettings:
    """Raises: InputError: a value does not fit."""
    try:
        return msgspec.convert(msgspec.to_builtins(base) | changes, RoundSettings)
    except msgspec.ValidationError as error:
        raise InputError(f"the settings {changes} cannot be: {error}") from None


def search(
    grid: Sequence[dict[str, Any]],
    base: RoundSettings,
    play: Callable[[int, RoundSettings], dict[int, list[UserResult]]],
) -> list[Row]:
    """Best first; of equals, the one that is earlier in the grid. play: (number in the grid, settings) -> results."""
    rows = []
    for number, changes in enumerate(grid):
        results = play(number, changed(base, changes))
        gains = user_aucs(results, "coda") - user_aucs(results, "cloud")
        rows.append(Row(changes, bootstrap(gains), float(np.mean(gains < -BEYOND))))
    return sorted(rows, key=lambda row: -row.score.mean)


def table(tuned: Tuned) -> Table:
    """One row a setting, best first."""
    shown = Table(
        title=Text(f"{tuned.protocol} on {tuned.dataset}, validation period: {tuned.users} devices"), box=SIMPLE_HEAD
    )
    for name in tuned.rows[0].changes:
        shown.add_column(name, justify="right")
    shown.add_column("coda minus cloud", justify="right", no_wrap=True)
    shown.add_column("worse", justify="right")
    for row in tuned.rows:
        low, high = row.score.ci95 or (row.score.mean, row.score.mean)
        score = f"{words.signed(row.score.mean)} [{words.signed(low)}, {words.signed(high)}]"
        shown.add_row(*(f"{value}" for value in row.changes.values()), score, words.percent(row.worse))
    return shown
