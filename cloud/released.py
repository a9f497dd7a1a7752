"""The model that a server has released, over the vocabulary of another data set: to start from, and to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cloud.encoding import Encoder
from device_runtime.bundle import BlobStore, Manifest
from device_runtime.errors import InputError
from device_runtime.samples import Column, Float32, Int32, Ragged, SampleBatch
from export.models.base import Recommender

_BATCH = 8192


class ReleasedModel:
    """items: external keys of the other data set by its ids, items[0] being padding.

    Raises (from the constructor):
        TrustError, StoreError: a blob of the bundle is damaged or missing. EngineError: the graph does not load.
    """

    def __init__(self, manifest: Manifest, blobs: BlobStore, items: Sequence[str]) -> None:
        self.manifest = manifest
        self._encoder = Encoder(manifest, blobs)
        keys = self._encoder.keys()
        self._theirs: Int32 = np.array([0, *(keys.get(key, 0) for key in items[1:])], np.int32)

    def knows(self, samples: SampleBatch) -> npt.NDArray[np.bool_]:
        """bool [n]: whether the sample's item is in the released vocabulary."""
        item: Any = samples.columns["item"]
        known: npt.NDArray[np.bool_] = self._theirs[item] > 0
        return known

    def predict(self, samples: SampleBatch) -> Float32:
        """Its probability of a like, float32 [n]; items of histories that it does not know are passed over.

        samples: of the other data set, under the manifest's schema, each of an item that it knows.
        """
        columns: dict[str, Column] = {}
        for name, column in samples.columns.items():
            if isinstance(column, Ragged):
                columns[name] = Ragged(self._theirs[column.values], column.starts, column.lengths)
            else:
                columns[name] = self._theirs[column] if name == "item" else column
        theirs = SampleBatch(samples.schema, columns, samples.labels)
        parts = [self._encoder.predict(theirs.take(slice(i, i + _BATCH))) for i in range(0, len(theirs), _BATCH)]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def carried_into(self, model: Recommender, name: str) -> dict[str, Tensor]:
        """The state of a new model of the other data set, with all that the released one has learned: its weights, and
        its rows of the items that it knows. name: the new model's.

        Raises:
            InputError: the two do not fit each other; says why.
        """
        if (self.manifest.model, self.manifest.schema) != (name, model.schema):
            raise InputError(f"the released model is {self.manifest.model}, of other inputs, or with another history")
        state = {n: t.detach().clone() for n, t in model.state_dict().items()}
        whole = {n for n in state if n not in model.sliced}
        if differing := sorted(whole ^ set(self._encoder.dense)):
            raise InputError(f"the released model and the new one do not both have {differing[0]}")
        for n in whole:
            value = torch.from_numpy(np.array(self._encoder.dense[n]))
            if value.shape != state[n].shape:
                raise InputError(f"{n} is {list(value.shape)} in the released model, {list(state[n].shape)} in the new")
            state[n] = value.to(state[n].dtype)
        mine = np.flatnonzero(self._theirs)
        table = self._encoder.table(np.unique(self._theirs[mine]))
        at = table.local(self._theirs[mine])
        for n in model.sliced:
            rows = torch.from_numpy(np.array(table.tensors[n][at]))
            if not state[n].is_floating_point():
                if not torch.equal(state[n][mine], rows.to(state[n].dtype)):
                    raise InputError(f"{n} of items has changed since the release, so its weights mean something else")
                continue
            state[n][mine] = rows.to(state[n].dtype)
        return state
