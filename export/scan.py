"""Several training steps in one call: the step graph as the body of ONNX's standard `Scan`.

The carried tensors are the scan's state, the batches are what it scans, and everything else that a step reads comes
from outside. The number of steps in a call stays free, so no batch of padding is needed, and the file is no larger:
inside a scan no shapes need to be stated.

Three things are done once a call instead of once a step. Dense weights, and each of their optimizer slots, are joined
into one vector before the loop and taken apart after it (`graphs.Joined`). What depends on nothing that changes within
a call, such as how many categories an item has, is computed before the loop. And what depends on the batches alone is
computed for all of them before it, what no later step reads for all of them after it (`stacking`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from device_runtime.engines.spec import BATCH_ROLES, GraphSpec, TensorSpec
from export.graphs import Joined
from export.lowering import Traced, to_onnx, trace
from export.stacking import Stacker

_INNER = "step/"
"""Names inside the body must differ from those outside."""
_ONCE = "once/"
"""Copies of constants that are read outside."""


def scan_steps(traced: Traced) -> bytes:
    """The ONNX graph of `traced.plan.spec.stacked(most)`: any number of such steps, one after another.

    Raises:
        EngineError: an operator has no ONNX form.
    """
    spec, joined = traced.plan.spec, traced.plan.joined
    step = trace(joined.plan) if joined else traced
    inner = step.plan.spec
    model = onnx.load_from_string(to_onnx(step))
    graph = model.graph
    carried = list(inner.carry.values())
    scanned = [t.name for t in inner.inputs if t.role in BATCH_ROLES]
    given = {value.name: value for value in graph.input}
    per_step = [t.name for t in inner.outputs if t.name not in inner.carry]
    once, looped = _apart(graph, {name for name in given if name not in (*carried, *scanned)})
    constants = {c.name: _ONCE + c.name for c in graph.initializer}
    ahead = Stacker(model, scanned)
    looped = _ahead(ahead, looped, constants, {n for node in once for n in node.output} | set(given) - set(carried))
    behind = Stacker(model, ahead.stacked)
    looped = _behind(behind, looped, constants, inner)

    made = {name for node in looped for name in node.output}
    read = {name for node in looped for name in node.input}
    scanned = [name for name in (*scanned, *(n for node in ahead.nodes for n in node.output)) if name in read]
    shown = [name for name in per_step if name in made]
    shown += sorted({n for node in behind.nodes for n in node.input if n in made} - set(shown))
    renamed = {name: _INNER + name for name in (*carried, *scanned, *inner.carry, *shown)}

    body = onnx.GraphProto(name="step")
    body.input.extend(onnx.ValueInfoProto(name=_INNER + name) for name in (*carried, *scanned))
    body.output.extend(onnx.ValueInfoProto(name=_INNER + name) for name in (*inner.carry, *shown))
    body.initializer.extend(_read_by(looped, graph.initializer))
    body.node.extend(_rewired(node, renamed) for node in looped)

    outer = onnx.GraphProto(name=graph.name)
    stacked = spec.stacked(1)
    outer.input.extend(_value(t) for t in stacked.inputs)
    outer.output.extend(_value(t) for t in stacked.outputs)
    outer.node.extend(_rewired(node, constants) for node in once)
    outer.node.extend(ahead.nodes)
    outside = {name for node in (*once, *ahead.nodes, *behind.nodes) for name in node.input}
    outer.initializer.extend(
        _renamed(c, constants[c.name]) for c in graph.initializer if {c.name, constants[c.name]} & outside
    )
    outer.initializer.extend((*ahead.constants, *behind.constants))
    if joined:
        _join(outer, joined)
    outer.node.append(
        helper.make_node("Scan", [*carried, *scanned], [*inner.carry, *shown], body=body, num_scan_inputs=len(scanned))
    )
    outer.node.extend(behind.nodes)
    if joined:
        _take_apart(outer, joined, inner)
    made = helper.make_model(outer, opset_imports=model.opset_import, ir_version=model.ir_version)
    return bytes(made.SerializeToString())


def _apart(graph: onnx.GraphProto, fixed: set[str]) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """(nodes that give the same at every step, the others). fixed: inputs that stay as they are."""
    known = fixed | {constant.name for constant in graph.initializer} | {""}
    results = {value.name for value in graph.output}
    once, looped = [], []
    for node in graph.node:
        if known.issuperset(node.input) and not results.intersection(node.output):
            known.update(node.output)
            once.append(node)
        else:
            looped.append(node)
    return once, looped


def _ahead(
    stacker: Stacker, nodes: Sequence[onnx.NodeProto], constants: Mapping[str, str], known: set[str]
) -> list[onnx.NodeProto]:
    """Write what depends on nothing but batches, and on what is known before the loop; the nodes that are left."""
    known = known | set(constants) | {""}
    rest = []
    for node in nodes:
        if known.issuperset(node.input) and stacker.can(node):
            stacker.add(node, constants)
            known.update(node.output)
        else:
            rest.append(node)
    return rest


def _behind(
    stacker: Stacker, nodes: Sequence[onnx.NodeProto], constants: Mapping[str, str], inner: GraphSpec
) -> list[onnx.NodeProto]:
    """Write what no later step reads, where the loop has only vectors to hand over for it; the nodes that are left."""
    wanted, moves = set(inner.carry), {*inner.carry, *inner.carry.values()}
    moved, rest = [], []
    for node in reversed(nodes):
        vectors = all((stacker.rank(n) or 0) < 2 for n in node.input if n)
        if wanted.isdisjoint(node.output) and moves.isdisjoint(node.input) and vectors and stacker.can(node):
            moved.append(node)
        else:
            rest.append(node)
            wanted.update(node.input)
    stacker.stacked.update(name for node in rest for name in node.output)
    for node in reversed(moved):
        stacker.add(node, constants)
    return rest[::-1]


def _join(outer: onnx.GraphProto, joined: Joined) -> None:
    """Each vector out of its tensors."""
    flat = _constant(outer, "flat", [-1])
    shapes = dict(joined.members)
    for vector, tensors in joined.vectors().items():
        parts = []
        for name in tensors:
            if len(shapes[name.rpartition(":")[2]]) == 1:
                parts.append(name)
            else:
                parts.append(f"flat/{name}")
                outer.node.append(helper.make_node("Reshape", [name, flat], [parts[-1]]))
        outer.node.append(helper.make_node("Concat", parts, [vector], axis=0))


def _take_apart(outer: onnx.GraphProto, joined: Joined, inner: GraphSpec) -> None:
    """The tensors out of each vector that the scan gives."""
    gives = {taken: given for given, taken in inner.carry.items()}
    sizes = _constant(outer, "sizes", [math.prod(shape) for _, shape in joined.members])
    for vector, tensors in joined.vectors().items():
        parts, reshapes = [], []
        for name, (member, shape) in zip(tensors, joined.members, strict=True):
            parts.append(f"new:{name}" if len(shape) == 1 else f"flat/new:{name}")
            if len(shape) != 1:
                wanted = _constant(outer, f"shape/{member}", list(shape))
                reshapes.append(helper.make_node("Reshape", [parts[-1], wanted], [f"new:{name}"]))
        outer.node.append(helper.make_node("Split", [gives[vector], sizes], parts, axis=0))
        outer.node.extend(reshapes)


def _constant(graph: onnx.GraphProto, name: str, values: Sequence[int]) -> str:
    if name not in {constant.name for constant in graph.initializer}:
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    return name


def _read_by(nodes: Iterable[onnx.NodeProto], constants: Iterable[onnx.TensorProto]) -> list[onnx.TensorProto]:
    read = {name for node in nodes for name in node.input}
    return [constant for constant in constants if constant.name in read]


def _renamed(constant: onnx.TensorProto, name: str) -> onnx.TensorProto:
    copy = onnx.TensorProto()
    copy.CopyFrom(constant)
    copy.name = name
    return copy


def _rewired(node: onnx.NodeProto, renamed: Mapping[str, str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for names in (copy.input, copy.output):
        names[:] = [renamed.get(name, name) for name in names]
    return copy


def _value(tensor: TensorSpec) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return helper.make_tensor_value_info(tensor.name, kind, tensor.shape)
