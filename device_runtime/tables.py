"""Rows of the item vocabulary on the device: only those that its own samples and the candidates mention.

Shards map external keys to global ids and carry rows; a `LocalTable` renumbers the global ids in use to the small
row numbers that graphs see. Row 0 is padding in both.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from device_runtime.bundle import read_tensors
from device_runtime.errors import InputError, WireError
from device_runtime.quantized import SCALE, is_weight, scaled_up
from device_runtime.samples import PADDING, Int32, Int64, Ragged, SampleBatch
from device_runtime.wire import Rows

Tensors = dict[str, npt.NDArray[np.generic]]
TOGETHER = 512
"""Samples that are computed with at a time, with the rows that these mention."""


def shard_of(key: str, shards: int) -> int:
    """The shard that holds an external key: CRC-32 of its UTF-8, modulo the number of shards."""
    return zlib.crc32(key.encode()) % shards


@dataclass(frozen=True)
class Shard:
    """One shard, decoded. keys[i] is the external key of ids[i]; tensors are row-aligned with ids."""

    ids: Int32
    keys: tuple[str, ...]
    tensors: Mapping[str, npt.NDArray[np.generic]]

    @staticmethod
    def decode(data: bytes, tensors: Sequence[str]) -> Shard:
        """Raises: WireError: not a shard with these tensors."""
        held = read_tensors(data, "a shard of item rows")
        if missing := {"ids", "keys", "key_ends", *tensors} - set(held):
            raise WireError(f"a shard lacks {', '.join(sorted(missing))}")
        text, start, keys = held["keys"].tobytes(), 0, []
        for end in held["key_ends"].tolist():
            keys.append(text[start:end].decode())
            start = end
        ids = held["ids"].astype(np.int32)
        if any(len(held[t]) != len(ids) for t in tensors) or len(keys) != len(ids):
            raise WireError("a shard's tensors are not aligned with its ids")
        return Shard(ids, tuple(keys), {t: held[t] for t in tensors})

    def encode(self) -> Tensors:
        """As tensors for safetensors."""
        text = [k.encode() for k in self.keys]
        return {
            "ids": self.ids,
            "keys": np.frombuffer(b"".join(text), np.uint8),
            "key_ends": np.cumsum([len(t) for t in text], dtype=np.int32) if text else np.zeros(0, np.int32),
            **self.tensors,
        }

    def rows(self, ids: Int32) -> Rows:
        """The rows of those of the given ids (ascending) that this shard holds."""
        mine = np.isin(self.ids, ids)
        return Rows(self.ids[mine], {name: t[mine] for name, t in self.tensors.items()})


@dataclass(frozen=True)
class LocalTable:
    """The rows in use, numbered from 1 in ascending order of their global ids; row 0 is padding.

    ids: int32 [rows], ids[0] == 0. tensors: name -> [rows, ...], float32 weights and int64 attributes, as graphs
    take them.
    """

    ids: Int32
    tensors: Mapping[str, npt.NDArray[np.generic]]

    @staticmethod
    def build(wanted: Int32, parts: Sequence[Rows], padding: Rows) -> LocalTable:
        """Gather rows for the wanted ids from several sources; the first source that has an id wins.

        padding: row 0 as the model was trained with it.

        Raises:
            InputError: an id has no row in any part.
        """
        wanted = np.unique(np.concatenate(([PADDING], wanted))).astype(np.int32)
        found = np.zeros(len(wanted), bool)
        tensors: Tensors = {}
        for part in (padding, *parts):
            at = np.searchsorted(wanted, part.ids)
            fits = (at < len(wanted)) & (wanted[np.minimum(at, len(wanted) - 1)] == part.ids)
            fits[fits] = ~found[at[fits]]
            for name, rows in part.tensors.items():
                if name.startswith(SCALE):
                    continue
                scale = part.tensors.get(SCALE + name)
                kind = np.float32 if is_weight(rows, scale) else np.int64
                target = tensors.setdefault(name, np.zeros((len(wanted), *rows.shape[1:]), kind))
                used = rows[fits]
                target[at[fits]] = used if scale is None else scaled_up(used, scale[fits])
            found[at[fits]] = True
        if not found.all():
            lacking = wanted[~found]
            raise InputError(f"no row is at hand for {len(lacking)} items, among them id {lacking[0]}")
        return LocalTable(wanted, tensors)

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, ids: Int32) -> LocalTable:
        """Only these rows, and padding. Raises: InputError: an id is not in the table."""
        wanted = np.union1d(ids, [PADDING]).astype(np.int32)
        at = self.local(wanted)
        return LocalTable(wanted, {name: tensor[at] for name, tensor in self.tensors.items()})

    def local(self, ids: npt.NDArray[np.integer]) -> Int64:
        """Global ids -> local rows, any shape. Raises: InputError: an id is not in the table."""
        at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        if not (self.ids[at] == ids).all():
            lacking = np.asarray(ids)[self.ids[at] != ids]
            raise InputError(f"{lacking.size} ids are not in the local table, among them {lacking.flat[0]}")
        return at.astype(np.int64)


def features(samples: SampleBatch, tables: Mapping[str, LocalTable]) -> Tensors:
    """A batch's feature tensors as graphs take them: int64 [n], int64 [n, bound] or float32 [n, bound]."""
    tensors: Tensors = {}
    for feature in samples.schema.features:
        column = samples.columns[feature.name]
        if isinstance(column, Ragged):
            tensors[feature.name] = tables[feature.vocabulary].local(column.dense(feature.bound))
        elif feature.kind == "id":
            tensors[feature.name] = tables[feature.vocabulary].local(column.astype(np.int64))
        else:
            tensors[feature.name] = column.astype(np.float32)
    return tensors
