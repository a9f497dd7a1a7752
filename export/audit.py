"""Which operators of a graph an engine does not have, said before anything is lowered.

Exporters fail deep inside with their own words. Here a graph's operators are looked up in what each engine really has,
and those that are missing are named with the module that they come from and what to write instead.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode

from device_runtime.engines.shim import LIBRARIES, VERSION
from device_runtime.errors import EngineError
from export.graphs import GraphPlan
from export.lowering import ONNX_OPSET, Traced, trace

INSTEAD = {
    "nonzero": "a mask of 0 and 1 that multiplies: the shapes in a graph may not depend on its numbers",
    "masked_select": "a mask of 0 and 1 that multiplies: the shapes in a graph may not depend on its numbers",
    "unique": "ids that are renumbered before the graph, as a device does with its rows",
    "_unique2": "ids that are renumbered before the graph, as a device does with its rows",
    "_local_scalar_dense": "tensors throughout: no .item(), and no `if` over a tensor's numbers",
    "equal": "tensors throughout: no `if` over a tensor's numbers",
    "bincount": "a sum over one-hot rows",
    "_embedding_bag": "export.models.base.gather, and a sum over the places that are filled",
    "embedding_dense_backward": "export.models.base.gather in place of calling nn.Embedding",
    "scaled_dot_product_attention": "two torch.bmm and export.models.base.masked_softmax",
    "_scaled_dot_product_flash_attention_for_cpu": "two torch.bmm and export.models.base.masked_softmax",
    "_scaled_dot_product_flash_attention_for_cpu_backward": "two torch.bmm and export.models.base.masked_softmax",
    "native_batch_norm_backward": "export.models.layers.Norm, which needs no statistics of other samples",
    "native_layer_norm_backward": "export.models.layers.Norm",
    "sort": "torch.topk, or an order that is made before the graph",
    "erfinv": "a distribution whose inverse is elementary, such as the logistic one",
    "gru": "export.models.gru.last_state",
    "lstm": "export.models.gru.last_state",
    "mkldnn_rnn_layer": "export.models.gru.last_state",
    "_linalg_svd": "a low-rank product of two parameters that are trained as such",
    "linalg_inv_ex": "a parameter that is trained, in place of an inverse",
    "bernoulli_": "eval mode: a training step on a device is deterministic, so that it can be checked",
    "bernoulli": "eval mode: a training step on a device is deterministic, so that it can be checked",
    "rand_like": "eval mode: a training step on a device is deterministic, so that it can be checked",
}
_OTHERWISE = "sums, products, torch.bmm, and what export.models.base has: gather, relu, masked_softmax, unit"
_DATA_DEPENDENT = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_RANDOM = torch.Tag.nondeterministic_seeded


@dataclass(frozen=True)
class Missing:
    """An operator that a graph uses and an engine lacks. module: path of the module it is called in, "" if unknown."""

    operator: str
    module: str
    engine: str
    instead: str

    def __str__(self) -> str:
        where = f"in {self.module!r}" if self.module else "in the backward pass, or outside any sub-module"
        return f"{self.operator} ({where}): {self.engine}; write it as {self.instead}"


def audited(plan: GraphPlan, formats: Sequence[str]) -> Traced:
    """Trace a plan, and refuse it if an engine lacks an operator of its. formats: of engines, as in the manifest.

    Raises:
        EngineError: names every operator that is missing, its module, the engine, and a replacement.
    """
    calls = _Calls()
    with calls.recording():
        try:
            plan.function(plan.examples)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(
                f"graph {plan.name!r} cannot be computed even before it is traced{calls.last()}: "
                f"{type(error).__name__}: {error}"
            ) from error
    _refuse(plan, [_named(op, paths, "no engine can run it in a fixed graph") for op, paths in calls.unfit.items()])
    traced = trace(plan)
    missing = [
        _named(op, calls.modules(op), why) for name in formats for op, why in _LACKING[name](traced.program).items()
    ]
    _refuse(plan, missing)
    return traced


def _operators(program: ExportedProgram) -> list[torch._ops.OpOverload]:
    """Each operator of a program once."""
    called = (node.target for node in program.graph.nodes if node.op == "call_function")
    return list(dict.fromkeys(op for op in called if isinstance(op, torch._ops.OpOverload)))


def _onnx_lacks(program: ExportedProgram) -> dict[torch._ops.OpOverload, str]:
    """Operators that have no translation, not even after being taken apart as the exporter does."""
    from torch.onnx._internal.exporter._fx_passes import decompose_with_registry

    registry = _onnx_registry()
    # only where it is in doubt: taking a program apart costs seconds
    if any(not registry.is_registered(op) and op not in _TAKEN_APART for op in _operators(program)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = decompose_with_registry(program, registry)
    why = f"onnx: opset {ONNX_OPSET} has no such operator, and torch no translation into others"
    return {op: why for op in _operators(program) if not registry.is_registered(op) and op not in _TAKEN_APART}


def _executorch_lacks(program: ExportedProgram) -> dict[torch._ops.OpOverload, str]:
    why = f"executorch: no such kernel is in the {VERSION} libraries"
    known = executorch_kernels() | _REWRITTEN
    return {op: why for op in _operators(program) if _short(op) not in known}


_LACKING = {"onnx": _onnx_lacks, "executorch": _executorch_lacks}


def _refuse(plan: GraphPlan, missing: Sequence[Missing]) -> None:
    if missing:
        listed = "".join(f"\n  {one}" for one in missing)
        raise EngineError(f"graph {plan.name!r} uses operators that cannot be lowered:{listed}")


def _named(op: torch._ops.OpOverload, modules: Collection[str], engine: str) -> Missing:
    short = _short(op)
    return Missing(
        str(op._schema.name).replace("::", "."), ", ".join(sorted(modules)), engine, INSTEAD.get(short, _OTHERWISE)
    )


def _short(op: torch._ops.OpOverload) -> str:
    return str(op._schema.name).partition("::")[2]


# the ExecuTorch exporter turns these into views that are copied, sizes, and other kernels by itself
_REWRITTEN = frozenset({"sym_size", "sym_numel", "empty_permuted", "empty_strided", "_unsafe_view", "scalar_tensor"})


_TAKEN_APART = (torch.ops.aten.squeeze.default,)
"""What nearly every graph has, and the ONNX exporter is known to take apart."""


@cache
def _onnx_registry() -> Any:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    logging.disable(logging.WARNING)  # it warns of extensions that are not installed
    try:
        return ONNXRegistry.from_torchlib(opset_version=ONNX_OPSET)
    finally:
        logging.disable(logging.NOTSET)


@cache
def executorch_kernels() -> frozenset[str]:
    """Operators, without overload, that have a kernel in the libraries that the device's engine links.

    Kernels register themselves by name, and the names stand in the libraries as text.
    """
    spec = importlib.util.find_spec("executorch")
    assert spec is not None and spec.submodule_search_locations
    found: set[str] = set()
    for name in LIBRARIES:
        data = (Path(next(iter(spec.submodule_search_locations))) / "lib" / name).read_bytes()
        found |= {match.decode() for match in re.findall(rb"aten::([A-Za-z0-9_]+)(?:\.[A-Za-z0-9_]+)?\x00", data)}
    return frozenset(found | {name.removesuffix("_copy") for name in found})


@dataclass
class _Calls:
    """Which operators are dispatched while a function runs, and in which modules. unfit: those of no fixed graph."""

    by_name: dict[str, set[str]] = field(default_factory=dict)
    unfit: dict[torch._ops.OpOverload, set[str]] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)
    latest: str = ""

    @contextmanager
    def recording(self) -> Iterator[None]:
        paths: dict[nn.Module, str] = {}

        def enter(module: nn.Module, inputs: object) -> None:
            if module not in paths:
                paths.update({m: f"{type(module).__name__}.{n}".rstrip(".") for n, m in module.named_modules()})
            self.open.append(paths[module])

        def leave(module: nn.Module, inputs: object, output: object) -> None:
            self.open.pop()

        calls = self

        class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                calls.saw(func)
                return func(*args, **(kwargs or {}))

        hooks = [
            nn.modules.module.register_module_forward_pre_hook(enter),
            nn.modules.module.register_module_forward_hook(leave),
        ]
        try:
            with Mode():  # type: ignore[no-untyped-call]
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def saw(self, op: torch._ops.OpOverload) -> None:
        where = self.open[-1] if self.open else ""
        self.latest = f", after aten.{_short(op)}" + (f" in {where!r}" if where else "")
        if where:
            self.by_name.setdefault(_short(op), set()).add(where)
        if any(tag in op.tags for tag in _DATA_DEPENDENT) or _RANDOM in op.tags:
            self.unfit.setdefault(op, set()).update({where} if where else set())

    def last(self) -> str:
        return self.latest

    def modules(self, op: torch._ops.OpOverload) -> Sequence[str]:
        return sorted(self.by_name.get(_short(op), ()))
