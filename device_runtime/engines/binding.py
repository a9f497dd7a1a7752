"""Weights that stay with the engine from step to step: what `Graph.bind` returns.

Every tensor that a graph takes gets a buffer, allocated once, or once for each size of a batch. What does not change is
checked and copied in once; a batch is checked and copied in at each step; what the graph carries comes back without
passing through Python.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from device_runtime.engines.spec import BATCH_ROLES, Array, Arrays, GraphSpec, TensorSpec

KEPT = 3
"""Sizes of batches that memory is kept for: an epoch has calls of as many steps as may be, one of the other steps, and
one of the samples that are left."""


class Room(ABC):
    """Memory for batches of one size, and how the engine is pointed at it.

    buffers: name -> the memory that the engine reads that part of a batch from. results: output that is not carried ->
    the memory that the engine writes it to.
    """

    def __init__(self, spec: GraphSpec, sizes: Mapping[str, int]) -> None:
        batch = spec.of(*BATCH_ROLES, "hyper")
        self.sizes = dict(sizes)
        self.buffers: dict[str, Array] = {t.name: np.zeros(shape(t, sizes), t.dtype) for t in batch}
        self.results: dict[str, Array] = {
            t.name: np.zeros(shape(t, sizes), t.dtype) for t in spec.outputs if t.name not in spec.carry
        }
        self._expected = {n: (a.dtype, a.shape) for n, a in self.buffers.items()}

    def fits(self, batch: Arrays) -> bool:
        """Whether these are arrays of the names, dtypes and shapes that it has memory for."""
        return {n: (a.dtype, a.shape) for n, a in batch.items()} == self._expected

    @abstractmethod
    def run(self) -> None:
        """Run on the buffers, and let the carried outputs be the next inputs."""


class Binding(ABC):
    """A step graph with its weights and optimizer state. One thread at a time.

    Attributes:
        spec: of the graph.
        buffers: name -> the memory that the engine reads that weight or state from, C-contiguous, ours alone.
    """

    def __init__(self, spec: GraphSpec, values: Arrays) -> None:
        """values: every `param`, `attribute` and `state` tensor of the graph; others are ignored.

        Raises:
            GraphInputError: a tensor is missing, does not fit, or holds nan or inf.
        """
        self.spec = spec
        self._batch = {t.name: t for t in spec.of(*BATCH_ROLES, "hyper")}
        kept = spec.of("param", "attribute", "state")
        self._fixed = spec.check_tensors({t.name: values[t.name] for t in kept if t.name in values}, kept)
        for tensor in kept:
            spec.check_finite(tensor, values[tensor.name])
        self._rows = spec.rows(values)
        self.buffers: dict[str, Array] = {t.name: np.array(values[t.name], t.dtype, order="C") for t in kept}
        self._rooms: list[Room] = []

    def step(self, batch: Arrays) -> dict[str, Array]:
        """Run once: the outputs that are not carried (the loss), as the caller's own arrays.

        batch: features, label, sample weights and scalars, as the spec says. Dimensions of theirs that may vary are
        cheapest where they take few sizes in turn.

        Raises:
            GraphInputError: a tensor of the batch does not fit; nothing was run.
            EngineError: the engine failed; the weights are those before the step, or before one of several in a call.
        """
        room = next((room for room in self._rooms if room.fits(batch)), None)
        sizes: dict[str, int] = {}
        if room is None:
            self.spec.check_names(batch, tuple(self._batch.values()))
            sizes = self.spec.check_tensors(batch, tuple(self._batch.values()), self._fixed)
        for name, array in batch.items():
            self.spec.check_values(self._batch[name], array, self._rows)
        if room is None:
            room = self._room(sizes)
            self._rooms = [room, *self._rooms[: KEPT - 1]]
        for name, array in batch.items():
            np.copyto(room.buffers[name], array)
        room.run()
        return {name: array.copy() for name, array in room.results.items()}

    @abstractmethod
    def _room(self, sizes: Mapping[str, int]) -> Room:
        """Memory for batches of these sizes."""

    @abstractmethod
    def values(self) -> dict[str, Array]:
        """Copies of the carried tensors as they are now, under the names of the inputs that they feed."""


def shape(tensor: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A tensor's shape where the dimensions that vary have these sizes."""
    return tuple(sizes[d] if isinstance(d, str) else d for d in tensor.shape)
