"""A data set that does not fit into memory: events as columns on disk, read a block at a time.

FOLDER/streamed.json       what it holds, written last; its blocks, each with a checksum
FOLDER/items.parquet       the vocabulary of items, as of a `Dataset`
FOLDER/events/NAME.bin     one column of all events, little-endian: ordered by contributor and time

Contributors lie in the order of a hash of their keys, so a block is a random sample of them. A block ends where a
contributor does: all histories in it can be made from it alone. Keys of users are not kept.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cloud.datasets.dataset import CATEGORIES, ReadReport, items_as_table, read_checked, write_table
from device_runtime.bundle import write_atomically
from device_runtime.errors import InputError, StoreError
from device_runtime.samples import Int32, Int64
from device_runtime.stream import Events

META = "streamed.json"
BLOCK = 1 << 14
"""Events in a block, about; a contributor of more is a block of their own."""
_FORMAT = 1
_ITEMS = "items.parquet"
_COLUMNS: Mapping[str, npt.DTypeLike] = {
    "contributor": "<i4", "item": "<i4", "timestamp": "<i8", "label": "<f4", "observed": "|b1",
}  # fmt: skip


class _Block(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """crc: CRC-32 of the block's columns, one after the other."""

    events: int
    crc: int


class _Meta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    name: str
    positive_at: float | None
    categories: tuple[str, ...]
    contributors: int
    liked: float
    blocks: tuple[_Block, ...]
    fingerprint: str
    hashes: dict[str, str]
    report: ReadReport


@dataclass(frozen=True)
class StreamedDataset:
    """items, categories, item_categories, positive_at: as of a `Dataset`. contributors: how many. liked: sum of the
    labels. starts: int64 [blocks + 1], the first event of each block. fingerprint: of all events. until: the last
    second that may be trained on; None: the last there is."""

    folder: Path
    name: str
    items: tuple[str, ...]
    categories: tuple[str, ...]
    item_categories: Int32
    positive_at: float | None
    contributors: int
    liked: float
    starts: Int64
    fingerprint: str
    report: ReadReport
    _crcs: tuple[int, ...] = field(repr=False)
    until: int | None = None

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def blocks(self) -> int:
        return len(self.starts) - 1

    @staticmethod
    def is_in(folder: Path) -> bool:
        return (folder / META).exists()

    @staticmethod
    def open(folder: Path) -> StreamedDataset:
        """Raises: InputError: there is none. StoreError: damaged, or of another format."""
        try:
            data = (folder / META).read_bytes()
            found = msgspec.json.decode(data, type=dict[str, msgspec.Raw]).get("format")
            if found is None or bytes(found) != str(_FORMAT).encode():
                raise StoreError(f"{folder} is of another format; prepare it again with `coda data prepare --stream`")
            meta = msgspec.json.decode(data, type=_Meta)
            items = read_checked(folder / _ITEMS, meta.hashes)
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{folder} is not a data set that `coda data prepare --stream` has made") from None
        except (OSError, pa.ArrowException, msgspec.DecodeError) as error:
            raise StoreError(f"the data set in {folder} is damaged: {error}; prepare it again") from None
        starts = np.cumsum([0, *(block.events for block in meta.blocks)], dtype=np.int64)
        for name, kind in _COLUMNS.items():
            path = folder / "events" / f"{name}.bin"
            if not path.exists() or path.stat().st_size != starts[-1] * np.dtype(kind).itemsize:
                raise StoreError(f"{path} is missing or cut short; prepare the data set again")
        return StreamedDataset(
            folder,
            meta.name,
            tuple(items["key"].to_pylist()),
            meta.categories,
            np.asarray(items["categories"].combine_chunks().flatten()).reshape(-1, CATEGORIES).astype(np.int32),
            meta.positive_at,
            meta.contributors,
            meta.liked,
            starts,
            meta.fingerprint,
            meta.report,
            tuple(block.crc for block in meta.blocks),
        )

    def block(self, number: int) -> Events:
        """The events of one block, ordered. Raises: StoreError: the disk refuses, or gives other bytes than it got."""
        columns: dict[str, Any] = {name: self._read(name, number) for name in _COLUMNS}
        crc = 0
        for values in columns.values():
            crc = zlib.crc32(values, crc)
        if crc != self._crcs[number]:
            raise StoreError(f"block {number} of {self.folder / 'events'} is damaged; prepare the data set again")
        return Events(**columns)

    def timestamps(self) -> Iterator[Int64]:
        """int64 [events of the block], block by block."""
        for number in range(self.blocks):
            found: Int64 = self._read("timestamp", number)
            yield found

    def _read(self, name: str, number: int) -> npt.NDArray[Any]:
        kind = np.dtype(_COLUMNS[name])
        start, stop = (int(at) for at in self.starts[number : number + 2])
        path = self.folder / "events" / f"{name}.bin"
        try:
            return np.fromfile(path, kind, stop - start, offset=start * kind.itemsize)
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from None


class ColumnWriter:
    """Appends events to the columns of a folder. Use it in a `with`. Raises: OSError."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, IO[bytes]] = {}
        folder.mkdir(parents=True)
        self._files = {name: (folder / f"{name}.bin").open("wb") for name in _COLUMNS}
        self._digest = hashlib.sha256()
        self._blocks: list[_Block] = []

    def __enter__(self) -> ColumnWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def append(self, events: Events) -> None:
        """Events of whole contributors, ordered."""
        first = np.flatnonzero(np.diff(events.contributor)) + 1
        start = 0
        while start < len(events):
            at = np.searchsorted(first, start + BLOCK)
            stop = int(first[at]) if at < len(first) else len(events)
            crc = 0
            for name, file in self._files.items():
                values = np.ascontiguousarray(getattr(events, name)[start:stop], _COLUMNS[name]).data
                crc = zlib.crc32(values, crc)
                self._digest.update(values)
                file.write(values)
            self._blocks.append(_Block(stop - start, crc))
            start = stop

    def finish(self) -> tuple[tuple[_Block, ...], str]:
        """Bring all to disk: (blocks, fingerprint)."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return tuple(self._blocks), self._digest.hexdigest()[:16]


def write_meta(
    folder: Path,
    written: tuple[tuple[_Block, ...], str],
    *,
    name: str,
    positive_at: float | None,
    items: tuple[str, ...],
    titles: tuple[str, ...],
    categories: tuple[str, ...],
    item_categories: Int32,
    contributors: int,
    liked: float,
    report: ReadReport,
) -> None:
    """The vocabulary, and the file that makes the folder a data set. Raises: StoreError."""
    hashes = {_ITEMS: write_table(folder / _ITEMS, items_as_table(items, titles, item_categories))}
    blocks, fingerprint = written
    meta = _Meta(
        _FORMAT, name, positive_at, categories, contributors, liked, blocks, fingerprint, hashes, report
    )  # fmt: skip
    write_atomically(folder / META, msgspec.json.encode(meta))
