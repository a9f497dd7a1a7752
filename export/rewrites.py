"""Rewrites that make a traced step smaller and faster without changing what it computes.

Autodiff writes gradients as a person would not: sums that keep a dimension only to drop it, weights transposed twice,
each gradient scaled once by the clip and once by the rate. The first group works on core ATen operators, before either
lowering; the second makes room for XNNPACK; the third works on ONNX nodes, where one operator does what two do in ATen.
Every graph passes the parity check after them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import onnx
import torch
from onnx import helper, numpy_helper
from torch.export import ExportedProgram
from torch.fx import Node

aten = torch.ops.aten

HUGE = 1e38
"""Times the least normal float32 this is above 1, so `clamp(x * HUGE, 0, 1)` is `x > 0` for every normal x."""


STEEP = 1e20
"""The slope of a rectifier is 1 from 1 / this on, in ONNX; times any output of a model it does not overflow."""


def simplify(program: ExportedProgram) -> ExportedProgram:
    """The program with the rewrites that every engine gains from, in place."""
    passes = (_join_permutes, _turned_vector, _drop_summed_dimension, _join_scales, _join_scatters, _share, _rectifier)
    _apply(program, passes)
    return program


def for_xnnpack(program: ExportedProgram) -> ExportedProgram:
    """The program with operators that XNNPACK has in place of those that would cut its partitions, in place."""
    _apply(program, (_step_function, _biased_product, _matrix_product, _sum_as_product, _reshape, _share))
    return program


def onnx_slopes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Cast(Greater(y, 0)) of a rectifier's output: HardSigmoid(y), one pass in place of two, in place."""
    makers = {name: node for node in model.graph.node for name in node.output}
    readers = Counter(name for node in model.graph.node for name in node.input)
    zeros = {c.name for c in model.graph.initializer if not numpy_helper.to_array(c).any()}
    for cast in list(model.graph.node):
        greater = makers.get(cast.input[0]) if cast.op_type == "Cast" else None
        if greater is None or greater.op_type != "Greater" or readers[cast.input[0]] > 1:
            continue
        rectifier = makers.get(greater.input[0])
        if rectifier is None or rectifier.op_type != "Relu" or greater.input[1] not in zeros:
            continue
        slope = helper.make_node("HardSigmoid", greater.input[:1], cast.output, cast.name, alpha=STEEP, beta=0.0)
        cast.CopyFrom(slope)
        model.graph.node.remove(greater)
    return model


def _apply(program: ExportedProgram, passes: Iterable[Callable[[Node], Node | None]]) -> None:
    graph = program.graph_module.graph
    for rewrite in passes:
        seen: dict[object, Node] = {}
        for node in list(graph.nodes):
            if node.op != "call_function" or any(user.op == "output" for user in node.users):
                continue  # outputs keep their names, which the program's signature lists
            if rewrite is _share:
                new = seen.setdefault(_key(node), node)
            else:
                with graph.inserting_before(node):
                    new = rewrite(node) or node
            if new is not node:
                node.replace_all_uses_with(new)
                graph.erase_node(node)
    graph.eliminate_dead_code()
    graph.lint()
    program.graph_module.recompile()


def _call(graph: torch.fx.Graph, target: Any, *args: Any) -> Node:
    """A new node that knows the shape and dtype of its result, as the lowerings expect."""
    node = graph.call_function(target, args)
    values = torch.fx.node.map_arg(args, lambda n: n.meta["val"])
    found = [v for v in args if isinstance(v, Node)]
    with found[0].meta["val"].fake_mode:
        node.meta["val"] = target(*values)
    return node


def _key(node: Node) -> object:
    """Equal for nodes that compute the same."""
    return (node.target, repr(node.args), repr(sorted(node.kwargs.items())))


def _share(node: Node) -> Node | None:
    """The same operator on the same inputs is computed once (done in `_apply`, which remembers what it has seen)."""
    return None


