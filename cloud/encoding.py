"""The pool's side of the encoder: the bundle's own graph on ONNX Runtime, over all rows of the catalogue. No torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from device_runtime.bundle import BlobStore, Manifest
from device_runtime.directory import Directory
from device_runtime.engines import Array, open_engine
from device_runtime.errors import InputError
from device_runtime.model import VOCABULARY, Model
from device_runtime.samples import Float32, Int32, SampleBatch
from device_runtime.tables import LocalTable
from device_runtime.wire import Rows


class Encoder:
    """Embeds samples, and knows the row of every item.

    Raises (from the constructor):
        TrustError, StoreError: a blob of the bundle is damaged or missing. EngineError: the graph does not load.
    """

    def __init__(self, manifest: Manifest, blobs: BlobStore, threads: int = 1) -> None:
        self.manifest = manifest
        self._model = Model.open(manifest, open_engine("onnx", threads), blobs)
        shards = [self._model.shard(number) for number in range(len(manifest.tables[VOCABULARY].shards))]
        ids = np.concatenate([shard.ids for shard in shards])
        order = np.argsort(ids)
        self._rows = Rows(
            ids[order],
            {n: np.concatenate([s.tensors[n] for s in shards])[order] for n in manifest.tables[VOCABULARY].tensors},
        )
        self._shards = len(shards)
        self._shard = np.repeat(np.arange(len(shards)), [len(shard.ids) for shard in shards])[order]

    def keys(self) -> dict[str, int]:
        """External key -> global id, of every item of the catalogue."""
        count = len(self.manifest.tables[VOCABULARY].shards)
        shards = [self._model.shard(number) for number in range(count)]
        return {key: int(i) for shard in shards for key, i in zip(shard.keys, shard.ids, strict=True)}

    def encode(self, samples: SampleBatch) -> Float32:
        """Embeddings, float32 [n, width]. Raises: InputError: an id is not in the vocabulary."""
        return self._model.encode(samples, self.table(samples.ids(VOCABULARY)))

    def predict(self, samples: SampleBatch) -> Float32:
        """The cloud model's probability of a like, float32 [n]. Raises: InputError: an id is not in the vocabulary."""
        logits = self._model.logits(samples, self.table(samples.ids(VOCABULARY)), self._model.base)
        return (1 / (1 + np.exp(-np.clip(logits, -30, 30)))).astype(np.float32)

    def table(self, ids: Int32) -> LocalTable:
        """Padding and the rows of those ids (ascending). Raises: InputError: an id is not in the vocabulary."""
        return LocalTable.build(ids, [self._picked(self._at(ids))], self._model.padding)

    @property
    def dense(self) -> Mapping[str, Array]:
        """The weights that are not rows of items, float32."""
        return self._model.base.dense

    @property
    def directory(self) -> Directory | None:
        """The bundle's directory, if it has one."""
        return self._model.directory

    def rows(self, ids: Int32, held: Int32) -> Rows:
        """The rows of those ids (ascending) whose shard is not among `held`."""
        at, lacking = self._at(ids), np.ones(self._shards, bool)
        lacking[held[(held >= 0) & (held < self._shards)]] = False
        return self._picked(at[lacking[self._shard[at]]])

    def _picked(self, at: np.ndarray[tuple[int], np.dtype[np.intp]]) -> Rows:
        return Rows(self._rows.ids[at], {n: t[at] for n, t in self._rows.tensors.items()})

    def _at(self, ids: Int32) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
        at = np.minimum(np.searchsorted(self._rows.ids, ids), len(self._rows.ids) - 1)
        if not (self._rows.ids[at] == ids).all():
            raise InputError(f"id {ids[self._rows.ids[at] != ids][0]} is not in the vocabulary of {VOCABULARY}s")
        return at
