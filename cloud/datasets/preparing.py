"""Interactions of any size into a data set on disk, in memory that does not grow with them.

Rows are read once, block by block; items are numbered as they are met, users become a hash, and rows are put aside on
disk in buckets by that hash. Then some buckets at a time are sorted, freed of repetitions, given negatives if there are
no labels, and appended to the columns. Memory holds the vocabulary of items, a number for each contributor, and about
250,000 rows, or a 256th of all if that is more.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cloud.datasets.catalogue import listed_items, rarest_categories
from cloud.datasets.columnar import META, ColumnWriter, StreamedDataset, write_meta
from cloud.datasets.columns import INTERACTIONS, PLACE
from cloud.datasets.dataset import ReadReport
from cloud.datasets.lines import Dropped
from cloud.datasets.negatives import draw_negatives
from cloud.datasets.raw import Raw, items_table
from cloud.datasets.reading import DUPLICATE, EARLIEST, LATEST, LIKED, SCALE
from cloud.datasets.streams import TableFile, grouped, named, parsed, repeated, table_files
from cloud.locking import alone
from device_runtime.errors import InputError, StoreError
from device_runtime.samples import Float64, Int32, Int64
from device_runtime.stream import Events

Show = Callable[[str, int, int], None]
"""Called with what is being done, rows done, and rows there are (0 while nobody knows)."""
_BUCKETS = 256
_ROWS = 250_000
"""Rows that are sorted at once, about; a contributor of more is still taken whole."""
_READ = 1 << 16
"""Rows of Parquet that are read at once."""
_ROW = np.dtype([("user", "<u8"), ("time", "<i8"), ("item", "<i4"), ("label", "<f4"), ("order", "<i8")])


def prepare(
    where: str,
    out: Path,
    items: Path | None = None,
    *,
    positive_at: float | None = None,
    negatives: int = 1,
    seed: int = 0,
    name: str | None = None,
    show: Show = lambda what, done, total: None,
) -> StreamedDataset:
    """Make a data set of a Parquet or CSV table, of a folder of such, or of an fsspec URL of either.

    The arguments mean what they mean to `cloud.datasets.read`. What a run that was killed has left is made anew.

    Raises:
        InputError: a table cannot be used, or another preparation is running. EngineUnavailable: the package that a URL
        needs is not installed. StoreError: the disk refuses.
    """
    if negatives < 0 or seed < 0:
        raise InputError(f"negatives and seed must not be below 0; they are {negatives} and {seed}")
    if positive_at is not None and not np.isfinite(positive_at):
        raise InputError(f"the least rating that counts as a like must be a number, not {positive_at}")
    if items is not None and not items.exists():
        raise InputError(f"there is no {items}")
    found = table_files(where)
    work = out / "preparing"
    with alone(out, "preparation"):
        try:
            shutil.rmtree(work, ignore_errors=True)
            (work / "buckets").mkdir(parents=True)
            job = _Job(where, work, items, positive_at, show)
            for source in found:
                job.put_aside(source)
            job.judge()
            with ColumnWriter(work / "events") as writer:
                job.write(writer, negatives, seed)
                written = writer.finish()
            (out / META).unlink(missing_ok=True)
            shutil.rmtree(out / "events", ignore_errors=True)
            (work / "events").rename(out / "events")
            titles, categories, item_categories = job.vocabulary()
            write_meta(
                out,
                written,
                name=name or _stem(where),
                positive_at=job.positive_at,
                items=("", *job.ids),
                titles=titles,
                categories=categories,
                item_categories=item_categories,
                contributors=job.contributors,
                liked=job.liked,
                report=job.report(),
            )
            shutil.rmtree(work)
        except OSError as error:
            raise StoreError(
                f"cannot prepare a data set in {out}: {error.strerror}; make room and run it again"
            ) from None
    return StreamedDataset.open(out)


def _stem(where: str) -> str:
    return where.rstrip("/").rpartition("/")[2].split(".")[0] or "data"


@dataclass
class _Job:
    where: str
    folder: Path
    items: Path | None
    positive_at: float | None
    show: Show
    dropped: Dropped = field(default_factory=Dropped)
    notes: list[str] = field(default_factory=list)
    rows: int = 0
    kept: int = 0
    contributors: int = 0
    liked: float = 0.0
    drawn: int = 0
    short: int = 0

    def __post_init__(self) -> None:
        raw, places = Raw(pa.table({}), dropped=self.dropped), None
        if self.items is not None:
            places = items_table(self.items, raw)
        own, self.titles, self.texts, self.text_of = listed_items(places, self.dropped, "items row")
        self.notes += raw.notes
        self.ids = {key: number for number, key in enumerate(own.to_pylist(), 1)}
        self.own = len(self.ids)
        self.given: dict[str, int] = {}
        self.pairs: Int64 = np.zeros((0, 2), np.int64)
        self.labels = ""
        self.lowest, self.highest = np.inf, -np.inf
        self.first, self.last = LATEST, EARLIEST
        self.each: list[Int64] = []
        self.order = 0

    # -- reading ------------------------------------------------------------------------------------------------

    def put_aside(self, source: TableFile) -> None:
        """Raises: InputError: the table cannot be used. OSError: the disk is full."""
        with ExitStack() as stack:
            buckets = [stack.enter_context((self.folder / "buckets" / f"{i:03}").open("ab")) for i in range(_BUCKETS)]
            with named(source.name):
                stream = stack.enter_context(source.open())
                tables = parsed(source.name, stream, self.dropped, INTERACTIONS, _READ)
            while True:
                with named(source.name):
                    table = next(tables, None)
                    if table is None:
                        return
                    rows = self._rows(table, Path(source.name).name)
                bucket = (rows["user"] >> np.uint64(56)).astype(np.intp)
                by_bucket = np.argsort(bucket, kind="stable")
                edges = np.searchsorted(bucket[by_bucket], np.arange(_BUCKETS + 1))
                for i in np.unique(bucket).tolist():
                    buckets[i].write(rows[by_bucket[edges[i] : edges[i + 1]]].tobytes())
                self.show("read", self.rows, 0)

    def _rows(self, table: pa.Table, name: str) -> npt.NDArray[np.void]:
        places: Int64 = table[PLACE].to_numpy()
        self.rows += len(table)
        good = np.ones(len(table), bool)

        def drop(reason: str, wrong: npt.NDArray[np.bool_]) -> None:
            at = np.flatnonzero(wrong & good)
            self.dropped.add(reason, places[at], f"{name} row")
            good[at] = False

        users, items = (table[column].combine_chunks() for column in ("user_id", "item_id"))
        user, item = (pc.fill_null(c.indices, -1).to_numpy(zero_copy_only=False) for c in (users, items))
        drop("no user_id", user < 0)
        drop("no item_id", item < 0)
        time = table["timestamp"].to_numpy()
        finite = time[np.isfinite(time)]
        if len(finite) and np.median(finite) > 1e11:
            raise InputError("its timestamps look like milliseconds or finer; divide them to seconds")
        drop("timestamp is not a number", ~np.isfinite(time))
        drop("timestamp is not in seconds since 1970", (time < EARLIEST) | (time > LATEST))
        label = self._labels(table, drop)

        hashes = [hashlib.blake2b(key.encode(), digest_size=8).digest() for key in users.dictionary.to_pylist()]
        rows = np.zeros(int(good.sum()), _ROW)
        if len(rows):
            rows["user"] = np.frombuffer(b"".join(hashes), "<u8")[user[good]]
            rows["time"], rows["label"] = time[good].astype(np.int64), label[good]
            rows["item"] = self._numbered(items.dictionary, item[good])
            rows["order"] = np.arange(self.order, self.order + len(rows))
            self.order += len(rows)
            self.first, self.last = min(self.first, rows["time"].min()), max(self.last, rows["time"].max())
            if self.texts is None and "categories" in table.column_names:
                self._categorized(table["categories"].combine_chunks(), good, rows["item"])
        return rows

    def _numbered(self, keys: pa.Array, code: Int64) -> Int32:
        """Ids of items, new ones in the order in which they are met."""
        used, first = np.unique(code, return_index=True)
        met = used[np.argsort(first)]
        number = np.zeros(len(keys), np.int32)
        for at, key in zip(met.tolist(), keys.take(pa.array(met)).to_pylist(), strict=True):
            number[at] = self.ids.setdefault(key, len(self.ids) + 1)
        found: Int32 = number[code]
        return found

    def _categorized(self, column: pa.Array, good: npt.NDArray[np.bool_], item: Int32) -> None:
        code = pc.fill_null(column.indices, -1).to_numpy(zero_copy_only=False)[good]
        texts = np.array(
            [self.given.setdefault(text, len(self.given)) for text in column.dictionary.to_pylist()] or [0]
        )
        pairs = np.stack([item[code >= 0].astype(np.int64), texts[code[code >= 0]]], 1)
        self.pairs = np.unique(np.concatenate([self.pairs, pairs]), axis=0)

    def _labels(self, table: pa.Table, drop: Callable[[str, npt.NDArray[np.bool_]], None]) -> Float64:
        names = table.column_names
        kind = "label" if "label" in names and self.positive_at is None else "rating" if "rating" in names else "none"
        if self.positive_at is not None and kind != "rating":
            raise InputError("it has no ratings, so no rating can count as a like: leave out --positive-at")
        if self.labels not in ("", kind):
            raise InputError(f"its rows have {_SAID[kind]}, those of the tables before it {_SAID[self.labels]}")
        self.labels = kind
        if kind == "label":
            label: Float64 = table["label"].to_numpy()
            drop("label is not between 0 and 1", ~((label >= 0) & (label <= 1)))
            return label
        if kind == "rating":
            rating: Float64 = table["rating"].to_numpy()
            drop("rating is not a finite number", ~(np.abs(rating) <= np.finfo(np.float32).max))
            self.lowest = min(self.lowest, np.nanmin(rating, initial=np.inf))
            self.highest = max(self.highest, np.nanmax(rating, initial=-np.inf))
            least = LIKED if self.positive_at is None else self.positive_at
            return np.asarray(rating.astype(np.float32) >= least, np.float64)
        return np.ones(len(table))

    def judge(self) -> None:
        """Raises: InputError: what was read cannot be used."""
        if not self.order:
            counts = self.dropped.counts
            reasons = "; ".join(f"{count} times {reason}" for reason, count in counts.items()) or "it is empty"
            raise InputError(f"{self.where} has no usable row: {reasons}")
        if self.labels == "rating":
            if self.positive_at is None:
                if self.highest != SCALE or self.lowest < 0:
                    raise InputError(
                        f"the ratings of {self.where} go from {self.lowest:g} to {self.highest:g}, no known scale; "
                        "say with --positive-at which rating counts as a like"
                    )
                self.positive_at = LIKED
            self.notes.append(f"a rating of {self.positive_at:g} or more is labelled 1")

    # -- writing ------------------------------------------------------------------------------------------------

    def write(self, writer: ColumnWriter, negatives: int, seed: int) -> None:
        """Raises: InputError: of one class or user only. OSError."""
        paths = [self.folder / "buckets" / f"{i:03}" for i in range(_BUCKETS)]
        sizes = [path.stat().st_size // _ROW.itemsize for path in paths]
        done, unlabelled = 0, self.labels == "none"
        if unlabelled:
            self.notes.append(f"no rating or label: every row is a positive, with {negatives} uniform negatives each")
        for some in grouped(sizes, _ROWS):
            rows = np.concatenate([np.fromfile(paths[i], _ROW) for i in some])
            done += len(rows)
            rows = rows[np.lexsort((rows["order"], rows["time"], rows["user"]))]
            again = repeated(rows["user"], rows["item"], rows["time"])
            self.dropped.add(DUPLICATE, rows["order"][again] + 1, "usable row")
            rows = rows[~again]
            new = np.concatenate(([True], rows["user"][1:] != rows["user"][:-1]))
            contributor = (np.cumsum(new) - 1).astype(np.int32)
            events = Events(
                contributor, rows["item"].copy(), rows["time"].copy(), rows["label"].copy(), np.ones(len(rows), bool)
            )
            if unlabelled:
                events = self._with_negatives(events, negatives, np.random.default_rng([seed, some[0]]))
            self.each.append(np.bincount(events.contributor))
            self.kept += len(events)
            self.liked += float(events.label.sum(dtype=np.float64))
            numbered = (events.contributor + self.contributors).astype(np.int32)
            writer.append(Events(numbered, events.item, events.timestamp, events.label, events.observed))
            self.contributors += int(new.sum())
            for i in some:
                paths[i].unlink()
            self.show("sort", done, sum(sizes))
        if self.contributors < 2:
            raise InputError(f"{self.where} has {self.contributors} user; matching takes at least two")
        if self.liked in (0.0, float(self.kept)):
            raise InputError(f"all rows of {self.where} have the same label: nothing can be learned from one class")

    def _with_negatives(self, events: Events, negatives: int, rng: np.random.Generator) -> Events:
        other, at, short = draw_negatives(events.contributor, events.item, len(self.ids) + 1, negatives, rng)
        self.drawn += len(other)
        self.short += short
        return Events(
            np.concatenate([events.contributor, events.contributor[at]]),
            np.concatenate([events.item, other]),
            np.concatenate([events.timestamp, events.timestamp[at]]),
            np.concatenate([events.label, np.zeros(len(other), np.float32)]),
            np.concatenate([events.observed, np.zeros(len(other), bool)]),
        ).ordered()

    def vocabulary(self) -> tuple[tuple[str, ...], tuple[str, ...], Int32]:
        """Titles, categories, item_categories; as of a `Dataset`."""
        count = len(self.ids) + 1
        texts, pairs = self.texts, np.stack([np.arange(1, self.own + 1), self.text_of])[:, self.text_of >= 0]
        if texts is None:
            texts, pairs = pa.array(list(self.given), pa.string()), self.pairs.T
        categories, item_categories = rarest_categories(pairs, texts, count)
        return ("", *self.titles, *[""] * (count - 1 - self.own)), ("", *categories), item_categories

    def report(self) -> ReadReport:
        each = np.concatenate(self.each)
        return ReadReport(
            self.where,
            self.rows,
            self.kept,
            dict(self.dropped.counts),
            dict(self.dropped.examples),
            self.drawn,
            self.short,
            self.notes,
            duplicates=self.dropped.counts.get(DUPLICATE, 0),
            first=int(self.first),
            last=int(self.last),
            per_user={"least": float(each.min()), "median": float(np.median(each)), "most": float(each.max())},
        )


_SAID = {"label": "labels", "rating": "ratings", "none": "neither labels nor ratings"}