def _join_permutes(node: Node) -> Node | None:
    """permute(permute(x)): one, or none."""
    if node.target is not aten.permute.default or not _is(node.args[0], aten.permute.default):
        return None
    inner: Any = node.args[0]
    outer: Any = node.args[1]
    order = [inner.args[1][d] for d in outer]
    source: Node = inner.args[0]
    if order == sorted(order):
        return source
    return _call(node.graph, aten.permute.default, source, order)


def _turned_vector(node: Node) -> Node | None:
    """permute(x) that moves only dimensions of size 1: view(x). A product with it is then one of plain matrices, which
    ONNX Runtime multiplies three times as fast as a vector that is turned on the way."""
    if node.target is not aten.permute.default:
        return None
    source: Any = node.args[0]
    order: Any = node.args[1]
    shape, result = source.meta["val"].shape, list(node.meta["val"].shape)
    if not all(isinstance(n, int) for n in result):
        return None
    kept = [d % len(shape) for d in order if shape[d] != 1]
    return _call(node.graph, aten.view.default, source, result) if kept == sorted(kept) else None


def _rectifier(node: Node) -> Node | None:
    """x * float(x > 0): relu(x), and the backward's float(x > 0) is read off it, so that x need not be kept."""
    if node.target is not aten.mul.Tensor:
        return None
    x: Any = node.args[0]
    slope: Any = node.args[1]
    compared: Any = slope.args[0] if _is(slope, aten._to_copy.default) else None
    if not _is(compared, aten.gt.Scalar) or compared.args[0] is not x or compared.args[1] != 0:
        return None
    with node.graph.inserting_before(compared):
        y = _call(node.graph, aten.relu.default, x)
    compared.args = (y, 0)
    return y


def _join_scatters(node: Node) -> Node | None:
    """index_put(zeros, i, a) + index_put(zeros, j, b): index_put(index_put(zeros, i, a), j, b), one table less."""
    if node.target is not aten.add.Tensor or node.kwargs:
        return None
    sides: Any = node.args
    if not all(_is(side, aten.index_put.default) and len(side.args) == 4 and side.args[3] for side in sides):
        return None
    first, second = sides
    empty = second.args[0]
    if not _is(empty, aten.full.default) or empty.args[1] != 0 or len(second.users) > 1:
        return None
    return _call(node.graph, aten.index_put.default, first, *second.args[1:])


def _drop_summed_dimension(node: Node) -> Node | None:
    """view(sum(x, keepdim)) where the view only drops what was summed: sum(x)."""
    total: Any = node.args[0] if node.args else None
    views = (aten.view.default, aten.squeeze.dims, aten.reshape.default)
    if node.target not in views or not _is(total, aten.sum.dim_IntList) or len(total.args) < 3 or not total.args[2]:
        return None
    bare = _call(node.graph, aten.sum.dim_IntList, total.args[0], total.args[1])
    same = tuple(bare.meta["val"].shape) == tuple(node.meta["val"].shape)
    return bare if same else None


def _join_scales(node: Node) -> Node | None:
    """rate * (gradient * clip): gradient * (rate * clip), whose second product all gradients share."""
    if node.target is not aten.mul.Tensor:
        return None
    rate: Any = node.args[0]
    scaled: Any = node.args[1]
    if not _scalar(rate) or not (_is(scaled, aten.mul.Tensor) or _is(scaled, aten.div.Tensor)) or len(scaled.users) > 1:
        return None
    gradient, clip = scaled.args
    if not _scalar(clip) or _scalar(gradient):
        return None
    with node.graph.inserting_before(scaled):
        factor = _call(node.graph, scaled.target, rate, clip)
    return _call(node.graph, aten.mul.Tensor, gradient, factor)


