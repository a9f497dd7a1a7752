"""From raw columns to a data set: bad rows counted, labels settled, negatives drawn, vocabularies numbered."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cloud.datasets import raw
from cloud.datasets.catalogue import catalogue, codes, values
from cloud.datasets.columns import PLACE
from cloud.datasets.dataset import Dataset, ReadReport
from cloud.datasets.negatives import draw_negatives
from cloud.datasets.raw import Raw
from device_runtime.errors import InputError
from device_runtime.samples import Float32, Int32, Int64
from device_runtime.stream import Events

__all__ = ["EXAMPLE", "READERS", "draw_negatives", "example", "read"]

READERS: dict[str, Callable[[Path, Path | None], Raw]] = {
    "table": raw.read_table,
    "movielens": raw.read_movielens,
    "amazon": raw.read_amazon,
    "taobao": raw.read_taobao,
}
EXAMPLE = "ml-latest-small-2018"
DUPLICATE = "the same user, item and timestamp again"
EARLIEST, LATEST = 1, 4_102_444_800
"""Timestamps that are believed, in seconds since 1970: up to the year 2100."""
SCALE = 5
LIKED = 4.0
"""From 4 on a scale up to 5, as is the custom with these data sets."""


def example() -> Dataset:
    """MovieLens latest-small (2018), which comes with CoDA. Its terms are in the PROVENANCE.md beside it."""
    with as_file(files("cloud") / "example_data" / EXAMPLE) as folder:
        return read(folder / "interactions.parquet", folder / "items.parquet", name=EXAMPLE)


def read(
    interactions: Path,
    items: Path | None = None,
    *,
    reader: str = "auto",
    positive_at: float | None = None,
    negatives: int = 1,
    seed: int = 0,
    name: str | None = None,
) -> Dataset:
    """Read a table of interactions, and optionally one of items.

    reader: one of `READERS`, or "auto" to go by the file's name and first line. positive_at: the least rating that is
    labelled 1; 4 on a scale up to 5; given beside a label column, the ratings decide. negatives: drawn per positive
    where the table has neither ratings nor labels.

    Raises:
        InputError: the table cannot be used; says why.
    """
    for path in (interactions, items):
        if path is not None and not path.exists():
            raise InputError(f"there is no {path}")
    if negatives < 0 or seed < 0:
        raise InputError(f"negatives and seed must not be below 0; they are {negatives} and {seed}")
    if positive_at is not None and not np.isfinite(positive_at):
        raise InputError(f"the least rating that counts as a like must be a number, not {positive_at}")
    kind = raw.guess(interactions) if reader == "auto" else reader
    if kind not in READERS:
        raise InputError(f"no reader is called {kind!r}; there are {', '.join(READERS)}")
    found = READERS[kind](interactions, items)
    cleaner = _Cleaner(found, str(interactions))
    return cleaner.dataset(name or _named(interactions), positive_at, negatives, np.random.default_rng(seed))


def _named(path: Path) -> str:
    stem = path.resolve().name.split(".")[0] if path.is_file() else path.resolve().name
    return path.resolve().parent.name if stem in ("interactions", "ratings", "reviews", "u") else stem


class _Cleaner:
    """Goes through a raw table once; `good` shrinks as reasons to drop rows are found."""

    def __init__(self, source: Raw, path: str) -> None:
        self.source, self.path = source, path
        self.table = source.interactions
        self.places: Int64 = self.table[PLACE].to_numpy()
        self.good: npt.NDArray[np.bool_] = np.ones(len(self.table), bool)
        # rows that could not be split are not in the table; lines of an items file are no rows of it
        split = sum(n for reason, n in source.dropped.counts.items() if not reason.startswith("items: "))
        self.rows = len(self.table) + split
        self.notes = list(source.notes)

    def dataset(self, name: str, positive_at: float | None, negatives: int, rng: np.random.Generator) -> Dataset:
        user, known_item = codes(self.table["user_id"]), codes(self.table["item_id"])
        self._drop("no user_id", user < 0)
        self._drop("no item_id", known_item < 0)
        timestamp = self._timestamps()
        rating, label = self._column("rating"), self._column("label")
        if positive_at is not None:
            if rating is None:
                raise InputError(f"{self.path} has no ratings, so no rating can count as a like: leave out positive_at")
            label = None
        if label is not None:
            self._drop("label is not between 0 and 1", ~((label >= 0) & (label <= 1)))
        if rating is not None:
            finite = np.abs(rating) <= np.finfo(np.float32).max
            self._drop("rating is not a finite number", ~(finite if label is None else finite | np.isnan(rating)))
        self._refuse_if_empty()
        self._drop(DUPLICATE, _repeated(user, known_item, timestamp, self.good))

        good = self.good
        catalog = catalogue(self.source.items, self.table, good, self.source.dropped, self.source.unit)
        item = catalog.id_of[known_item[good]]
        contributor, users = _numbered(user[good], values(self.table["user_id"]))
        if len(users) < 2:
            raise InputError(f"{self.path} has {len(users)} user; matching takes at least two")
        timestamp = timestamp[good]
        ratings = None if rating is None else rating[good].astype(np.float32)
        drawn = short = 0
        observed = np.ones(len(item), bool)
        if label is not None:
            labels = label[good].astype(np.float32)
        elif ratings is not None:
            positive_at = self._threshold(ratings, positive_at)
            labels = (ratings >= positive_at).astype(np.float32)
        else:
            self.notes.append(f"no rating or label: every row is a positive, with {negatives} uniform negatives each")
            other, at, short = draw_negatives(contributor, item, len(catalog.keys), negatives, rng)
            drawn = len(other)
            labels = np.concatenate([np.ones(len(item)), np.zeros(drawn)]).astype(np.float32)
            observed = np.concatenate([observed, np.zeros(drawn, bool)])
            contributor = np.concatenate([contributor, contributor[at]])
            timestamp = np.concatenate([timestamp, timestamp[at]])
            item = np.concatenate([item, other])
        if labels.min() == labels.max():
            raise InputError(
                f"all rows of {self.path} have the label {labels[0]:g}: nothing can be learned from one class"
            )
        order = np.lexsort((timestamp, contributor))
        return Dataset(
            name,
            Events(contributor, item, timestamp, labels, observed).take(order),
            None if ratings is None else ratings[order],
            users,
            catalog.keys,
            catalog.titles,
            catalog.categories,
            catalog.item_categories,
            positive_at,
            self._report(contributor[: int(good.sum())], timestamp, drawn, short),
        )

    def _report(self, contributor: Int32, timestamp: Int64, drawn: int, short: int) -> ReadReport:
        each = np.bincount(contributor)
        dropped = self.source.dropped
        return ReadReport(
            self.path,
            self.rows,
            len(contributor),
            dict(dropped.counts),
            dict(dropped.examples),
            drawn,
            short,
            self.notes,
            duplicates=dropped.counts.get(DUPLICATE, 0),
            first=int(timestamp.min()),
            last=int(timestamp.max()),
            per_user={"least": float(each.min()), "median": float(np.median(each)), "most": float(each.max())},
        )

    def _timestamps(self) -> Int64:
        found = self._column("timestamp")
        assert found is not None
        seconds = found[np.isfinite(found)]
        if len(seconds) and np.median(seconds) > 1e11:
            raise InputError(f"the timestamps of {self.path} look like milliseconds or finer; divide them to seconds")
        self._drop("timestamp is not a number", ~np.isfinite(found))
        self._drop("timestamp is not in seconds since 1970", (found < EARLIEST) | (found > LATEST))
        return np.where(np.isfinite(found), found, 0).clip(0, LATEST).astype(np.int64)

    def _column(self, name: str) -> npt.NDArray[np.float64] | None:
        return self.table[name].to_numpy() if name in self.table.column_names else None

    def _drop(self, reason: str, wrong: npt.NDArray[np.bool_]) -> None:
        at = np.flatnonzero(wrong & self.good)
        self.source.dropped.add(reason, self.places[at], self.source.unit)
        self.good[at] = False

    def _refuse_if_empty(self) -> None:
        if not self.good.any():
            counts = self.source.dropped.counts
            reasons = "; ".join(f"{count} times {reason}" for reason, count in counts.items()) or "it is empty"
            raise InputError(f"{self.path} has no usable row: {reasons}")

    def _threshold(self, rating: Float32, positive_at: float | None) -> float:
        if positive_at is None:
            if rating.max() != SCALE or rating.min() < 0:
                raise InputError(
                    f"the ratings of {self.path} go from {rating.min():g} to {rating.max():g}, no known scale; "
                    "say with --positive-at which rating counts as a like"
                )
            positive_at = LIKED
        self.notes.append(f"a rating of {positive_at:g} or more is labelled 1")
        return positive_at


def _repeated(user: Int64, item: Int64, timestamp: Int64, good: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Good rows that repeat an earlier one. bool [n]"""
    at = np.flatnonzero(good)
    order = at[np.lexsort((timestamp[at], item[at], user[at]))]  # stable, so the first of equals stays first
    before, after = order[:-1], order[1:]
    same = (user[before] == user[after]) & (item[before] == item[after]) & (timestamp[before] == timestamp[after])
    repeated = np.zeros(len(good), bool)
    repeated[after[same]] = True
    return repeated


def _numbered(code: Int64, keys: pa.Array) -> tuple[Int32, tuple[str, ...]]:
    """Codes renumbered from 0 over those in use, and their keys."""
    used = np.zeros(len(keys), bool)
    used[code] = True
    return (np.cumsum(used) - 1)[code].astype(np.int32), tuple(keys.filter(pa.array(used)).to_pylist())
