"""From raw columns to a data set: bad rows counted, labels settled, negatives drawn, vocabularies numbered."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cloud.datasets import raw
from cloud.datasets.dataset import CATEGORIES, Dataset, ReadReport
from cloud.datasets.raw import Raw, as_text
from device_runtime.errors import InputError
from device_runtime.samples import Float32, Int32, Int64
from device_runtime.stream import Events

READERS: dict[str, Callable[[Path, Path | None], Raw]] = {
    "table": raw.read_table,
    "movielens": raw.read_movielens,
    "amazon": raw.read_amazon,
    "taobao": raw.read_taobao,
}
EXAMPLE = "ml-latest-small-2018"
_EARLIEST, _LATEST = 1, 4_102_444_800
"""Timestamps that are believed, in seconds since 1970: up to the year 2100."""
_PLACES = 5
_NO_CATEGORY = ("", "(no genres listed)", "nan", "None")


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

    reader: one of `READERS`, or "auto" to go by the file's name. positive_at: the least rating that is labelled 1; 4 on
    a scale up to 5. negatives: drawn per positive where the table has neither ratings nor labels.

    Raises:
        InputError: the table cannot be used; says why.
    """
    if not interactions.exists():
        raise InputError(f"there is no {interactions}")
    kind = raw.guess(interactions) if reader == "auto" else reader
    if kind not in READERS:
        raise InputError(f"no reader is called {kind!r}; there are {', '.join(READERS)}")
    found = READERS[kind](interactions, items)
    if name is None:
        generic = interactions.stem in ("interactions", "ratings", "reviews")
        name = interactions.resolve().parent.name if generic else interactions.stem
    return _Cleaner(found, str(interactions)).dataset(name, positive_at, negatives, np.random.default_rng(seed))