def _step_function(node: Node) -> Node | None:
    """float(x > 0): clamp(x * HUGE, 0, 1). XNNPACK has no comparisons."""
    compared: Any = node.args[0] if node.args else None
    if node.target is not aten._to_copy.default or not _is(compared, aten.gt.Scalar) or compared.args[1] != 0:
        return None
    if node.meta["val"].dtype != torch.float32 or compared.args[0].meta["val"].dtype != torch.float32:
        return None
    x: Node = compared.args[0]
    huge = node.graph.call_function(aten.full.default, ([], HUGE), {"dtype": torch.float32})
    with x.meta["val"].fake_mode:
        huge.meta["val"] = torch.full([], HUGE)
    scaled = _call(node.graph, aten.mul.Tensor, x, huge)
    return _call(node.graph, aten.clamp.default, scaled, 0.0, 1.0)


def _matrix_product(node: Node) -> Node | None:
    """mm(a, b): a batch of one. XNNPACK multiplies by matrices that change only in batches."""
    if node.target is not aten.mm.default:
        return None
    sides: Any = node.args
    shapes = [list(side.meta["val"].shape) for side in sides]
    if not all(isinstance(n, int) for shape in shapes for n in shape):
        return None
    a, b = (_call(node.graph, aten.view.default, side, [1, *shape]) for side, shape in zip(sides, shapes, strict=True))
    product = _call(node.graph, aten.bmm.default, a, b)
    return _call(node.graph, aten.view.default, product, [shapes[0][0], shapes[1][1]])


def _reshape(node: Node) -> Node | None:
    """unsqueeze(x), squeeze(x): view(x), which XNNPACK has."""
    if node.target not in (aten.unsqueeze.default, aten.squeeze.dims, aten.squeeze.dim):
        return None
    shape = list(node.meta["val"].shape)
    return _call(node.graph, aten.view.default, node.args[0], shape) if all(isinstance(n, int) for n in shape) else None


def _biased_product(node: Node) -> Node | None:
    """addmm(bias, a, b): bias + mm(a, b)."""
    if node.target is not aten.addmm.default or node.kwargs or len(node.args) > 3:
        return None
    bias, a, b = node.args
    return _call(node.graph, aten.add.Tensor, _call(node.graph, aten.mm.default, a, b), bias)


def _sum_as_product(node: Node) -> Node | None:
    """A sum over one dimension, or all: a product with ones. XNNPACK multiplies fast; the portable sum does not add
    fast, and cuts its partitions."""
    if node.target is not aten.sum.dim_IntList:
        return None
    x: Any = node.args[0]
    shape, result = x.meta["val"].shape, node.meta["val"].shape
    if x.meta["val"].dtype != torch.float32 or not all(isinstance(n, int) for n in shape):
        return None  # of a size that varies: the ones would have to as well
    given: Any = node.args[1]
    dims = sorted(d % max(len(shape), 1) for d in (given or range(len(shape))))
    if not dims or dims != list(range(dims[0], dims[-1] + 1)):
        return None
    before, summed, after = (
        math.prod(shape[a:b]) for a, b in ((0, dims[0]), (dims[0], dims[-1] + 1), (dims[-1] + 1, None))
    )
    if summed * after * before < 256:
        return None
    graph = node.graph
    left = [1, before, summed] if after == 1 else [before, 1, summed]
    right = [1, summed, 1] if after == 1 else [before, summed, after]
    ones = graph.call_function(aten.full.default, (right if after == 1 else left, 1.0), {"dtype": torch.float32})
    with x.meta["val"].fake_mode:
        ones.meta["val"] = torch.full(right if after == 1 else left, 1.0)
    flat = _call(graph, aten.view.default, x, left if after == 1 else right)
    pair = (flat, ones) if after == 1 else (ones, flat)
    return _call(graph, aten.view.default, _call(graph, aten.bmm.default, *pair), list(result))


def _is(value: Any, target: object) -> bool:
    return isinstance(value, Node) and value.target is target


def _scalar(value: Any) -> bool:
    return isinstance(value, Node) and isinstance(value.meta["val"], torch.Tensor) and value.meta["val"].dim() == 0
