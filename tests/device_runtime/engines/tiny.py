"""Tiny graphs that train: logistic regression over an item embedding and two numbers, lowered for every engine.

Made here from plain torch, so that the engines are tested without our own exporter.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad_and_value
from torch.fx.experimental.proxy_tensor import make_fx

from device_runtime.engines import Array, Graph, GraphSpec, TensorSpec

Load = Callable[[str], Graph]

BATCH, HISTORY, WIDTH, MOST_ROWS = 8, 3, 4, 64
BOUNDS = {"rows": (2, MOST_ROWS), "batch": (1, BATCH)}
RATE = 0.2

PARAMS = (
    TensorSpec("item.weight", "float32", ("rows", WIDTH), "param", "item"),
    TensorSpec("linear", "float32", (WIDTH + 2,), "param"),
    TensorSpec("bias", "float32", (), "param"),
)
STATE = tuple(TensorSpec(f"momentum:{p.name}", p.dtype, p.shape, "state", p.table) for p in PARAMS)
FEATURES = (
    TensorSpec("history", "int64", ("batch", HISTORY), "feature", "item"),
    TensorSpec("numbers", "float32", ("batch", 2), "feature"),
)
TARGET = (
    TensorSpec("label", "float32", ("batch",), "label"),
    TensorSpec("sample_weight", "float32", ("batch",), "weight"),
)
LEARNING_RATE = TensorSpec("learning_rate", "float32", (), "hyper")


def _out(name: str, like: TensorSpec) -> TensorSpec:
    return TensorSpec(name, like.dtype, like.shape, "output", like.table)


STEP = GraphSpec(
    (*PARAMS, *STATE, *FEATURES, *TARGET, LEARNING_RATE),
    (*(_out(f"new:{t.name}", t) for t in (*PARAMS, *STATE)), TensorSpec("loss", "float32", (), "output")),
    carry={f"new:{t.name}": t.name for t in (*PARAMS, *STATE)},
    bounds=BOUNDS,
)
SCORE = GraphSpec((*PARAMS, *FEATURES), (TensorSpec("logit", "float32", ("batch",), "output"),), bounds=BOUNDS)
TYPES = GraphSpec(
    (
        TensorSpec("rows", "float32", ("batch", 2), "feature"),
        TensorSpec("mask", "bool", ("batch",), "feature"),
        TensorSpec("small", "int32", ("batch",), "feature"),
    ),
    (
        TensorSpec("same", "float32", ("batch", 2), "output"),
        TensorSpec("other", "bool", ("batch",), "output"),
        TensorSpec("doubled", "int32", ("batch",), "output"),
    ),
    bounds={"batch": (1, BATCH)},
)
GATHER = GraphSpec(
    (
        TensorSpec("table", "float32", ("rows", WIDTH), "param"),
        TensorSpec("history", "int64", ("batch", HISTORY), "feature"),
    ),
    (TensorSpec("picked", "float32", ("batch", HISTORY, WIDTH), "output"),),
    bounds=BOUNDS,
)

SCATTER = GraphSpec(
    (
        TensorSpec("table", "float32", ("rows", WIDTH), "param"),
        TensorSpec("ids", "int64", ("batch",), "feature"),
        TensorSpec("numbers", "float32", ("batch", WIDTH), "feature"),
    ),
    (
        TensorSpec("added", "float32", ("rows", WIDTH), "output"),
        TensorSpec("set", "float32", ("rows", WIDTH), "output"),
    ),
    bounds=BOUNDS,
)


def logits(params: dict[str, Tensor], history: Tensor, numbers: Tensor) -> Tensor:
    table = params["item.weight"]
    past = table.index_select(0, history.reshape(-1)).reshape(*history.shape, table.shape[1]).sum(1)
    return torch.cat([past, numbers], 1) @ params["linear"] + params["bias"]


def log_loss(logit: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    each = logit.clamp(min=0) - logit * label + torch.log1p(torch.exp(-logit.abs()))
    return (each * weight).sum() / weight.sum().clamp(min=1e-6)


def step(*tensors: Tensor) -> tuple[Tensor, ...]:
    """One step of SGD with momentum 0.9, in the order of `STEP`."""
    names = [p.name for p in PARAMS]
    params = dict(zip(names, tensors[:3], strict=True))
    momentum = dict(zip(names, tensors[3:6], strict=True))
    history, numbers, label, weight, rate = tensors[6:]
    grads, loss = grad_and_value(lambda p: log_loss(logits(p, history, numbers), label, weight))(params)
    velocity = {n: 0.9 * momentum[n] + grads[n] for n in names}
    return (*(params[n] - rate * velocity[n] for n in names), *(velocity[n] for n in names), loss)


def uphill(*tensors: Tensor) -> tuple[Tensor, ...]:
    return step(*tensors[:-1], -tensors[-1])


def stuck(*tensors: Tensor) -> tuple[Tensor, ...]:
    """`linear` is handed back as it came."""
    results = step(*tensors)
    return (results[0], tensors[1] * 1, *results[2:])


def broken(*tensors: Tensor) -> tuple[Tensor, ...]:
    """A gradient that is not a number."""
    results = step(*tensors)
    return (results[0], results[1] + torch.log(-tensors[9].abs() - 1)[:1], *results[2:])


def forgetful(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Momentum that is computed, and then does nothing to the next step."""
    return step(*tensors[:3], *(0 * t for t in tensors[3:6]), *tensors[6:])


