"""A user's history from a file: CSV with a header, or JSON lines. Bad rows are counted, with line and reason."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from device_runtime.errors import InputError
from device_runtime.store import Event

_LATEST = 1 << 33
"""Seconds since 1970, in the year 2242: later timestamps are most likely milliseconds."""


@dataclass
class History:
    """events: the good rows, in the file's order. bad: reason -> count; examples: "line 7: reason", the first few."""

    events: list[Event] = field(default_factory=list)
    bad: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)


def read_history(path: Path) -> History:
    """Read `item_id`, `timestamp` (seconds), `label` (0 to 1) or `rating` or both, and optionally `observed`.

    Raises:
        InputError: the file cannot be read, or lacks a column; nothing of it is used.
    """
    history = History()
    for batch in batches(path, history):
        history.events += batch
    return history


def batches(path: Path, history: History, size: int = 10_000) -> Iterator[list[Event]]:
    """The good rows of a file, as for `read_history`, some at a time: a history of millions need not be in memory.

    history: takes the count of bad rows; its events stay empty.

    Raises:
        InputError: the file lacks a column; or it cannot be read (on), and the batches before that were good.
    """
    batch: list[Event] = []
    try:
        for line, row in _rows(path):
            try:
                batch.append(_event(row))
            except ValueError as reason:
                history.bad[str(reason)] += 1
                if len(history.examples) < 5:
                    history.examples.append(f"line {line}: {reason}")
            if len(batch) == size:
                yield batch
                batch = []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    yield batch


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        if path.suffix in (".jsonl", ".ndjson"):
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                yield number, row if isinstance(row, dict) else {"": "not a JSON object"}
            return
        reader = csv.DictReader(file)
        columns = set(reader.fieldnames or ())
        if not {"item_id", "timestamp"} <= columns or not columns & {"label", "rating"}:
            raise InputError(
                f"{path} needs a header with item_id, timestamp and label or rating; "
                f"it has {', '.join(sorted(columns)) or 'none'}"
            )
        for row in reader:
            if None in row or None in row.values():
                yield reader.line_num, {"": "another number of columns than the header"}
            else:
                yield reader.line_num, dict(row)


def _event(row: Mapping[str, object]) -> Event:
    """Raises: ValueError: says what is wrong."""
    if "" in row:
        raise ValueError(row[""])
    item = str(row.get("item_id", "")).strip()
    if not item:
        raise ValueError("no item_id")
    timestamp = _number(row, "timestamp")
    if timestamp is None or not 0 < timestamp < _LATEST:
        raise ValueError("timestamp is not in seconds since 1970")
    label, rating = _number(row, "label"), _number(row, "rating")
    if label is None and rating is None:
        raise ValueError("neither label nor rating")
    if label is not None and not 0 <= label <= 1:
        raise ValueError("label is not between 0 and 1")
    observed = str(row.get("observed", "")).strip().lower() not in ("0", "false")
    return Event(item, int(timestamp), label, rating, observed)


def _number(row: Mapping[str, object], name: str) -> float | None:
    text = str(row.get(name, "") if row.get(name) is not None else "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name} is not a number") from None
    if not math.isfinite(value):
        raise ValueError(f"{name} is not finite")
    return value
