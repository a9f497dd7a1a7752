"""Weights that stay with the engine from step to step: what `Graph.bind` returns.

Every tensor that a graph takes gets one buffer, allocated once. What does not change is checked and copied in once; a
batch is checked and copied in at each step; what the graph carries comes back without passing through Python.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from device_runtime.engines.spec import Array, Arrays, GraphSpec, TensorSpec


class Binding(ABC):
    """A step graph with its weights and optimizer state. One thread at a time.

    Attributes:
        spec: of the graph.
        sizes: of the dimensions that vary, by name.
        buffers: name -> the memory that the engine reads that input from, C-contiguous, ours alone.
    """

    def __init__(self, spec: GraphSpec, values: Arrays) -> None:
        """values: every `param`, `attribute` and `state` tensor of the graph; others are ignored.

        Raises:
            GraphInputError: a tensor is missing, does not fit, or holds nan or inf.
        """
        self.spec = spec
        self._batch = {t.name: t for t in spec.of("feature", "label", "weight", "hyper")}
        kept = spec.of("param", "attribute", "state")
        sizes = spec.check_tensors({t.name: values[t.name] for t in kept if t.name in values}, kept)
        for tensor in kept:
            spec.check_finite(tensor, values[tensor.name])
        self._fixed = sizes
        self._rows = spec.rows(values)
        self.buffers: dict[str, Array] = {t.name: np.array(values[t.name], t.dtype, order="C") for t in kept}
        symbols = {d for t in self._batch.values() for d in t.shape if isinstance(d, str)}
        self._resize({d: spec.bounds[d][0] for d in symbols} | sizes)

    def _resize(self, sizes: dict[str, int]) -> None:
        """Make room for batches of these sizes."""
        self.sizes = sizes
        for tensor in self._batch.values():
            self.buffers[tensor.name] = np.zeros(shape(tensor, sizes), tensor.dtype)
        self._expected = {n: (self.buffers[n].dtype, self.buffers[n].shape) for n in self._batch}
        self._bind()

    def step(self, batch: Arrays) -> dict[str, Array]:
        """Run once: the outputs that are not carried (the loss), as the caller's own arrays.

        batch: features, label, sample weights and scalars, as the spec says. A dimension of theirs that may vary is
        cheapest where it stays the same from step to step.

        Raises:
            GraphInputError: a tensor of the batch does not fit; nothing was run.
            EngineError: the engine failed; the weights are those before the step, or before one of several in a call.
        """
        if batch.keys() != self._expected.keys():
            self.spec.check_names(batch, tuple(self._batch.values()))
        sizes = self.sizes
        if any((a.dtype, a.shape) != self._expected[n] for n, a in batch.items()):
            sizes = self.spec.check_tensors(batch, tuple(self._batch.values()), self._fixed)
        for name, array in batch.items():
            self.spec.check_values(self._batch[name], array, self._rows)
        if sizes is not self.sizes:
            self._resize(sizes)
        for name, array in batch.items():
            np.copyto(self.buffers[name], array)
        return self._run()

    @abstractmethod
    def _bind(self) -> None:
        """Point the engine at the buffers: at first, and whenever those of the batch are others."""

    @abstractmethod
    def values(self) -> dict[str, Array]:
        """Copies of the carried tensors as they are now, under the names of the inputs that they feed."""

    @abstractmethod
    def _run(self) -> dict[str, Array]:
        """Run on the buffers, and let the carried outputs be the next inputs."""


def shape(tensor: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A tensor's shape where the dimensions that vary have these sizes."""
    return tuple(sizes[d] if isinstance(d, str) else d for d in tensor.shape)