class _Cleaner:
    """Goes through a raw table once; `good` shrinks as reasons to drop rows are found."""

    def __init__(self, source: Raw, path: str) -> None:
        self.source, self.path = source, path
        self.table = source.interactions
        self.good: npt.NDArray[np.bool_] = np.ones(len(self.table), bool)
        self.dropped = {reason: len(places) for reason, places in source.bad.items()}
        self.examples = {reason: places[:_PLACES] for reason, places in source.bad.items()}
        self.notes = list(source.notes)

    def dataset(self, name: str, positive_at: float | None, negatives: int, rng: np.random.Generator) -> Dataset:
        users, items = as_text(self.table["user_id"]), as_text(self.table["item_id"])
        self._drop("no user_id", _missing(users))
        self._drop("no item_id", _missing(items))
        timestamp = self._timestamps()
        rating, label = self._numbers("rating"), self._numbers("label")
        if label is not None:
            self._drop("label is not between 0 and 1", ~((label >= 0) & (label <= 1)))
        elif rating is not None:
            self._drop("rating is not a finite number", ~np.isfinite(rating))
        self._refuse_if_empty()
        good = self.good
        users, items = users.filter(pa.array(good)), items.filter(pa.array(good))
        timestamp = timestamp[good]
        keys, titles, names, item_categories = _catalogue(self.source.items, items)
        user_of = pc.dictionary_encode(users)
        contributor = user_of.indices.to_numpy().astype(np.int32)
        item = pc.index_in(items, pa.array(keys)).to_numpy(zero_copy_only=False).astype(np.int32)
        first = self._first_of_duplicates(contributor, item, timestamp)
        contributor, item, timestamp = contributor[first], item[first], timestamp[first]
        ratings = None if rating is None else rating[good][first].astype(np.float32)
        if len(user_of.dictionary) < 2:
            raise InputError(f"{self.path} has {len(user_of.dictionary)} user; matching takes at least two")

        drawn = short = 0
        observed = np.ones(len(item), bool)
        if label is not None:
            labels = label[good][first].astype(np.float32)
            positive_at = None
        elif ratings is not None:
            positive_at = self._threshold(ratings, positive_at)
            labels = (ratings >= positive_at).astype(np.float32)
        else:
            self.notes.append(f"no rating or label: every row is a positive, with {negatives} uniform negatives each")
            other, at, short = draw_negatives(contributor, item, len(keys), negatives, rng)
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
        events = Events(contributor, item, timestamp, labels, observed).take(order)
        return Dataset(
            name,
            events,
            None if ratings is None else _aligned(ratings, len(events))[order],
            tuple(user_of.dictionary.to_pylist()),
            keys,
            titles,
            names,
            item_categories,
            positive_at,
            ReadReport(
                self.path, len(self.table) + sum(map(len, self.source.bad.values())), len(first), self.dropped,
                self.examples, drawn, short, self.notes,
            ),
        )  # fmt: skip

    def _timestamps(self) -> Int64:
        found = self._numbers("timestamp")
        assert found is not None
        seconds = found[np.isfinite(found)]
        if len(seconds) and np.median(seconds) > 1e11:
            raise InputError(f"the timestamps of {self.path} look like milliseconds or finer; divide them to seconds")
        self._drop("timestamp is not a number", ~np.isfinite(found))
        with np.errstate(invalid="ignore"):
            self._drop("timestamp is not in seconds since 1970", (found < _EARLIEST) | (found > _LATEST))
        return np.where(np.isfinite(found), found, 0).clip(0, _LATEST).astype(np.int64)

    def _numbers(self, name: str) -> npt.NDArray[np.float64] | None:
        if name not in self.table.column_names:
            return None
        column = self.table[name]
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            text = pc.utf8_trim_whitespace(column)
            plain = pc.match_substring_regex(text, r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
            column = pc.cast(pc.if_else(pc.fill_null(plain, False), text, None), pa.float64())
        found: npt.NDArray[np.float64] = pc.cast(column, pa.float64()).to_numpy()
        return np.array(found)

    def _drop(self, reason: str, wrong: npt.NDArray[np.bool_]) -> None:
        at = np.flatnonzero(wrong & self.good)
        if len(at):
            lines = self.table["line"].take(pa.array(at[:_PLACES])).to_pylist()
            self.dropped[reason] = self.dropped.get(reason, 0) + len(at)
            self.examples[reason] = [f"line {line}" for line in lines]
            self.good[at] = False

    def _refuse_if_empty(self) -> None:
        if not self.good.any():
            reasons = "; ".join(f"{count} times {reason}" for reason, count in self.dropped.items()) or "it is empty"
            raise InputError(f"{self.path} has no usable row: {reasons}")

    def _first_of_duplicates(self, user: Int32, item: Int32, timestamp: Int64) -> npt.NDArray[np.intp]:
        _, first = np.unique(np.stack([user, item, timestamp]), axis=1, return_index=True)
        if len(first) < len(user):
            self.dropped["the same user, item and timestamp again"] = len(user) - len(first)
        return np.sort(first)

    def _threshold(self, rating: Float32, positive_at: float | None) -> float:
        if positive_at is None:
            if rating.max() != 5:
                raise InputError(
                    f"the ratings of {self.path} go from {rating.min():g} to {rating.max():g}, no known scale; "
                    "say with --positive-at which rating counts as a like"
                )
            positive_at = 4.0
        self.notes.append(f"a rating of {positive_at:g} or more is labelled 1")
        return positive_at


def draw_negatives(
    contributor: Int32, item: Int32, items: int, each: int, rng: np.random.Generator
) -> tuple[Int32, npt.NDArray[np.intp], int]:
    """Uniform items that a user never had an event of: (items, positions of the positives they belong to, how many
    could not be found).

    items: rows of the vocabulary, padding included.
    """
    known = np.unique(contributor.astype(np.int64) * items + item)
    at = np.repeat(np.arange(len(item)), each)
    found = np.zeros(len(at), np.int64)
    open_ = np.arange(len(at))
    for _ in range(50):
        if not len(open_):
            break
        drawn = rng.integers(1, items, len(open_)) if items > 1 else np.zeros(len(open_), np.int64)
        pair = contributor[at[open_]].astype(np.int64) * items + drawn
        where = np.minimum(np.searchsorted(known, pair), len(known) - 1)
        new = known[where] != pair
        found[open_[new]] = drawn[new]
        open_ = open_[~new]
    kept = found > 0
    return found[kept].astype(np.int32), at[kept], int((~kept).sum())


def _catalogue(
    table: pa.Table | None, seen: pa.Array
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], Int32]:
    """Keys (id 0 is padding), titles, categories and each item's categories; items of the table come first."""
    keys: list[str] = [""]
    titles: list[str] = [""]
    wanted: list[list[str]] = [[]]
    if table is not None:
        own = as_text(table["item_id"])
        known = set()
        title = table["title"].to_pylist() if "title" in table.column_names else [""] * len(own)
        category = table["categories"].to_pylist() if "categories" in table.column_names else [None] * len(own)
        for key, name, labels in zip(own.to_pylist(), title, category, strict=True):
            if key is not None and key not in known:
                known.add(key)
                keys.append(key)
                titles.append(str(name or ""))
                wanted.append(_labels(labels))
    others = pc.unique(seen).to_pylist()
    have = set(keys)
    new = [key for key in others if key not in have]
    keys += new
    titles += [""] * len(new)
    wanted += [[]] * len(new)
    counts: dict[str, int] = {}
    for labels in wanted:
        for label in labels:
            counts[label] = counts.get(label, 0) + 1
    names = ("", *sorted(counts))
    number = {name: i for i, name in enumerate(names)}
    item_categories = np.zeros((len(keys), CATEGORIES), np.int32)
    for i, labels in enumerate(wanted):
        rarest = sorted(labels, key=lambda label: (counts[label], label))[:CATEGORIES]
        item_categories[i, : len(rarest)] = [number[label] for label in rarest]
    return tuple(keys), tuple(titles), names, item_categories


def _labels(value: object) -> list[str]:
    parts = [str(part) for part in value] if isinstance(value, list) else str("" if value is None else value).split("|")
    return list(dict.fromkeys(part.strip() for part in parts if part.strip() not in _NO_CATEGORY))


def _aligned(ratings: Float32, count: int) -> Float32:
    """NaN for the negatives that follow the rated events."""
    return np.concatenate([ratings, np.full(count - len(ratings), np.nan, np.float32)])


def _missing(text: pa.Array) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = pc.is_null(text).to_numpy(zero_copy_only=False)
    return found
