"""The pool: samples of many contributors, without their identities, on disk and growing.

A pool is a folder of immutable segments. A segment is written under a temporary name, synced and renamed, so that it is
there whole or not at all; readers work on a snapshot (`segments`) and are not disturbed when another one appears.
Writers, in this process and in others, take turns by a lock on the folder. All columns are memory-mapped. A contributor
is a 64-bit pseudonym made with a salt that lies elsewhere.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from device_runtime.errors import InputError, StoreError
from device_runtime.samples import Column, Float32, Int64, Ragged, SampleBatch, Schema

FORMAT = 1
Tokens = npt.NDArray[np.uint64]
_Number = TypeVar("_Number", np.int32, np.int64, np.uint64, np.float32)


class SegmentMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """files: name -> bytes, checked at opening."""

    format: int
    samples: int
    width: int
    files: dict[str, int]


@dataclass(frozen=True)
class Segment:
    """base: the global position of its first sample. contributors: uint64 [n]. timestamps: int64 [n], seconds.
    embeddings: float32 [n, width], unit rows."""

    base: int
    samples: SampleBatch
    contributors: Tokens
    timestamps: Int64
    embeddings: Float32

    def __len__(self) -> int:
        return len(self.samples)


class Pool:
    """Samples embedded by one encoder.

    Raises (from every method):
        StoreError: a segment is damaged, or the disk refuses; what was acknowledged before is still there.
    """

    def __init__(self, folder: Path, schema: Schema, width: int) -> None:
        self.folder, self.schema, self.width = folder, schema, width
        self._segments: tuple[Segment, ...] = ()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._alone():  # whoever is writing has the lock, so what lies here now was left by a crash
                for leftover in folder.glob(".new-*"):
                    shutil.rmtree(leftover)
                self._catch_up()
        except OSError as error:
            raise StoreError(f"the pool at {folder} cannot be opened: {_reason(error)}") from None

    @property
    def segments(self) -> tuple[Segment, ...]:
        """A snapshot: later growth does not show in it. What another process adds shows after the next `append`."""
        return self._segments

    def __len__(self) -> int:
        return sum(len(segment) for segment in self._segments)

    def append(self, samples: SampleBatch, timestamps: Int64, contributors: Tokens, embeddings: Float32) -> None:
        """Add samples as one segment; they are durable and can be matched when this returns.

        timestamps: int64 [n], seconds. contributors: uint64 [n]. embeddings: float32 [n, width], unit rows.

        Raises:
            InputError: lengths, the width or numbers do not fit.
        """
        n = len(samples)
        if samples.schema != self.schema:
            raise InputError("these samples have another schema than the pool")
        if embeddings.shape != (n, self.width) or not np.isfinite(embeddings).all():
            raise InputError(f"expected finite embeddings of shape [{n}, {self.width}], given {list(embeddings.shape)}")
        if len(timestamps) != n or len(contributors) != n:
            raise InputError(f"{n} samples, but {len(timestamps)} timestamps and {len(contributors)} contributors")
        if not n:
            return
        arrays: dict[str, npt.NDArray[np.generic]] = {
            "labels": samples.labels.astype(np.float32),
            "timestamps": timestamps.astype(np.int64),
            "contributors": contributors.astype(np.uint64),
            "embeddings": embeddings.astype(np.float32),
        }
        for feature in self.schema.features:
            column = samples.columns[feature.name]
            if isinstance(column, Ragged):
                cut = column.newest(feature.bound).compact()
                parts = {"values": cut.values, "starts": cut.starts, "lengths": cut.lengths}
                arrays |= {f"{feature.name}.{part}": array for part, array in parts.items()}
            elif feature.kind == "id":
                arrays[feature.name] = column.astype(np.int32)
            else:
                if column.shape != (n, feature.bound) or not np.isfinite(numbers := column.astype(np.float32)).all():
                    raise InputError(f"column {feature.name!r} must be finite, of shape [{n}, {feature.bound}]")
                arrays[feature.name] = numbers
        try:
            with self._alone():
                self._catch_up()
                self._write(self.folder / _name(len(self._segments)), arrays, n)
                self._catch_up()
        except OSError as error:
            raise StoreError(
                f"the pool at {self.folder} cannot grow: {_reason(error)}; what it holds is kept"
            ) from None

    def gather(self, positions: Int64) -> SampleBatch:
        """The samples at these global positions, int64 [n], in this order; histories of one segment stay shared.

        Raises:
            InputError: a position is outside the pool.
        """
        parts, order, segments = [], [], self._segments
        held = sum(len(segment) for segment in segments)
        if len(positions) and not (positions.min() >= 0 and positions.max() < held):
            raise InputError(f"the pool has positions from 0 to {held - 1}; asked for one outside them")
        for segment in segments:
            at = np.flatnonzero((positions >= segment.base) & (positions < segment.base + len(segment)))
            if len(at):
                parts.append(segment.samples.take(positions[at] - segment.base))
                order.append(at)
        if not parts:
            return self._segments[0].samples.take(slice(0, 0)) if self._segments else self._nothing()
        together = SampleBatch.concatenate([_detached(part) for part in parts])
        return together.take(np.argsort(np.concatenate(order), kind="stable"))

    def _nothing(self) -> SampleBatch:
        none = np.zeros(0, np.int32)
        columns: dict[str, Column] = {}
        for feature in self.schema.features:
            if feature.kind == "ids":
                columns[feature.name] = Ragged(none, none, none)
            else:
                columns[feature.name] = none if feature.kind == "id" else np.zeros((0, feature.bound), np.float32)
        return SampleBatch(self.schema, columns, np.zeros(0, np.float32))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps other writers out, in other threads and processes; a crash lets go."""
        with (self.folder / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _catch_up(self) -> None:
        """Open the segments that were added since."""
        found = sorted(self.folder.glob("segment-*"))
        for number, path in enumerate(found):
            if path.name != _name(number):  # later positions would shift
                raise StoreError(f"the pool at {self.folder} lacks {_name(number)}. Restore it from a copy")
        if len(found) < len(self._segments):
            raise StoreError(f"the pool at {self.folder} lacks {_name(len(found))}. Restore it from a copy")
        for path in found[len(self._segments) :]:
            self._segments += (self._open(path, len(self)),)

    def _write(self, path: Path, arrays: dict[str, npt.NDArray[np.generic]], samples: int) -> None:
        new = Path(tempfile.mkdtemp(dir=self.folder, prefix=".new-"))
        try:
            for name, array in arrays.items():
                with (new / f"{name}.npy").open("wb") as file:
                    np.save(file, array)
                    file.flush()
                    _sync(file.fileno())
            sizes = {file.name: file.stat().st_size for file in new.iterdir()}
            with (new / "meta.json").open("wb") as file:
                file.write(msgspec.json.encode(SegmentMeta(FORMAT, samples, self.width, sizes)))
                file.flush()
                _sync(file.fileno())
            _sync_folder(new)
            new.rename(path)
            try:
                _sync_folder(self.folder)
            except OSError:  # it might not outlive a power cut, so it must not be seen before one
                path.rename(new)
                raise
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise

    def _open(self, path: Path, base: int) -> Segment:
        try:
            meta = msgspec.json.decode((path / "meta.json").read_bytes(), type=SegmentMeta)
            if meta.format != FORMAT or meta.width != self.width:
                raise StoreError(
                    f"{path} is of format {meta.format} and width {meta.width}; {FORMAT}, {self.width} expected"
                )
            for name, size in meta.files.items():
                if (path / name).stat().st_size != size:
                    raise StoreError(f"{path / name} is damaged: it should have {size} bytes. Restore it from a copy")

            def load(name: str, kind: type[_Number], *shape: int) -> npt.NDArray[_Number]:
                array = np.load(path / f"{name}.npy", mmap_mode="r")
                if array.dtype != kind or (shape and array.shape != shape):
                    raise StoreError(
                        f"{path / name}.npy is damaged: it holds {array.dtype} {list(array.shape)}. "
                        "Restore it from a copy"
                    )
                kept: npt.NDArray[_Number] = array
                return kept

            n = meta.samples
            columns: dict[str, Column] = {}
            for feature in self.schema.features:
                name = feature.name
                if feature.kind == "ids":
                    starts, lengths = load(f"{name}.starts", np.int32, n), load(f"{name}.lengths", np.int32, n)
                    columns[name] = Ragged(load(f"{name}.values", np.int32), starts, lengths)
                elif feature.kind == "id":
                    columns[name] = load(name, np.int32, n)
                else:
                    columns[name] = load(name, np.float32, n, feature.bound)
            return Segment(
                base,
                SampleBatch(self.schema, columns, load("labels", np.float32, n)),
                load("contributors", np.uint64, n),
                load("timestamps", np.int64, n),
                load("embeddings", np.float32, n, self.width),
            )
        except (OSError, ValueError, msgspec.DecodeError, InputError) as error:
            raise StoreError(f"the pool's segment {path} is damaged: {error}. Restore it from a copy") from None


def _name(number: int) -> str:
    return f"segment-{number:06d}"


def _reason(error: OSError) -> str:
    # numpy reports a short write as an OSError without a number
    return error.strerror or f"the disk took only part of a column ({error})"


def _sync(descriptor: int) -> None:
    os.fsync(descriptor)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        _sync(folder)
    finally:
        os.close(folder)


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
