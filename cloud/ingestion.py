"""Interactions of any size into the pool, in bounded memory, each row once.

Rows are read block by block, their users replaced by pseudonyms, and put aside on disk in 256 buckets by pseudonym.
Then some buckets at a time are sorted, so that a contributor's events lie together, made into samples and embedded.
What is in the pool of a file is counted by the pool itself, in the step that adds it: a run that was killed goes on
where it ended, and a file is known again by its content, whatever it is called. A file that joins a folder gets
histories from the others there.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cloud.datasets.columns import PLACE
from cloud.datasets.lines import Dropped
from cloud.datasets.streams import TableFile, grouped, named, parsed, repeated, table_files
from cloud.encoding import Encoder
from cloud.home import SEGMENT, ServerHome
from cloud.pool import Part, Pool
from device_runtime.errors import InputError, StoreError
from device_runtime.samples import Int64
from device_runtime.stream import Events, samples

Show = Callable[[str, int, int], None]
_WANTED = ("user_id", "item_id", "timestamp", "rating", "label")
_BUCKETS = 256
_ROWS = 1_000_000
"""Rows that are sorted at once, about; a contributor of more is still taken whole."""
_EARLIEST, _LATEST = 1, 4_102_444_800
_LIKED = 4.0
_SCALE = 5.0
_ROW = np.dtype(
    [("token", "<u8"), ("time", "<i8"), ("item", "<i4"), ("label", "<f4"), ("file", "<i4"), ("order", "<i8")]
)


@dataclass
class Ingested:
    """rows: read. added: to the pool now. before: that were in the pool already. dropped: by reason, with places."""

    rows: int = 0
    added: int = 0
    before: int = 0
    dropped: Dropped = field(default_factory=Dropped)


def ingest_tables(
    home: ServerHome,
    where: str,
    positive_at: float | None = None,
    show: Show = lambda stage, done, total: None,
    version: int | None = None,
) -> Ingested:
    """Add the interactions of a Parquet or CSV file, of a folder of such, or of an fsspec URL of either.

    A row has user_id, item_id, timestamp and a label or a rating. positive_at: the least rating that counts as a like;
    4 on a scale up to 5. version: of the bundle whose encoder embeds them; None: the current one.

    Raises:
        InputError: a table cannot be used, there is no release, or another ingestion is running.
        EngineUnavailable: the package that a URL needs is not installed. StoreError: the disk refuses; what was added
        stays.
    """
    _, manifest = home.release(version)
    encoder, pool = Encoder(manifest, home.blobs), home.pool(manifest)
    done = Ingested()
    with _workspace(home.path / "ingesting") as folder:
        reader = _Reader(home, encoder, positive_at, folder, done, show)
        files = [reader.spill(number, source) for number, source in enumerate(table_files(where))]
        _add(pool, encoder, folder, files, done, show)
    return done


class _Reader:
    """Reads tables, and puts their rows aside by bucket."""

    def __init__(
        self, home: ServerHome, encoder: Encoder, positive_at: float | None, folder: Path, done: Ingested, show: Show
    ) -> None:
        self.home, self.positive_at, self.folder, self.done, self.show = home, positive_at, folder, done, show
        keys = encoder.keys()
        self.keys, self.ids = pa.array(keys, pa.string()), np.array(list(keys.values()), np.int32)

    def spill(self, number: int, source: TableFile) -> str:
        """Returns what the file is known by: a hash of what was read."""
        digest, order = hashlib.sha256(), 0
        with named(source.name), source.open() as stream, ExitStack() as stack:
            buckets = [stack.enter_context((self.folder / f"{i:03}").open("ab")) for i in range(_BUCKETS)]
            for table in parsed(source.name, stream, self.done.dropped, _WANTED):
                rows = self._rows(table, source.name)
                rows["file"], rows["order"] = number, np.arange(order, order + len(rows))
                order += len(rows)
                for name in ("token", "time", "item", "label"):
                    digest.update(np.ascontiguousarray(rows[name]).tobytes())
                bucket = (rows["token"] >> np.uint64(56)).astype(np.intp)
                by_bucket = np.argsort(bucket, kind="stable")
                edges = np.searchsorted(bucket[by_bucket], np.arange(_BUCKETS + 1))
                for i in np.unique(bucket).tolist():
                    buckets[i].write(rows[by_bucket[edges[i] : edges[i + 1]]].tobytes())
                self.show(f"read {Path(source.name).name}", self.done.rows, 0)
        return digest.hexdigest()

    def _rows(self, table: pa.Table, name: str) -> npt.NDArray[np.void]:
        places: Int64 = table[PLACE].to_numpy()
        self.done.rows += len(table)
        good = np.ones(len(table), bool)

        def drop(reason: str, wrong: npt.NDArray[np.bool_]) -> None:
            at = np.flatnonzero(wrong & good)
            self.done.dropped.add(reason, places[at], f"{Path(name).name} row")
            good[at] = False

        users, items = (table[column].combine_chunks() for column in ("user_id", "item_id"))
        drop("no user_id", users.indices.is_null().to_numpy(zero_copy_only=False))
        drop("no item_id", items.indices.is_null().to_numpy(zero_copy_only=False))
        known = pc.fill_null(pc.index_in(items.dictionary, value_set=self.keys), -1).to_numpy(zero_copy_only=False)
        item = np.append(known, -1)[pc.fill_null(items.indices, len(known)).to_numpy(zero_copy_only=False)]
        drop("an item that the released model does not know", item < 0)
        time = table["timestamp"].to_numpy()
        drop("timestamp is missing, or not in seconds", ~((time >= _EARLIEST) & (time < _LATEST)))
        label = self._labels(table, name, drop)
        tokens = [self.home.contributor(f"user:{key}") for key in users.dictionary.to_pylist()]
        rows = np.zeros(int(good.sum()), _ROW)
        rows["token"] = np.array([*tokens, 0], np.uint64)[
            pc.fill_null(users.indices, len(tokens)).to_numpy(zero_copy_only=False)[good]
        ]
        rows["time"], rows["label"] = time[good].astype(np.int64), label[good]
        rows["item"] = self.ids[item[good]]
        return rows

    def _labels(
        self, table: pa.Table, name: str, drop: Callable[[str, npt.NDArray[np.bool_]], None]
    ) -> npt.NDArray[np.float32]:
        names = table.column_names
        if "label" in names and self.positive_at is None:
            label = table["label"].to_numpy()
            drop("label is not between 0 and 1", ~((label >= 0) & (label <= 1)))
            return np.asarray(label, np.float32)
        if "rating" not in names:
            raise InputError(
                "it has neither labels nor ratings, and negatives are drawn over a whole data set: use "
                "`coda data prepare`, then `coda data ingest --data`"
                if self.positive_at is None
                else "it has no ratings, so no rating can count as a like: leave out --positive-at"
            )
        rating = table["rating"].to_numpy()
        drop("rating is not a finite number", ~np.isfinite(rating))
        if self.positive_at is None and (np.nanmax(rating, initial=0) > _SCALE or np.nanmin(rating, initial=0) < 0):
            raise InputError("its ratings are on no known scale; say with --positive-at which counts as a like")
        return np.asarray(rating >= (_LIKED if self.positive_at is None else self.positive_at), np.float32)


def _add(pool: Pool, encoder: Encoder, folder: Path, files: list[str], done: Ingested, show: Show) -> None:
    sizes = [(folder / f"{i:03}").stat().st_size // _ROW.itemsize for i in range(_BUCKETS)]
    total, passed = sum(sizes), 0
    marks = [pool.ingested(name) for name in files]
    seen = [0] * len(files)  # rows of each file in the buckets so far: the pool counts in this order too
    for some in grouped(sizes, _ROWS):
        rows = np.concatenate([np.fromfile(folder / f"{i:03}", _ROW) for i in some])
        rows = rows[np.lexsort((rows["order"], rows["file"], rows["time"], rows["token"]))]
        token, item, time = rows["token"], rows["item"], rows["time"]
        new = np.concatenate(([True], token[1:] != token[:-1]))
        contributor = (np.cumsum(new) - 1).astype(np.int32)
        ordered = Events(contributor, np.ascontiguousarray(item), time, rows["label"], np.ones(len(rows), bool))
        again = repeated(token, item, time)
        done.dropped.add("the same user, item and timestamp again", rows["order"][again] + 1, "row")
        everything = samples(ordered, pool.schema)
        for number, name in enumerate(files):
            mine = np.flatnonzero(rows["file"] == number)
            if files.index(name) < number:  # the same table twice
                done.before += len(mine)
                continue
            skip = min(max(marks[number] - seen[number], 0), len(mine))
            done.before += skip
            for start in range(skip, len(mine), SEGMENT):
                at = mine[start : start + SEGMENT]
                part = Part(name, seen[number] + start, seen[number] + start + len(at))
                at = at[~again[at]]
                embedded = [np.zeros((0, pool.width), np.float32)]
                for first in range(0, len(at), 8192):
                    embedded.append(encoder.encode(everything.take(at[first : first + 8192])))
                    show("embed", passed + start + min(first + 8192, len(at)), total)
                vectors = np.concatenate(embedded)
                done.added += pool.append(everything.take(at), time[at], token[at], vectors, part=part)
            seen[number] += len(mine)
            passed += len(mine)
            show("embed", passed, total)


@contextmanager
def _workspace(folder: Path) -> Iterator[Path]:
    """A folder to put rows aside in; what a killed run left there goes."""
    try:
        folder.mkdir(exist_ok=True)
        with (folder / ".lock").open("ab") as alone:
            try:
                fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"another ingestion is running: {folder} is in use") from None
            for leftover in folder.glob("[0-9]*"):
                leftover.unlink()
            yield folder
            shutil.rmtree(folder)
    except OSError as error:
        raise StoreError(
            f"the rows could not be put aside in {folder}: {error.strerror}; what was added stays"
        ) from None
