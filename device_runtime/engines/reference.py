"""The ONNX standard's own evaluator, in NumPy: slow, but it installs wherever NumPy does, and is an oracle in tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from device_runtime.engines.binding import Binding, Room
from device_runtime.engines.spec import Array, Arrays, GraphSpec
from device_runtime.errors import EngineError, EngineUnavailable

if TYPE_CHECKING:
    from onnx.reference import ReferenceEvaluator


class ReferenceGraph:
    def __init__(self, evaluator: ReferenceEvaluator, spec: GraphSpec) -> None:
        self.spec = spec
        self._evaluator = evaluator
        self._outputs = [t.name for t in spec.outputs]

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        self.spec.check(inputs)
        return self.evaluate(inputs)

    def evaluate(self, inputs: Arrays) -> dict[str, Array]:
        """Run without looking at the inputs. Raises: EngineError."""
        try:
            with np.errstate(all="ignore"):  # engines give inf and nan silently; so does this one
                results = self._evaluator.run(self._outputs, dict(inputs))
        except Exception as error:  # every operator raises what it likes
            raise EngineError(f"the reference evaluator failed while running the graph: {error}") from None
        # copies: some operators return views of what they are given
        return {t.name: np.array(result, t.dtype) for t, result in zip(self.spec.outputs, results, strict=True)}

    def bind(self, values: Arrays) -> ReferenceBinding:
        return ReferenceBinding(self, values)


class ReferenceBinding(Binding):
    def __init__(self, graph: ReferenceGraph, values: Arrays) -> None:
        super().__init__(graph.spec, values)
        self.graph = graph

    def _room(self, sizes: Mapping[str, int]) -> ReferenceRoom:
        return ReferenceRoom(self, sizes)

    def values(self) -> dict[str, Array]:
        return {name: self.buffers[name].copy() for name in self.spec.carry.values()}


class ReferenceRoom(Room):
    def __init__(self, binding: ReferenceBinding, sizes: Mapping[str, int]) -> None:
        super().__init__(binding.spec, sizes)
        self._binding = binding

    def run(self) -> None:
        binding = self._binding
        results = binding.graph.evaluate({**binding.buffers, **self.buffers})
        for given, taken in binding.spec.carry.items():
            binding.buffers[taken] = results.pop(given)
        self.results = results


class ReferenceEngine:
    """name, version, format: see `Engine`. It computes in one thread, whatever NumPy's own library does."""

    name = "reference"
    format = "onnx"

    def __init__(self) -> None:
        try:
            import onnx
            from onnx.reference import ReferenceEvaluator
        except ImportError as error:
            raise EngineUnavailable(f"onnx does not import ({error}): pip install 'coda-loop[reference]'") from None
        self.version: str = onnx.__version__
        self._opset: int = onnx.defs.onnx_opset_version()
        self._evaluator = ReferenceEvaluator

    def load(self, path: Path, spec: GraphSpec) -> ReferenceGraph:
        try:
            evaluator = self._evaluator(str(path))
            opset = evaluator.opsets.get("", 0)
            names = {*evaluator.input_names}, {*evaluator.output_names}
        except Exception as error:  # protobuf's and onnx's errors share no base but this
            raise EngineError(f"onnx {self.version} cannot load {path.name}: {str(error)[:300]}") from None
        if opset > self._opset:
            raise EngineError(
                f"onnx {self.version} cannot load {path.name}: it is of opset {opset}, at most {self._opset} is known"
            )
        if names != ({t.name for t in spec.inputs}, {t.name for t in spec.outputs}):
            raise EngineError(f"the tensors of {path.name} are not those that the manifest names")
        return ReferenceGraph(evaluator, spec)


def create(threads: int, cache: Path | None = None) -> ReferenceEngine:
    """threads, cache: not needed.

    Raises:
        EngineUnavailable: the package `onnx` is not installed.
    """
    return ReferenceEngine()