def halved(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Steps of half the rate."""
    return step(*tensors[:-1], 0.5 * tensors[-1])


def off(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The right updates, and a loss that is a thousandth off."""
    results = step(*tensors)
    return (*results[:-1], results[-1] * 1.001)


def score(*tensors: Tensor) -> tuple[Tensor, ...]:
    return (logits(dict(zip([p.name for p in PARAMS], tensors[:3], strict=True)), *tensors[3:]),)


def types(rows: Tensor, mask: Tensor, small: Tensor) -> tuple[Tensor, ...]:
    return rows * 1, ~mask, small + small


def gather(table: Tensor, history: Tensor) -> tuple[Tensor, ...]:
    return (table.index_select(0, history.reshape(-1)).reshape(*history.shape, table.shape[1]),)


def scatter(table: Tensor, ids: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
    return table.index_put((ids,), numbers, accumulate=True), table.index_put((ids,), numbers)


GRAPHS: dict[str, tuple[Callable[..., tuple[Tensor, ...]], GraphSpec]] = {
    "step": (step, STEP),
    "uphill": (uphill, STEP),
    "stuck": (stuck, STEP),
    "broken": (broken, STEP),
    "forgetful": (forgetful, STEP),
    "halved": (halved, STEP),
    "off": (off, STEP),
    "score": (score, SCORE),
    "types": (types, TYPES),
    "gather": (gather, GATHER),
    "scatter": (scatter, SCATTER),
}


def sample(spec: GraphSpec, rows: int = 10, seed: int = 0, batch: int = BATCH) -> dict[str, Array]:
    """Inputs that fit, with random numbers; state is zero, labels follow the first number."""
    rng = np.random.default_rng(seed)
    given: dict[str, Array] = {}
    for t in spec.inputs:
        shape = [{"rows": rows, "batch": batch}[d] if isinstance(d, str) else d for d in t.shape]
        if t.role == "state":
            given[t.name] = np.zeros(shape, t.dtype)
        elif t.dtype == "float32":
            given[t.name] = rng.normal(size=shape).astype(np.float32)
        else:
            given[t.name] = rng.integers(0, 2 if t.dtype == "bool" else rows, shape).astype(t.dtype)
    if "label" in given:
        given["label"] = (given["numbers"][:, 0] > 0).astype(np.float32)
        given["sample_weight"] = np.array([1, 1, 0.5, 2, 1, 1, 0, 0], np.float32)[:batch]
        given["learning_rate"] = np.array(RATE, np.float32)
    return given


def tensors(spec: GraphSpec, given: dict[str, Array]) -> list[Tensor]:
    return [torch.from_numpy(np.array(given[t.name])) for t in spec.inputs]


@dataclass(frozen=True)
class Tiny:
    """Graph files by engine format and name."""

    folder: Path

    def path(self, form: str, name: str) -> Path:
        return self.folder / f"{name}.{form}"

    @staticmethod
    def build(folder: Path) -> Tiny:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, (function, spec) in GRAPHS.items():
                _lower(function, spec, folder, name)
        return Tiny(folder)


def _lower(function: Callable[..., tuple[Tensor, ...]], spec: GraphSpec, folder: Path, name: str) -> None:
    from executorch.exir import EdgeCompileConfig, to_edge

    class Module(nn.Module):
        def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
            return traced(*given)

    given = tensors(spec, sample(spec))
    traced = make_fx(function, tracing_mode="symbolic")(*given)
    symbols = {name: torch.export.Dim(name, min=least, max=most) for name, (least, most) in spec.bounds.items()}
    dynamic = tuple({i: symbols[d] for i, d in enumerate(t.shape) if isinstance(d, str)} or None for t in spec.inputs)
    program = torch.export.export(Module(), tuple(given), dynamic_shapes=(dynamic,)).run_decompositions()
    onnx = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=[t.name for t in spec.inputs],
        output_names=[t.name for t in spec.outputs],
    )
    assert onnx is not None
    onnx.save(folder / f"{name}.onnx")
    edge = to_edge(program, compile_config=EdgeCompileConfig(_check_ir_validity=False))
    (folder / f"{name}.executorch").write_bytes(edge.to_executorch().buffer)
