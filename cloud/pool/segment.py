"""Segments: immutable columns on disk, and what a reader sees of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from cloud.pool.manifest import FORMAT, Entry, sync_folder
from device_runtime.errors import InputError, StoreError
from device_runtime.samples import Column, Float32, Int32, Int64, Ragged, SampleBatch, Schema

Tokens = npt.NDArray[np.uint64]
Arrays = Mapping[str, npt.NDArray[np.generic]]
_Number = TypeVar("_Number", np.int32, np.int64, np.uint64, np.float32)


class SegmentMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """files: name -> bytes, checked at opening."""

    format: int
    samples: int
    width: int
    files: dict[str, int]


@dataclass(frozen=True)
class Owners:
    """Whose samples are where, to be looked up without a pass over all. tokens: uint64 [c], ascending, each once. ends:
    int32 [c]. rows: int32 [n]; those of `tokens[i]` are `rows[ends[i - 1] : ends[i]]`, ascending."""

    tokens: Tokens
    ends: Int32
    rows: Int32

    @staticmethod
    def of(contributors: Tokens) -> Owners:
        rows = np.argsort(contributors, kind="stable").astype(np.int32)
        tokens, first = np.unique(contributors[rows], return_index=True)
        return Owners(tokens, np.append(first[1:], len(rows)).astype(np.int32)[: len(tokens)], rows)

    def rows_of(self, token: int) -> Int32:
        at = int(np.searchsorted(self.tokens, np.uint64(token)))
        if at == len(self.tokens) or self.tokens[at] != np.uint64(token):
            return np.zeros(0, np.int32)
        return self.rows[self.ends[at - 1] if at else 0 : self.ends[at]]


_NOTHING = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Segment:
    """base: the global position of its first sample. contributors: uint64 [n]. timestamps: int64 [n], seconds.
    embeddings: float32 [n, width], unit rows. entry: what the pool's manifest says of it; None if it is not
    of a pool on disk. folder: where it lies. hidden: int64, ascending: rows that no answer may show, being erased or
    too old."""

    base: int
    samples: SampleBatch
    contributors: Tokens
    timestamps: Int64
    embeddings: Float32
    entry: Entry | None = None
    folder: Path | None = None
    hidden: Int64 = field(default_factory=lambda: _NOTHING)
    stored_owners: Owners | None = None

    def __len__(self) -> int:
        """Rows, hidden ones included."""
        return len(self.samples)

    @property
    def name(self) -> str:
        """Never given to another segment of the pool; "" if it is not of a pool on disk."""
        return self.entry.name if self.entry else ""

    @property
    def visible(self) -> int:
        return len(self) - len(self.hidden)

    @cached_property
    def owners(self) -> Owners:
        return self.stored_owners or Owners.of(np.asarray(self.contributors))

    def forbidden(self, exclude: int | None = None) -> Int64:
        """Rows, int64 ascending, that answers to this contributor may not show: its own and the hidden ones."""
        own = _NOTHING if exclude is None else self.owners.rows_of(exclude).astype(np.int64)
        if not len(self.hidden):
            return own
        return np.union1d(own, self.hidden) if len(own) else self.hidden

    def shown(self, exclude: int | None = None) -> npt.NDArray[np.bool_]:
        """bool [n]: what answers to this contributor may show."""
        mask = np.ones(len(self), bool)
        mask[self.forbidden(exclude)] = False
        return mask


class Snapshot:
    """Some segments, which do not change."""

    def __init__(self, schema: Schema, width: int, segments: tuple[Segment, ...]) -> None:
        self.schema, self.width, self._segments = schema, width, segments

    @property
    def segments(self) -> tuple[Segment, ...]:
        """In ascending order of their positions; there may be gaps between them."""
        return self._segments

    def __len__(self) -> int:
        """Samples that answers may show."""
        return sum(segment.visible for segment in self.segments)

    def gather(self, positions: Int64) -> SampleBatch:
        """The samples at these global positions, int64 [n], in this order; histories of one segment stay shared.

        Raises:
            InputError: there is no sample at a position.
        """
        parts, order = [], []
        for segment in self._readable():
            at = np.flatnonzero((positions >= segment.base) & (positions < segment.base + len(segment)))
            if len(at):
                parts.append(segment.samples.take(positions[at] - segment.base))
                order.append(at)
        if sum(map(len, order)) != len(positions):
            known = np.concatenate([*order, np.zeros(0, np.intp)])
            stray = np.delete(np.arange(len(positions)), known)[0]
            raise InputError(f"the pool has no sample at position {positions[stray]}")
        if not parts:
            return self._nothing()
        together = SampleBatch.concatenate([_detached(part) for part in parts])
        return together.take(np.argsort(np.concatenate(order), kind="stable"))

    def _readable(self) -> tuple[Segment, ...]:
        return self.segments

    def _nothing(self) -> SampleBatch:
        none = np.zeros(0, np.int32)
        columns: dict[str, Column] = {}
        for feature in self.schema.features:
            if feature.kind == "ids":
                columns[feature.name] = Ragged(none, none, none)
            else:
                columns[feature.name] = none if feature.kind == "id" else np.zeros((0, feature.bound), np.float32)
        return SampleBatch(self.schema, columns, np.zeros(0, np.float32))


def columns_of(
    schema: Schema, width: int, samples: SampleBatch, timestamps: Int64, contributors: Tokens, embeddings: Float32
) -> dict[str, npt.NDArray[np.generic]]:
    """A segment's columns by the names of their files. Raises: InputError: they do not fit."""
    n = len(samples)
    if samples.schema != schema:
        raise InputError("these samples have another schema than the pool")
    if embeddings.shape != (n, width) or not np.isfinite(embeddings).all():
        raise InputError(f"expected finite embeddings of shape [{n}, {width}], given {list(embeddings.shape)}")
    if len(timestamps) != n or len(contributors) != n:
        raise InputError(f"{n} samples, but {len(timestamps)} timestamps and {len(contributors)} contributors")
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "labels": samples.labels.astype(np.float32),
        "timestamps": timestamps.astype(np.int64),
        "embeddings": embeddings.astype(np.float32),
        **owner_columns(contributors.astype(np.uint64)),
    }
    for feature in schema.features:
        column = samples.columns[feature.name]
        if isinstance(column, Ragged):
            arrays |= ragged_columns(feature.name, column.newest(feature.bound).compact())
        elif feature.kind == "id":
            arrays[feature.name] = column.astype(np.int32)
        else:
            if column.shape != (n, feature.bound) or not np.isfinite(numbers := column.astype(np.float32)).all():
                raise InputError(f"column {feature.name!r} must be finite, of shape [{n}, {feature.bound}]")
            arrays[feature.name] = numbers
    return arrays


