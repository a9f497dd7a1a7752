"""The pool: samples of many contributors, without their identities, on disk and growing.

A pool is a folder of immutable segments. A segment is written under a temporary name, synced and renamed, so that it is
there whole or not at all; readers work on a snapshot (`segments`) and are not disturbed when another one appears. All
columns are memory-mapped. A contributor is a 64-bit pseudonym made with a salt that lies elsewhere.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from device_runtime.errors import InputError, StoreError
from device_runtime.samples import Column, Float32, Int64, Ragged, SampleBatch, Schema

FORMAT = 1
Tokens = npt.NDArray[np.uint64]


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
        self._writing = threading.Lock()
        self._segments: tuple[Segment, ...] = ()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(".new-*"):
                shutil.rmtree(leftover)
            found = sorted(folder.glob("segment-*"))
        except OSError as error:
            raise StoreError(f"the pool at {folder} cannot be opened: {error.strerror}") from None
        for path in found:
            self._segments += (self._open(path, len(self)),)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """A snapshot: later growth does not show in it."""
        return self._segments

    def __len__(self) -> int:
        return sum(len(segment) for segment in self._segments)

    def append(self, samples: SampleBatch, timestamps: Int64, contributors: Tokens, embeddings: Float32) -> None:
        """Add samples as one segment; they are durable and can be matched when this returns.

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
            "labels": samples.labels,
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
            else:
                arrays[feature.name] = column
        with self._writing:
            path = self.folder / f"segment-{len(self._segments):06d}"
            self._write(path, arrays, n)
            self._segments += (self._open(path, len(self)),)

    def gather(self, positions: Int64) -> SampleBatch:
        """The samples at these global positions, in this order; histories of one segment stay shared."""
        parts, order = [], []
        for segment in self._segments:
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

    def _write(self, path: Path, arrays: dict[str, npt.NDArray[np.generic]], samples: int) -> None:
        new = None
        try:
            new = Path(tempfile.mkdtemp(dir=self.folder, prefix=".new-"))
            for name, array in arrays.items():
                with (new / f"{name}.npy").open("wb") as file:
                    np.save(file, array)
                    file.flush()
                    os.fsync(file.fileno())
            sizes = {file.name: file.stat().st_size for file in new.iterdir()}
            with (new / "meta.json").open("wb") as file:
                file.write(msgspec.json.encode(SegmentMeta(FORMAT, samples, self.width, sizes)))
                file.flush()
                os.fsync(file.fileno())
            new.rename(path)
            folder = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            if new is not None:
                shutil.rmtree(new, ignore_errors=True)
            raise StoreError(
                f"the pool at {self.folder} cannot grow: {error.strerror}; what it holds is kept"
            ) from None

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

            def column(name: str) -> npt.NDArray[np.generic]:
                array: npt.NDArray[np.generic] = np.load(path / f"{name}.npy", mmap_mode="r")
                return array

            columns: dict[str, Column] = {}
            for feature in self.schema.features:
                if feature.kind == "ids":
                    parts = [column(f"{feature.name}.{part}").astype(np.int32, copy=False) for part in _PARTS]
                    columns[feature.name] = Ragged(*parts)
                else:
                    columns[feature.name] = column(feature.name)
            samples = SampleBatch(self.schema, columns, column("labels").astype(np.float32, copy=False))
            return Segment(
                base,
                samples,
                column("contributors").astype(np.uint64, copy=False),
                column("timestamps").astype(np.int64, copy=False),
                column("embeddings").astype(np.float32, copy=False),
            )
        except (OSError, ValueError, msgspec.DecodeError, InputError) as error:
            raise StoreError(f"the pool's segment {path} is damaged: {error}. Restore it from a copy") from None


_PARTS = ("values", "starts", "lengths")


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
