"""A bundle opened on an engine: graphs, base weights, and the rows at hand. What rounds and ranking compute with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from device_runtime import directory
from device_runtime.bundle import BlobStore, Manifest, read_tensors, write_atomically
from device_runtime.directory import Directory
from device_runtime.engines import Array, Engine, Graph
from device_runtime.engines.spec import GraphSpec
from device_runtime.errors import EngineError, InputError, StoreError
from device_runtime.quantized import widened
from device_runtime.samples import Float32, Int32, SampleBatch
from device_runtime.tables import TOGETHER, LocalTable, Shard, features, shard_of
from device_runtime.trainer import scores
from device_runtime.wire import Rows

VOCABULARY = "item"
"""The vocabulary whose rows are sliced and sent in shards."""
TASTE = "taste"
"""The tensor of item rows that no graph takes: see `candidates`. A bundle need not have it."""


@dataclass(frozen=True)
class Weights:
    """Recommender weights: the bundle's own, or a personal version.

    dense: unsliced tensors by name, float32; of a personal version, those that its device trained. rows: rows of sliced
    parameters that differ from the bundle's; its tensors are float32. version: "base", or the name of the personal
    version.
    """

    dense: Mapping[str, Array]
    rows: Rows | None = None
    version: str = "base"

    def tensors(self) -> dict[str, Array]:
        """As one flat dictionary, for safetensors."""
        flat = dict(self.dense)
        if self.rows is not None:
            flat |= {f"rows:{name}": value for name, value in self.rows.tensors.items()} | {"rows": self.rows.ids}
        return flat

    def followed_by(self, later: Weights) -> Weights:
        """What these have become: the later ones, and those personal rows that they did not move again."""
        if self.rows is None or later.rows is None:
            return Weights(later.dense, later.rows or self.rows, later.version)
        still = ~np.isin(self.rows.ids, later.rows.ids)
        ids = np.concatenate([self.rows.ids[still], later.rows.ids])
        order = np.argsort(ids)
        tensors = {
            name: np.concatenate([self.rows.tensors[name][still], rows])[order]
            for name, rows in later.rows.tensors.items()
        }
        return Weights(later.dense, Rows(ids[order], tensors), later.version)

    @staticmethod
    def from_tensors(flat: Mapping[str, Array], version: str) -> Weights:
        dense = {n: v for n, v in flat.items() if n != "rows" and not n.startswith("rows:")}
        if "rows" not in flat:
            return Weights(dense, None, version)
        rows = {n.removeprefix("rows:"): v for n, v in flat.items() if n.startswith("rows:")}
        return Weights(dense, Rows(flat["rows"].astype(np.int32), rows), version)


@dataclass
class Model:
    """An opened bundle. directory: None where it has none.

    Raises (from `open`):
        InputError, WireError: a tensor is missing, or is not what it should be.
        TrustError: a blob is not the one that the manifest names. StoreError: a blob is missing.
        EngineError: the engine cannot load a graph.
    """

    manifest: Manifest
    engine: Engine
    blobs: BlobStore
    base: Weights
    classifier: Mapping[str, Array]
    padding: Rows
    directory: Directory | None = None
    _graphs: dict[str, Graph] = field(default_factory=dict)
    _shards: dict[int, Shard] = field(default_factory=dict)

    @classmethod
    def open(cls, manifest: Manifest, engine: Engine, blobs: BlobStore) -> Model:
        weights = read_tensors(blobs.read(manifest.weights), "the bundle's weights")
        sliced = manifest.tables[VOCABULARY].tensors
        if missing := [n for n in sliced if f"padding:{n}" not in weights]:
            raise InputError(f"the bundle's weights lack the padding row of {', '.join(missing)}")
        padding = Rows(np.zeros(1, np.int32), {n: weights.pop(f"padding:{n}") for n in sliced})
        stored = weights.pop(directory.TENSOR, None)
        if stored is None and manifest.settings.matching == "directory":
            raise InputError("the bundle asks for matching by directory, and has none; it must be exported again")
        parts = None if stored is None else Directory.of(stored, manifest.width)
        classifier = read_tensors(blobs.read(manifest.classifier), "the bundle's classifier")
        return cls(manifest, engine, blobs, Weights(widened(weights)), classifier, padding, parts)

    def graph(self, name: str) -> Graph:
        """A graph, loaded at first use."""
        if name not in self._graphs:
            entry = self.manifest.graphs[name]
            if self.engine.format not in entry.files:
                raise EngineError(f"the bundle has no {self.engine.format} file for the graph {name!r}")
            path = self._unpacked(name, entry.files[self.engine.format].file.sha256)
            self._graphs[name] = self.engine.load(path, entry.spec_of(self.engine.format))
        return self._graphs[name]

    def _unpacked(self, name: str, sha256: str) -> Path:
        """Engines load from files; the decompressed graph lies beside its blob."""
        path = self.blobs.folder / "unpacked" / sha256
        ref = self.manifest.graphs[name].files[self.engine.format].file
        if not path.exists() or path.stat().st_size != ref.raw_size:
            write_atomically(path, self.blobs.read(ref))
        return path

    def spec(self, name: str) -> GraphSpec:
        return self.manifest.graphs[name].spec

    # -- rows ---------------------------------------------------------------------------------------------------

    def shards_for(self, keys: Iterable[str]) -> list[int]:
        """The shards that would hold these external keys, ascending."""
        count = len(self.manifest.tables[VOCABULARY].shards)
        return sorted({shard_of(key, count) for key in keys})

    def held(self) -> list[int]:
        """The shards that are on this device."""
        shards = self.manifest.tables[VOCABULARY].shards
        return [i for i, ref in enumerate(shards) if self.blobs.has(ref)]

    def shard(self, number: int) -> Shard:
        """Raises: StoreError: it has not been pulled."""
        if number not in self._shards:
            table = self.manifest.tables[VOCABULARY]
            if not self.blobs.has(table.shards[number]):
                raise StoreError(f"shard {number} of the item rows is not on this device; run a round to pull it")
            self._shards[number] = Shard.decode(self.blobs.read(table.shards[number]), table.tensors)
        return self._shards[number]

    def ids_of(self, keys: Sequence[str]) -> dict[str, int]:
        """External key -> global id, for those keys that the catalogue knows; their shards must be held."""
        found: dict[str, int] = {}
        wanted = set(keys)
        for number in self.shards_for(wanted):
            shard = self.shard(number)
            found |= {key: int(i) for key, i in zip(shard.keys, shard.ids, strict=True) if key in wanted}
        return found

    def table(self, ids: Int32, weights: Weights, extra: Rows | None = None) -> LocalTable:
        """The local table for these global ids: personal rows first, then `extra` (from an answer), then shards.

        Raises:
            InputError: an id has no row at hand.
        """
        parts = []
        if weights.rows is not None:
            parts.append(self._with_attributes(weights.rows, extra))
        if extra is not None:
            parts.append(extra)
        parts.extend(self.shard(number).rows(ids) for number in self.held())
        return LocalTable.build(ids, parts, self.padding)

    def _with_attributes(self, rows: Rows, extra: Rows | None) -> Rows:
        """Personal rows carry weights only; the integer attributes of their items come from where the base rows do."""
        parts = [self.shard(number).rows(rows.ids) for number in self.held()]
        base = LocalTable.build(
            np.intersect1d(rows.ids, np.concatenate([p.ids for p in (*parts, *([extra] if extra else []))])),
            [*parts, *([extra] if extra else [])],
            self.padding,
        )
        known = np.isin(rows.ids, base.ids[1:])
        ids = rows.ids[known]
        tensors = {n: base.tensors[n][base.local(ids)] for n in base.tensors}
        return Rows(ids, tensors | {n: value[known] for n, value in rows.tensors.items()})

    # -- computing ----------------------------------------------------------------------------------------------

    def values(self, graph: str, weights: Weights, table: LocalTable) -> dict[str, Array]:
        """The params and attributes that a graph takes."""
        held = {**self.base.dense, **weights.dense, **table.tensors}
        return {t.name: held[t.name] for t in self.spec(graph).of("param", "attribute")}

    def encode(self, samples: SampleBatch, table: LocalTable) -> Float32:
        """Embeddings, float32 [n, width], by the base weights: a personal encoder would not match the pool's."""
        return self._scores("encode", samples, table, self.base)

    def logits(self, samples: SampleBatch, table: LocalTable, weights: Weights) -> Float32:
        """float32 [n]."""
        return self._scores("score", samples, table, weights)

    def _scores(self, graph: str, samples: SampleBatch, table: LocalTable, weights: Weights) -> Float32:
        """Graphs work out something of every row that they are given, so each part of the samples comes with its own
        rows."""
        found = []
        for start in range(0, max(len(samples), 1), TOGETHER):
            part = samples.take(slice(start, start + TOGETHER))
            rows = table.of(part.ids(VOCABULARY))
            values = self.values(graph, weights, rows)
            found.append(scores(self.graph(graph), values, features(part, {VOCABULARY: rows})))
        return np.concatenate(found)


def personal_table(table: LocalTable, weights: Weights) -> LocalTable:
    """A table of base rows with those of the personal rows that it has laid over it."""
    if weights.rows is None:
        return table
    used = np.isin(weights.rows.ids, table.ids)
    at = table.local(weights.rows.ids[used])
    tensors = dict(table.tensors)
    for name, rows in weights.rows.tensors.items():
        tensors[name] = tensors[name].copy()
        tensors[name][at] = rows[used]
    return LocalTable(table.ids, tensors)