def owner_columns(contributors: Tokens) -> dict[str, npt.NDArray[np.generic]]:
    """Who gave each sample, and the way back."""
    owners = Owners.of(contributors)
    return {
        "contributors": contributors,
        "owners.tokens": owners.tokens,
        "owners.ends": owners.ends,
        "owners.rows": owners.rows,
    }


def ragged_columns(name: str, column: Ragged) -> dict[str, npt.NDArray[np.generic]]:
    return {f"{name}.values": column.values, f"{name}.starts": column.starts, f"{name}.lengths": column.lengths}


def save(folder: Path, arrays: Arrays) -> None:
    """Write columns durably. Raises: OSError."""
    for name, array in arrays.items():
        with (folder / f"{name}.npy").open("wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())


def seal(folder: Path, samples: int, width: int) -> None:
    """Vouch for the columns in a folder, durably. Raises: OSError."""
    sizes = {file.name: file.stat().st_size for file in folder.glob("*.npy")}
    with (folder / "meta.json").open("wb") as file:
        file.write(msgspec.json.encode(SegmentMeta(FORMAT, samples, width, sizes)))
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def open_segment(path: Path, entry: Entry | None, base: int, schema: Schema, width: int) -> Segment:
    """A segment over its files, memory-mapped.

    Raises:
        FileNotFoundError: there is none. StoreError: damaged, or of another format or width.
    """
    try:
        written = (path / "meta.json").read_bytes()
    except FileNotFoundError:
        if path.exists():
            raise StoreError(f"the pool's segment {path} is damaged: no meta.json. Restore it from a copy") from None
        raise
    try:
        meta = msgspec.json.decode(written, type=SegmentMeta)
        if meta.format != FORMAT or meta.width != width:
            raise StoreError(f"{path} is of format {meta.format} and width {meta.width}; {FORMAT}, {width} expected")
        for file, size in meta.files.items():
            if (path / file).stat().st_size != size:
                raise StoreError(f"{path / file} is damaged: it should have {size} bytes. Restore it from a copy")

        def load(name: str, kind: type[_Number], *shape: int) -> npt.NDArray[_Number]:
            file = path / f"{name}.npy"
            array = np.load(file, mmap_mode="r")
            if array.dtype != kind or (shape and array.shape != shape):
                raise StoreError(
                    f"{file} is damaged: it holds {array.dtype} {list(array.shape)}. Restore it from a copy"
                )
            kept: npt.NDArray[_Number] = array
            return kept

        n = meta.samples
        columns: dict[str, Column] = {}
        for feature in schema.features:
            column = feature.name
            if feature.kind == "ids":
                starts, lengths = load(f"{column}.starts", np.int32, n), load(f"{column}.lengths", np.int32, n)
                columns[column] = Ragged(load(f"{column}.values", np.int32), starts, lengths)
            elif feature.kind == "id":
                columns[column] = load(column, np.int32, n)
            else:
                columns[column] = load(column, np.float32, n, feature.bound)
        tokens = load("owners.tokens", np.uint64)
        owners = Owners(tokens, load("owners.ends", np.int32, len(tokens)), load("owners.rows", np.int32, n))
        return Segment(
            base,
            SampleBatch(schema, columns, load("labels", np.float32, n)),
            load("contributors", np.uint64, n),
            load("timestamps", np.int64, n),
            load("embeddings", np.float32, n, width),
            entry,
            path,
            stored_owners=owners,
        )
    except (OSError, ValueError, msgspec.DecodeError, InputError) as error:
        if isinstance(error, FileNotFoundError) and not path.exists():
            raise  # compaction took it away between two files
        raise StoreError(f"the pool's segment {path} is damaged: {error}. Restore it from a copy") from None


def _detached(part: SampleBatch) -> SampleBatch:
    """The part over only the history values that it uses: joining parts must not copy whole segments."""
    columns: dict[str, Column] = {}
    for name, column in part.columns.items():
        columns[name] = _used(column) if isinstance(column, Ragged) else column
    return SampleBatch(part.schema, columns, part.labels)


def _used(column: Ragged) -> Ragged:
    """Like `Ragged.compact`, at the cost of the rows that are used instead of all values."""
    if not len(column):
        return Ragged(np.zeros(0, np.int32), column.starts, column.lengths)
    order = np.argsort(column.starts, kind="stable")
    starts, ends = column.starts[order].astype(np.int64), (column.starts + column.lengths)[order].astype(np.int64)
    reach = np.maximum.accumulate(ends)
    opens = np.concatenate(([True], starts[1:] > reach[:-1]))
    first, last = starts[opens], np.append(reach[:-1][opens[1:]], reach[-1])
    moved = np.cumsum(np.concatenate(([0], (last - first)[:-1]))) - first
    values = np.concatenate([column.values[a:b] for a, b in zip(first, last, strict=True)])
    shifted = np.empty(len(column), np.int64)
    shifted[order] = starts + moved[np.cumsum(opens) - 1]
    return Ragged(values.astype(np.int32), shifted.astype(np.int32), column.lengths)
