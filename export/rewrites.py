"""Rewrites that make a traced step smaller and faster without changing what it computes.

Autodiff writes gradients as a person would not: sums that keep a dimension only to drop it, weights transposed twice,
each gradient scaled once by the clip and once by the rate. The first group works on core ATen operators, before either
lowering; the second is for ONNX Runtime, the third makes room for XNNPACK; the last works on ONNX nodes, where one
operator does what two do in ATen.
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

RUN = 512
"""Numbers that an operator of ONNX Runtime should meet in a row where one side is broadcast: the start of a run takes
as long as some 30 of them."""

RENAMING = (aten.view.default, aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dims, aten.squeeze.dim)
"""Operators that give the same numbers in the same order."""

HUGE = 1e38
"""Times the least normal float32 this is above 1, so `clamp(x * HUGE, 0, 1)` is `x > 0` for every normal x."""


STEEP = 1e20
"""The slope of a rectifier is 1 from 1 / this on, in ONNX; times any output of a model it does not overflow."""


def simplify(program: ExportedProgram) -> ExportedProgram:
    """The program with the rewrites that every engine gains from, in place."""
    passes = (_join_permutes, _turned_vector, _turned_product, _drop_summed_dimension, _join_scales, _join_scatters)
    _apply(program, (*passes, _share, _rectifier, _join_views))
    return program


def for_onnx(program: ExportedProgram) -> ExportedProgram:
    """The program with what ONNX Runtime's operators do in fewer and longer runs, in place."""
    _apply(program, (_long_runs, _share, _join_views))
    return program


def for_xnnpack(program: ExportedProgram) -> ExportedProgram:
    """The program with operators that XNNPACK has in place of those that would cut its partitions, in place."""
    _apply(program, (_step_function, _biased_product, _matrix_product, _sum_as_product, _reshape, _share))
    return program


