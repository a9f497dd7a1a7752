"""From a plan to files: one trace, lowered to standard ONNX and to a core-ATen ExecuTorch program."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from device_runtime.engines.spec import BATCH
from device_runtime.errors import EngineError
from export.graphs import GraphPlan, without_unused
from export.rewrites import for_onnx, for_xnnpack, onnx_operators, simplify

ONNX_OPSET = 20
_KEEP_FOLDED = 64
"""Elements of a constant that may be folded into the file; larger ones are computed, so zero tables stay out."""


@dataclass(frozen=True)
class Traced:
    """A plan cut to the inputs that its graph reads, and the graph."""

    plan: GraphPlan
    program: ExportedProgram


def trace(plan: GraphPlan) -> Traced:
    """Trace a plan's function, gradients included, into core ATen operators.

    Raises:
        EngineError: the function cannot be traced; names the graph and PyTorch's reason.
    """
    try:
        with quiet():
            module, used = _make_fx(plan)
            if len(used) < len(plan.spec.inputs):
                plan = without_unused(plan, used)
                module, _ = _make_fx(plan)
            symbols = {name: Dim(name, min=least, max=most) for name, (least, most) in plan.spec.bounds.items()}
            shapes = tuple(
                {i: symbols[d] for i, d in enumerate(t.shape) if isinstance(d, str)} or None for t in plan.spec.inputs
            )
            examples = tuple(_examples(plan).values())
            program = torch.export.export(module, examples, dynamic_shapes=(*shapes,), strict=False)
            return Traced(plan, simplify(program.run_decompositions()))
    except Exception as error:
        if f"Constraints violated ({BATCH})" in str(error):
            raise EngineError(
                f"graph {plan.name!r} cannot be traced: the model works for batches of one size only; take the size "
                "from a tensor's shape (not by len(), which is a number), and write none into the model"
            ) from error
        raise EngineError(f"graph {plan.name!r} cannot be traced: {_first_line(error)}") from error


def to_onnx(traced: Traced) -> bytes:
    """Standard ONNX, opset `ONNX_OPSET`, no vendor domain; inputs and outputs named as in the spec.

    Raises:
        EngineError: an operator has no ONNX form.
    """
    spec = traced.plan.spec
    try:
        with quiet():
            import onnxscript.optimizer

            exported = torch.onnx.export(
                for_onnx(copy.deepcopy(traced.program)),
                dynamo=True,
                verbose=False,
                optimize=False,
                opset_version=ONNX_OPSET,
                input_names=[t.name for t in spec.inputs],
                output_names=[t.name for t in spec.outputs],
            )
            assert exported is not None
            onnxscript.optimizer.optimize(exported.model, input_size_limit=_KEEP_FOLDED, output_size_limit=_KEEP_FOLDED)
            for node in exported.model.graph.all_nodes():
                node.metadata_props.clear()  # source lines and module paths: twice the size, and machine paths
                node.doc_string = None
            for value in (*exported.model.graph.inputs, *exported.model.graph.outputs):
                value.metadata_props.clear()
            data: bytes = onnx_operators(exported.model_proto).SerializeToString()
            return data
    except Exception as error:
        raise EngineError(f"graph {traced.plan.name!r} cannot be lowered to ONNX: {_first_line(error)}") from error


def to_executorch(traced: Traced) -> bytes:
    """A `.pte`: XNNPACK where it has the operators and sizes are fixed, core-ATen kernels for the rest.

    Raises:
        EngineError: an operator has no ExecuTorch kernel.
    """
    try:
        with quiet():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

            edge = to_edge_transform_and_lower(
                for_xnnpack(copy.deepcopy(traced.program)),
                partitioner=[XnnpackPartitioner()],
                # the validity check refuses index_put with accumulation, for which the portable library has a kernel
                compile_config=EdgeCompileConfig(_check_ir_validity=False),
            )
            return bytes(edge.to_executorch().buffer)
    except Exception as error:
        raise EngineError(
            f"graph {traced.plan.name!r} cannot be lowered to ExecuTorch: {_first_line(error)}"
        ) from error


def _make_fx(plan: GraphPlan) -> tuple[torch.fx.GraphModule, set[str]]:
    names = [t.name for t in plan.spec.inputs]
    outputs = [t.name for t in plan.spec.outputs]

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(names, tensors, strict=True))
        result = plan.function(given)
        return tuple(result[name] for name in outputs)

    with _FlatLayers():
        module = make_fx(flat, tracing_mode="symbolic")(*_examples(plan).values())
    module.graph.eliminate_dead_code()
    # tracing leaves behind a constant that nothing reads, and whose symbolic size no lowering can print
    for name in [n for n in module._buffers if n.startswith("_tensor_constant")]:
        if not any(node.op == "get_attr" and node.target == name for node in module.graph.nodes):
            delattr(module, name)
    module.recompile()
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    used = {name for name, node in zip(names, placeholders, strict=True) if node.users}
    return module, used


class _FlatLayers(TorchFunctionMode):
    """A layer over [.., d] as one over [n, d]: PyTorch does so itself, but in terms of the sizes of the example."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | dict(kwargs or {})
        if func is not torch.nn.functional.linear or given["input"].dim() < 3:
            return func(*args, **(kwargs or {}))
        *outer, width = given["input"].shape
        flat = func(given["input"].reshape(math.prod(outer), width), given["weight"], given.get("bias"))
        return flat.reshape(*outer, flat.shape[1])


def _examples(plan: GraphPlan) -> dict[str, Tensor]:
    """The plan's, in batches of a size that no other dimension has: PyTorch takes dimensions of one size for one."""
    taken = {n for t in plan.spec.inputs for n in plan.examples[t.name].shape[t.shape[:1] == (BATCH,) :]}
    most = plan.spec.bounds.get(BATCH, (0, 0))[1]
    batch = next((n for n in range(most, 1, -1) if n not in taken), most)
    return {
        t.name: plan.examples[t.name][:batch] if t.shape[:1] == (BATCH,) else plan.examples[t.name]
        for t in plan.spec.inputs
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters print and warn about things that are not the caller's to mend; failures still raise."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
