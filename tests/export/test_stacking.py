"""Nodes of one step that work on all steps of a call: the same numbers as step by step."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.stacking import Stacker

STEPS, BATCH, PLACES = 3, 4, 5


def constant(name, values, dtype=np.int64):
    return numpy_helper.from_array(np.array(values, dtype), name)


NODE = helper.make_node
CONSTANTS = [
    constant("half", 0.5, np.float32),
    constant("vector", [1, 2, 3, 4, 5], np.float32),
    constant("first", [0]),
    constant("last", [-1]),
    constant("flat", [-1]),
    constant("turned", [5, 4]),
]
CASES = {
    "a number with each": [NODE("Mul", ["x", "half"], ["y"])],
    "a vector with each row": [NODE("Add", ["vector", "x"], ["y"])],
    "shares of a sum": [NODE("ReduceSum", ["w"], ["s"], keepdims=0), NODE("Div", ["w", "s"], ["y"])],
    "a row's sum": [NODE("ReduceSum", ["x", "last"], ["y"], keepdims=1)],
    "a column's largest": [NODE("ReduceMax", ["x", "first"], ["y"], keepdims=0)],
    "a weight for each row": [NODE("Unsqueeze", ["w", "last"], ["u"]), NODE("Mul", ["x", "u"], ["y"])],
    "weights for each column": [NODE("Unsqueeze", ["w", "first"], ["u"]), NODE("Squeeze", ["u", "first"], ["y"])],
    "one long vector": [NODE("Reshape", ["x", "flat"], ["y"])],
    "another shape": [NODE("Reshape", ["x", "turned"], ["y"])],
    "with bounds": [NODE("Clip", ["x", "", "half"], ["y"])],
}


def run(nodes, constants, x, w):
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, a.shape) for name, a in (("x", x), ("w", w))],
        [onnx.ValueInfoProto(name="y")],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return model, session.run(["y"], {"x": x, "w": w})[0]


@pytest.mark.parametrize("name", CASES)
def test_all_steps_at_once_give_what_each_gives(name, rng):
    x = rng.normal(size=(STEPS, BATCH, PLACES)).astype(np.float32)
    w = rng.random((STEPS, BATCH)).astype(np.float32)
    alone = [run(CASES[name], CONSTANTS, *step) for step in zip(x, w, strict=True)]
    stacker = Stacker(alone[0][0], ["x", "w"])
    for node in CASES[name]:
        assert stacker.can(node)
        stacker.add(node, {})
    _, together = run(stacker.nodes, [*CONSTANTS, *stacker.constants], x, w)
    np.testing.assert_allclose(together, np.stack([y for _, y in alone]), rtol=1e-6)


@pytest.mark.parametrize(
    "node",
    [
        NODE("MatMul", ["x", "vector"], ["y"]),
        NODE("Softmax", ["x"], ["y"]),
        NODE("Reshape", ["x", "copied"], ["y"]),
        NODE("Reshape", ["x", "w"], ["y"]),
    ],
    ids=["a product", "a softmax", "a shape that copies a dimension", "a shape that is not known"],
)
def test_other_nodes_stay_in_the_loop(node):
    given = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2] * d) for n, d in (("x", 2), ("w", 1), ("y", 2))]
    graph = helper.make_graph([node], "test", given[:2], given[2:], [*CONSTANTS, constant("copied", [0, -1])])
    assert not Stacker(helper.make_model(graph), ["x"]).can(node)
