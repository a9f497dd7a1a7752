"""ONNX nodes of one training step, made to compute the same for all steps of a call at once.

Inside a loop a node is started once a step, outside of it once a call. What depends on the batch alone (masks, shares
of the samples, indices) can be computed before the loop, and what no later step reads (the loss) after it, on tensors
that have the steps as their first dimension. That holds for nodes that work on each number by itself, give tensors
another shape, or add up; all others stay in the loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

_EACH = {
    *("Abs", "Add", "And", "Cast", "Clip", "Div", "Equal", "Exp", "Greater", "GreaterOrEqual", "HardSigmoid", "Less"),
    *("LessOrEqual", "Log", "Max", "Min", "Mul", "Neg", "Not", "Or", "Reciprocal", "Relu", "Sigmoid", "Sqrt", "Sub"),
}
_SUMS = {"ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare"}
_AXES = {"Squeeze", "Unsqueeze"}


class Stacker:
    """Writes nodes of a step so that they work on stacked tensors.

    nodes, constants: what it has written. stacked: names of the tensors that have the steps as their first dimension.
    """

    def __init__(self, model: onnx.ModelProto, stacked: Iterable[str]) -> None:
        """model: of one step. stacked: its inputs that are stacked outside of the loop."""
        graph = onnx.shape_inference.infer_shapes(model).graph
        values = (*graph.input, *graph.value_info, *graph.output)
        self._ranks = {
            v.name: len(v.type.tensor_type.shape.dim) for v in values if v.type.tensor_type.HasField("shape")
        }
        self._values = {c.name: numpy_helper.to_array(c) for c in graph.initializer}
        self._ranks |= {name: value.ndim for name, value in self._values.items()}
        self.stacked = set(stacked)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def rank(self, name: str) -> int | None:
        """How many dimensions a tensor of one step has; None where the model does not say."""
        return self._ranks.get(name)

    def can(self, node: onnx.NodeProto) -> bool:
        """Whether this node can work on stacked tensors."""
        if node.domain or any(self.rank(n) is None for n in (*node.input, *node.output) if n):
            return False
        if node.op_type in _EACH:
            return True
        if node.op_type in _SUMS:
            return bool(self.rank(node.input[0])) and all(n in self._values for n in node.input[1:])
        if node.op_type in _AXES:
            return len(node.input) == 2 and node.input[1] in self._values
        target = self._values.get(node.input[1]) if node.op_type == "Reshape" else None
        return target is not None and 0 not in target

    def add(self, node: onnx.NodeProto, constants: Mapping[str, str]) -> None:
        """Write it. constants: what those that it reads are called outside of the loop."""
        new = onnx.NodeProto()
        new.CopyFrom(node)
        if node.op_type in _EACH:
            whole = max(self._ranks[n] for n in node.input if n)
            new.input[:] = [self._raised(n, whole) if n in self.stacked else constants.get(n, n) for n in node.input]
        elif node.op_type == "Reshape":
            new.input[1] = self._constant(node, [0, *self._values[node.input[1]]])
            del new.attribute[:]  # a 0 takes over the number of steps
        else:
            given = self._values[node.input[1]].ravel() if len(node.input) > 1 else ()
            every = range(self._ranks[node.input[0]]) if node.op_type in _SUMS else ()
            shifted = [int(a) + 1 if a >= 0 else int(a) for a in (given if len(given) else every)]
            new.input[:] = [node.input[0], self._constant(node, shifted)]
        self.nodes.append(new)
        self.stacked.update(node.output)

    def _raised(self, name: str, whole: int) -> str:
        """With dimensions of size 1 behind the steps, so that it meets a tensor of so many as in one step."""
        lacking = whole - self._ranks[name]
        if not lacking:
            return name
        raised = f"steps/{name}/{whole}"
        if raised not in self.stacked:
            self.stacked.add(raised)
            axes = self._constant(None, range(1, 1 + lacking), raised)
            self.nodes.append(helper.make_node("Unsqueeze", [name, axes], [raised]))
        return raised

    def _constant(self, node: onnx.NodeProto | None, values: Iterable[Any], name: str = "") -> str:
        name = f"steps/{node.output[0] if node else name}/shape"
        self.constants.append(numpy_helper.from_array(np.array([int(v) for v in values], np.int64), name))
        return name
