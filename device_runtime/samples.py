"""Labelled samples as columns, with histories that may share their storage.

A *sample* is one labelled impression: features and a label. A contributor's samples mostly differ in how much
of the same event sequence lies behind them, so a ragged column is a view (start, length) into one array of
values, and rows may overlap. Sharing survives `take`, the pool and the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from device_runtime.errors import InputError

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

PADDING = 0
"""Id and local row that stand for "nothing here" in every vocabulary."""


class Feature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input of a model.

    `id` is one id per sample, `ids` a history of at most `bound` ids (the newest are kept), both into
    `vocabulary`; `float` is a vector of `bound` numbers. ordered: whether the order within a history means something
    to the model; where it does not, histories travel as multisets, which takes a third fewer bytes.
    """

    name: str
    kind: Literal["id", "ids", "float"]
    vocabulary: str = ""
    bound: int = 1
    ordered: bool = True


class Schema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The inputs of a model, in the order in which its `forward` takes them."""

    features: tuple[Feature, ...]

    def __getitem__(self, name: str) -> Feature:
        for feature in self.features:
            if feature.name == name:
                return feature
        raise KeyError(name)


@dataclass(frozen=True)
class Ragged:
    """Row i is `values[starts[i] : starts[i] + lengths[i]]`, oldest first. Rows may overlap.

    Shapes: values int32 [m], starts int32 [n], lengths int32 [n].
    """

    values: Int32
    starts: Int32
    lengths: Int32

    def __post_init__(self) -> None:
        if len(self.starts) != len(self.lengths):
            raise InputError(f"a ragged column has {len(self.starts)} starts but {len(self.lengths)} lengths")
        if len(self.starts) and (
            self.starts.min() < 0
            or self.lengths.min() < 0
            or int((self.starts.astype(np.int64) + self.lengths).max()) > len(self.values)
        ):
            raise InputError(f"a ragged column points outside its {len(self.values)} values")

    def __len__(self) -> int:
        return len(self.starts)

    def row(self, i: int) -> Int32:
        return self.values[self.starts[i] : self.starts[i] + self.lengths[i]]

    def newest(self, bound: int) -> Ragged:
        """The same rows, each cut to its newest `bound` values; no value is copied."""
        lengths = np.minimum(self.lengths, bound).astype(np.int32)
        return Ragged(self.values, (self.starts + self.lengths - lengths).astype(np.int32), lengths)

    def dense(self, bound: int) -> Int64:
        """int64 [n, bound]: the newest `bound` values of each row, oldest first, then PADDING."""
        cut = self.newest(bound)
        column = np.arange(bound, dtype=np.int64)
        present = column < cut.lengths[:, None]
        if not len(self.values):
            return np.full((len(self), bound), PADDING, np.int64)
        at = np.where(present, cut.starts[:, None] + column, 0)
        return np.where(present, self.values[at], PADDING).astype(np.int64)

    def compact(self) -> Ragged:
        """The same rows over only those values that some row uses; rows that shared storage still do."""
        if not len(self.values):
            return self
        edges = np.zeros(len(self.values) + 1, np.int64)
        np.add.at(edges, self.starts, 1)
        np.add.at(edges, self.starts + self.lengths, -1)
        used = np.cumsum(edges[:-1]) > 0
        moved = np.concatenate(([0], np.cumsum(used)))
        return Ragged(self.values[used], moved[self.starts].astype(np.int32), self.lengths)

    def distinct(self) -> Int32:
        """The values that some row uses, each once, ascending."""
        total = int(self.lengths.sum())
        if total >= len(self.values):
            return np.unique(self.compact().values)
        # a few rows over the values of many: what they cost must not depend on how many those are
        first = np.cumsum(self.lengths) - self.lengths
        return np.unique(self.values[np.arange(total) + np.repeat(self.starts - first, self.lengths)])

    @staticmethod
    def concatenate(parts: list[Ragged]) -> Ragged:
        base = np.cumsum([0] + [len(p.values) for p in parts])
        return Ragged(
            np.concatenate([p.values for p in parts]).astype(np.int32),
            np.concatenate([p.starts + b for p, b in zip(parts, base, strict=False)]).astype(np.int32),
            np.concatenate([p.lengths for p in parts]).astype(np.int32),
        )


Column = npt.NDArray[np.generic] | Ragged


@dataclass(frozen=True)
class SampleBatch:
    """n labelled samples under a schema.

    columns: `id` int32 [n]; `ids` Ragged of n rows; `float` float32 [n, bound]. labels: float32 [n] in [0, 1].
    Ids are global ids of the vocabulary, 0 being padding.

    Raises:
        InputError: a column is missing, of another length, or labels lie outside [0, 1] or are not finite.
    """

    schema: Schema
    columns: Mapping[str, Column]
    labels: Float32

    def __post_init__(self) -> None:
        for feature in self.schema.features:
            column = self.columns.get(feature.name)
            if column is None:
                raise InputError(f"samples lack the column {feature.name!r}")
            if len(column) != len(self.labels):
                raise InputError(f"column {feature.name!r} has {len(column)} rows, the labels have {len(self.labels)}")
            if isinstance(column, Ragged) != (feature.kind == "ids"):
                raise InputError(f"column {feature.name!r} does not fit its kind {feature.kind!r}")
        if extra := set(self.columns) - {f.name for f in self.schema.features}:
            raise InputError(f"samples have columns that the schema does not know: {sorted(extra)}")
        if len(self.labels) and not (self.labels.min() >= 0 and self.labels.max() <= 1):
            raise InputError("labels must be finite numbers from 0 to 1")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, at: npt.NDArray[np.integer] | npt.NDArray[np.bool_] | slice) -> SampleBatch:
        """The samples at these positions (or under this mask); histories are shared, not copied."""
        columns: dict[str, Column] = {
            name: Ragged(c.values, c.starts[at], c.lengths[at]) if isinstance(c, Ragged) else c[at]
            for name, c in self.columns.items()
        }
        return SampleBatch(self.schema, columns, self.labels[at])

    def ids(self, vocabulary: str) -> Int32:
        """The distinct global ids of a vocabulary that these samples mention, ascending, without PADDING."""
        found: list[npt.NDArray[np.generic]] = [np.zeros(0, np.int32)]
        for feature in self.schema.features:
            if feature.vocabulary == vocabulary:
                column = self.columns[feature.name]
                found.append(column.newest(feature.bound).distinct() if isinstance(column, Ragged) else column)
        distinct: Int32 = np.unique(np.concatenate(found)).astype(np.int32)
        present: Int32 = distinct[distinct != PADDING]
        return present

    @staticmethod
    def concatenate(parts: list[SampleBatch]) -> SampleBatch:
        if not parts:
            raise InputError("nothing to concatenate")
        schema = parts[0].schema
        columns: dict[str, Column] = {}
        for feature in schema.features:
            column = [p.columns[feature.name] for p in parts]
            if feature.kind == "ids":
                columns[feature.name] = Ragged.concatenate([c for c in column if isinstance(c, Ragged)])
            else:
                columns[feature.name] = np.concatenate([c for c in column if not isinstance(c, Ragged)])
        return SampleBatch(schema, columns, np.concatenate([p.labels for p in parts]).astype(np.float32))