def onnx_operators(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with ONNX's own operators for what takes ATen two, in place.

    Cast(Greater(y, 0)) of a rectifier's output is HardSigmoid(y), and ReduceSum(x * x) is ReduceSumSquare(x).
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    readers = Counter(name for node in model.graph.node for name in node.input)
    zeros = {c.name for c in model.graph.initializer if not numpy_helper.to_array(c).any()}
    for node in list(model.graph.node):
        inner = makers.get(node.input[0]) if node.input else None
        if inner is None or readers[node.input[0]] > 1:
            continue
        if node.op_type == "ReduceSum" and inner.op_type == "Mul" and inner.input[0] == inner.input[1]:
            node.op_type, node.input[0] = "ReduceSumSquare", inner.input[0]
        elif node.op_type == "Cast" and inner.op_type == "Greater" and inner.input[1] in zeros:
            rectifier = makers.get(inner.input[0])
            if rectifier is None or rectifier.op_type != "Relu":
                continue
            node.CopyFrom(
                helper.make_node("HardSigmoid", inner.input[:1], node.output, node.name, alpha=STEEP, beta=0.0)
            )
        else:
            continue
        model.graph.node.remove(inner)
    return model


def _apply(program: ExportedProgram, passes: Iterable[Callable[[Node], Node | None]]) -> None:
    graph = program.graph_module.graph
    for rewrite in passes:
        seen: dict[object, Node] = {}
        for node in list(graph.nodes):
            if node.op != "call_function" or not node.users or any(user.op == "output" for user in node.users):
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


def _view(graph: torch.fx.Graph, source: Node, shape: Any) -> Node:
    """source in another shape. PyTorch would copy where the strides that it traced do not allow a view; no engine has
    strides."""
    kind = aten.view.default if source.meta["val"].is_contiguous() else aten.reshape.default
    return _call(graph, kind, source, shape)


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
    shape, result = source.meta["val"].shape, _free(node.meta["val"].shape)
    if result is None:
        return None
    kept = [d % len(shape) for d in order if shape[d] != 1]
    return _view(node.graph, source, result) if kept == sorted(kept) else None


def _turned_product(node: Node) -> Node | None:
    """transpose(bmm(transpose(a), b)): bmm(transpose(b), a), so that nothing but a factor is turned."""
    product: Any = node.args[0] if node.args else None
    if not _swaps_last(node) or not _is(product, aten.bmm.default) or len(product.users) > 1:
        return None
    left: Any = product.args[0]
    right: Node = product.args[1]
    if not _swaps_last(left):
        return None
    turned = _call(node.graph, aten.permute.default, right, [0, 2, 1])
    return _call(node.graph, aten.bmm.default, turned, left.args[0])


def _swaps_last(node: Node) -> bool:
    order: Any = node.args[1] if node.target is aten.permute.default else ()
    return list(order) == [0, 2, 1]


def _join_views(node: Node) -> Node | None:
    """A view of a view: one view; a view to the shape that there is: none."""
    if node.target not in RENAMING:
        return None
    source: Any = node.args[0]
    while source.target in RENAMING:
        source = source.args[0]
    shape = _free(node.meta["val"].shape)
    if shape is None:
        return None
    if _free(source.meta["val"].shape) == shape:
        return source  # type: ignore[no-any-return]
    given: Any = node.args[1] if node.target is aten.view.default else ()
    if source is node.args[0] and list(given) == shape:
        return None
    return _view(node.graph, source, shape)


def _free(shape: Iterable[Any]) -> list[int] | None:
    """A shape with -1 for the dimension that varies; None where several do."""
    found = [n if isinstance(n, int) else -1 for n in shape]
    return found if found.count(-1) < 2 else None


def _long_runs(node: Node) -> Node | None:
    """[.., n, d] with [.., 1, d], in an operator on each number: with so many copies of the second, side by side, that
    the two meet in runs of some hundred numbers, not of d."""
    if node.target not in (aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor) or node.kwargs:
        return None
    sides: Any = node.args
    whole = list(node.meta["val"].shape)
    if len(whole) < 3 or not all(isinstance(side, Node) for side in sides):
        return None
    n, d = whole[-2:]
    shapes = [list(side.meta["val"].shape) for side in sides]
    few = [*whole[:-2], 1, d]
    if few not in shapes or not isinstance(n, int) or not isinstance(d, int):
        return None
    short = shapes.index(few)
    if shapes[1 - short] not in (whole, whole[1:]):
        return None
    copies = max((m for m in range(1, n + 1) if n % m == 0 and m * d <= RUN), default=1)
    if copies == 1 or d == 1:
        return None
    graph = node.graph
    rows = _free([*shapes[1 - short][:-2], n // copies, copies * d])
    pair = [_view(graph, sides[1 - short], rows)]
    pair.insert(short, _call(graph, aten.repeat.default, sides[short], [*[1] * (len(whole) - 1), copies]))
    return _view(graph, _call(graph, node.target, *pair), _free(whole))


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
    a, b = (_view(node.graph, side, [1, *shape]) for side, shape in zip(sides, shapes, strict=True))
    product = _call(node.graph, aten.bmm.default, a, b)
    return _view(node.graph, product, [shapes[0][0], shapes[1][1]])


def _reshape(node: Node) -> Node | None:
    """unsqueeze(x), squeeze(x): view(x), which XNNPACK has."""
    if node.target not in (aten.unsqueeze.default, aten.squeeze.dims, aten.squeeze.dim):
        return None
    source: Any = node.args[0]
    shape = list(node.meta["val"].shape)
    return _view(node.graph, source, shape) if all(isinstance(n, int) for n in shape) else None


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
    flat = _view(graph, x, left if after == 1 else right)
    pair = (flat, ones) if after == 1 else (ones, flat)
    return _view(graph, _call(graph, aten.bmm.default, *pair), list(result))


def _is(value: Any, target: object) -> bool:
    return isinstance(value, Node) and value.target is target


def _scalar(value: Any) -> bool:
    return isinstance(value, Node) and isinstance(value.meta["val"], torch.Tensor) and value.meta["val"].dim() == 0
