"""A data set: ordered events, vocabularies, and the account of what was read. Stored as Parquet and JSON."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from device_runtime.bundle import write_atomically
from device_runtime.errors import InputError, StoreError
from device_runtime.samples import Float32, Int32
from device_runtime.stream import Events

FORMAT = 1
CATEGORIES = 4
"""Categories kept per item: the rarest, which say most about it."""


class ReadReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What became of a table's rows. dropped: reason -> count; examples: reason -> the first few places ("line 7").
    short_negatives: negatives that could not be drawn because a user knows every item. duplicates: those of `dropped`
    that repeat user, item and timestamp. first, last: seconds. per_user: kept rows, "least", "median" and "most"."""

    source: str
    rows: int
    kept: int
    dropped: dict[str, int] = {}
    examples: dict[str, list[str]] = {}
    negatives: int = 0
    short_negatives: int = 0
    notes: list[str] = []
    duplicates: int = 0
    first: int = 0
    last: int = 0
    per_user: dict[str, float] = {}


class _Meta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    name: str
    positive_at: float | None
    categories: tuple[str, ...]
    report: ReadReport
    hashes: dict[str, str] = {}
    """File -> SHA-256. A save that was cut short leaves files of two data sets; their hashes tell."""


@dataclass(frozen=True)
class Dataset:
    """events: ordered by contributor (an index into `users`) and time; items are ids from 1 into `items`, 0 = padding;
    sampled negatives are among them, not observed. ratings: float32 aligned with events, NaN where there is none; None
    if the table has no ratings. users, items, titles, categories: external keys and names by id; items[0], titles[0]
    and categories[0] are "". item_categories: int32 [items, 4], 0 = none. positive_at: the least rating labelled 1."""

    name: str
    events: Events
    ratings: Float32 | None
    users: tuple[str, ...]
    items: tuple[str, ...]
    titles: tuple[str, ...]
    categories: tuple[str, ...]
    item_categories: Int32
    positive_at: float | None
    report: ReadReport

    def take(self, mask: npt.NDArray[np.bool_]) -> Dataset:
        """Only these events; users, items and categories keep their ids."""
        ratings = None if self.ratings is None else self.ratings[mask]
        return dataclasses.replace(self, events=self.events.take(mask), ratings=ratings)

    def save(self, folder: Path) -> None:
        """Write Parquet files and, when they are whole, the JSON that vouches for them by hash.

        Raises:
            StoreError: the disk refuses.
        """
        e = self.events
        columns = {
            "user": e.contributor, "item": e.item, "timestamp": e.timestamp, "label": e.label, "observed": e.observed,
        }  # fmt: skip
        if self.ratings is not None:
            columns["rating"] = self.ratings
        users = pa.table({"key": list(self.users)}, schema=pa.schema({"key": pa.string()}))
        items = items_as_table(self.items, self.titles, self.item_categories)
        parts = {"events.parquet": pa.table(columns), "users.parquet": users, "items.parquet": items}
        hashes = {name: write_table(folder / name, table) for name, table in parts.items()}
        meta = _Meta(FORMAT, self.name, self.positive_at, self.categories, self.report, hashes)
        write_atomically(folder / "dataset.json", msgspec.json.format(msgspec.json.encode(meta)))

    @staticmethod
    def load(folder: Path) -> Dataset:
        """Raises: InputError: not a prepared data set. StoreError: damaged, or of another format."""
        path = folder / "dataset.json"
        if not path.exists() and (folder / "streamed.json").exists():
            raise InputError(
                f"{folder} was prepared with --stream, for training: give the table itself to `coda data ingest "
                "--interactions`, or prepare it without --stream"
            )
        try:
            found = msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw]).get("format")
            if found is None or bytes(found) != str(FORMAT).encode():
                raise StoreError(f"{folder} is of another format; prepare it again with `coda data prepare`")
            meta = msgspec.json.decode(path.read_bytes(), type=_Meta)
            events, users, items = (
                read_checked(folder / f"{name}.parquet", meta.hashes) for name in ("events", "users", "items")
            )
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{folder} is not a prepared data set; make one with `coda data prepare`") from None
        except (OSError, pa.ArrowException, msgspec.DecodeError) as error:
            raise StoreError(f"the data set in {folder} is damaged: {error}; prepare it again") from None
        stream = Events(
            events["user"].to_numpy(),
            events["item"].to_numpy(),
            events["timestamp"].to_numpy(),
            events["label"].to_numpy(),
            np.asarray(events["observed"].to_numpy(zero_copy_only=False), bool),
        )
        categories = items["categories"].combine_chunks()
        return Dataset(
            meta.name,
            stream,
            events["rating"].to_numpy() if "rating" in events.column_names else None,
            tuple(users["key"].to_pylist()),
            tuple(items["key"].to_pylist()),
            tuple(items["title"].to_pylist()),
            meta.categories,
            np.asarray(categories.flatten()).reshape(-1, CATEGORIES).astype(np.int32),
            meta.positive_at,
            meta.report,
        )


def write_history(dataset: Dataset, events: Events, path: Path, ratings: Float32 | None = None) -> None:
    """One user's events as a device imports them: CSV of item_id, timestamp, label, observed and, if given, rating.

    ratings: float32 aligned with events, NaN where there is none.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["item_id", "timestamp", "label", "observed", *([] if ratings is None else ["rating"])])
    rows = zip(events.item, events.timestamp, events.label, events.observed, strict=True)
    for i, (item, at, label, seen) in enumerate(rows):
        row = [dataset.items[int(item)], int(at), _number(label), int(seen)]
        writer.writerow(row if ratings is None else [*row, _number(ratings[i])])
    write_atomically(path, text.getvalue().encode())


def _number(value: np.float32) -> str:
    return "" if np.isnan(value) else f"{float(value):.9g}"  # nine digits bring a float32 back exactly


def items_as_table(items: Sequence[str], titles: Sequence[str], item_categories: Int32) -> pa.Table:
    """A vocabulary of items as it is stored, by id."""
    categories = pa.FixedSizeListArray.from_arrays(pa.array(item_categories.reshape(-1), pa.int32()), CATEGORIES)
    keys, names = pa.array(items, pa.string()), pa.array(titles, pa.string())
    return pa.table({"key": keys, "title": names, "categories": categories})


def write_table(path: Path, table: pa.Table) -> str:
    """As Parquet, whole or not at all; gives its SHA-256. Raises: StoreError."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def read_checked(path: Path, hashes: Mapping[str, str]) -> pa.Table:
    """Raises: OSError, pa.ArrowException: not the file that these hashes, by name, vouch for."""
    data = path.read_bytes()
    if hashes and hashes.get(path.name) != hashlib.sha256(data).hexdigest():
        raise pa.ArrowInvalid(f"{path.name} is not the file that was saved with the others")
    return pq.read_table(pa.BufferReader(data))
