"""Does a lowered graph compute what autograd computes? Checked on every engine, for every graph of every bundle.

The oracle shares no code with the step that was exported: PyTorch's own autograd, loss and optimizers, in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from device_runtime.bundle import Parity
from device_runtime.engines import Array, Engine, Graph
from device_runtime.engines.spec import BATCH, BATCH_ROLES, GraphSpec
from device_runtime.errors import EngineError
from export.graphs import GraphPlan
from export.models.base import Recommender
from export.step import SGD, Adagrad, Adam, Optimizer, Step

STEPS = 4
TOLERANCE = 1e-3
"""Largest difference from float64 that a bundle may ship with, as a share of how far the tensor moved in the step (or
of its own size, for outputs that are not updates): a graph that updates nothing is 1 off, however small its steps."""

AGAIN = 2
"""Further draws of inputs for a graph that differs with the first one."""

NOISE = 10.0
"""A difference of up to so many times what float32 itself makes in PyTorch passes: Adam and Adagrad divide by the size
of a gradient, and so make full steps of numbers that are only rounding, on any engine."""


@dataclass(frozen=True)
class Oracle:
    """What a graph should compute: a module, and for step graphs the step that it trains by."""

    module: nn.Module
    step: Step | None


def check(plan: GraphPlan, oracle: Oracle, engine: Engine, path: Path, most_steps: int = 0, seed: int = 0) -> Parity:
    """Compare every output with the oracle on fresh random inputs; step graphs over several steps in a row.

    A graph that differs is looked at again with `AGAIN` other draws of inputs, and the median counts. A wrong graph is
    wrong with all of them; but of some hundred thousand rectifiers, one whose input is 0 but for float32's rounding may
    be open here and shut there, and the whole of its gradient is the difference. (Seen with DIN on latest-small: 5.5e-3
    in one draw of four, and PyTorch's own float32 as far off in that one.)

    most_steps: of a file that takes several steps in a call, how many at most; else 0.

    Raises:
        EngineError: an output differs by more than `TOLERANCE`; names the graph, engine, tensor and difference.
    """
    graph = engine.load(path, plan.spec.stacked(most_steps) if most_steps else plan.spec)
    found = [compare(plan, oracle, graph, seed)]
    if not found[0][0] <= TOLERANCE:
        found += [compare(plan, oracle, graph, seed + number) for number in range(1, AGAIN + 1)]
    worst, where = sorted(found)[len(found) // 2]
    if not worst <= TOLERANCE:
        raise EngineError(
            f"graph {plan.name!r} on {engine.name} differs from autograd by {worst:.2e} in {where!r}; "
            f"at most {TOLERANCE:.0e} is allowed. The bundle was not written"
        )
    return Parity(engine.version, worst, where, TOLERANCE, _batches(plan.spec))


def compare(plan: GraphPlan, oracle: Oracle, graph: Graph, seed: int = 0) -> tuple[float, str]:
    """(the largest difference of a graph's outputs from the oracle's, and the tensor that has it).

    graph: of `plan.spec`, or of that stacked for several steps in a call; then the first call takes one step, and the
    second the others. The first batch is of a size that the seed picks, the others are as large as may be.
    """
    spec = graph.spec
    values = {t.name: plan.examples[t.name].numpy() for t in spec.of("param", "attribute", "state")}
    reference, rounded = _Reference(plan, oracle, torch.float64), _Reference(plan, oracle, torch.float32)
    off: dict[str, float] = {}
    moved: dict[str, float] = {}
    fresh = [_fresh(plan, np.random.default_rng([seed, number]), number == 0) for number in range(_batches(spec))]
    for batches in (fresh[:1], fresh[1:]) if spec.steps else [[batch] for batch in fresh]:
        expected = [reference.call(batch) for batch in batches]
        in_float32 = [rounded.call(batch) for batch in batches]
        outputs = graph({**values, **(_stack(batches, spec) if spec.steps else batches[0])})
        for name, array in outputs.items():
            if spec.steps and name not in spec.carry:
                wanted = np.stack([one[name] for one in expected])
            else:
                wanted = expected[-1][name]
            before = values.get(spec.carry.get(name, ""))
            found = np.asarray(array, np.float64)
            off[name] = max(off.get(name, 0.0), _distance(found, wanted))
            noise = max(_distance(a[name], b[name]) for a, b in zip(in_float32, expected, strict=True))
            moved[name] = max(moved.get(name, 0.0), _scale(wanted, before), NOISE / TOLERANCE * noise)
        values |= {into: outputs[out] for out, into in spec.carry.items()}
    # by the largest move of all steps: in one of them a tensor may stand almost still by chance
    relative = {name: off[name] / moved[name] for name in off}
    where = max(relative, key=lambda name: relative[name])
    return relative[where], where


def _batches(spec: GraphSpec) -> int:
    return STEPS if spec.carry else 2


class _Reference:
    """The oracle's own parameters and optimizer, in a precision, moved by autograd."""

    def __init__(self, plan: GraphPlan, oracle: Oracle, precision: torch.dtype) -> None:
        self.plan, self.step, self.precision = plan, oracle.step, precision
        self.module = copy.deepcopy(oracle.module).to(precision)
        own = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        for spec in plan.spec.of("param", "attribute"):
            # sliced tensors shrink to the rows that the example has, as they do on a device
            own[spec.name].data = plan.examples[spec.name].to(own[spec.name].dtype).clone()
        self.chance = torch.Generator().manual_seed(0)
        self.optimizer: torch.optim.Optimizer | None = None
        if self.step is not None:
            moving = {n: p for n, p in self.module.named_parameters() if n in self.step.trained}
            split = {
                name: [p for n, p in moving.items() if (n in self.step.rows) == (name == "table_rate")]
                for name in ("learning_rate", "table_rate")
            }
            groups = [{"params": params, "rate": name} for name, params in split.items() if params]
            self.optimizer = _torch_optimizer(self.step.optimizer, groups)

    def call(self, batch: Mapping[str, Array]) -> dict[str, np.ndarray[Any, Any]]:
        tensors = {n: torch.from_numpy(np.array(a)) for n, a in batch.items()}
        tensors = {n: t.to(self.precision) if t.is_floating_point() else t for n, t in tensors.items()}
        if self.step is None:
            with torch.no_grad():
                output = self._forward(tensors, encode=self.plan.name == "encode")
            return {self.plan.spec.outputs[0].name: output.numpy()}
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] = float(tensors[group["rate"]])
        self.optimizer.zero_grad()
        weight = tensors["sample_weight"]
        each = nn.functional.binary_cross_entropy_with_logits(
            self._forward(tensors), tensors["label"], weight=weight, reduction="sum"
        )
        loss = each / weight.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        moving = [p for n, p in self.module.named_parameters() if n in self.step.trained]
        if self.precision == torch.float32:
            self._round_gradients(moving)
        if self.step.clip:
            torch.nn.utils.clip_grad_norm_(moving, self.step.clip)
        tables = [p for n, p in self.module.named_parameters() if n in self.step.tables and n in self.step.trained]
        before = [[t.detach().clone() for t in self._with_slots(p)] for p in tables]
        self.optimizer.step()
        for param, old in zip(tables, before, strict=True):
            # PyTorch moves every row; those that no gradient reached are put back
            assert param.grad is not None
            still = (param.grad == 0).reshape(len(param), -1).all(1)
            with torch.no_grad():
                for now, then in zip_longest(self._with_slots(param), old):
                    now[still] = 0 if then is None else then[still]
        return {"loss": loss.detach().numpy()} | self._state()

    def _round_gradients(self, moving: list[nn.Parameter]) -> None:
        """Move each number by two units in the last place of the tensor's largest, up or down: PyTorch's own rounding
        may happen to be luckier than an engine's. Exact zeros stay."""
        for param in moving:
            if param.grad is not None:
                sign = torch.randint(0, 2, param.shape, generator=self.chance).to(param.grad.dtype) * 2 - 1
                param.grad += sign * (param.grad != 0) * param.grad.abs().max() * 2.0**-22

    def _with_slots(self, param: nn.Parameter) -> list[Tensor]:
        """The parameter and what the optimizer keeps of it that has its shape; before the first step, nothing."""
        assert self.optimizer is not None
        kept = self.optimizer.state.get(param, {})
        return [param, *(v for v in kept.values() if isinstance(v, Tensor) and v.shape == param.shape)]

    def _forward(self, tensors: Mapping[str, Tensor], encode: bool = False) -> Tensor:
        if isinstance(self.module, Recommender):
            wanted = {f.name: tensors[f.name] for f in self.module.schema.features}
            return self.module.encode(**wanted) if encode else self.module(**wanted)
        output: Tensor = self.module(tensors["x"])
        return output

    def _state(self) -> dict[str, np.ndarray[Any, Any]]:
        assert self.step is not None and self.optimizer is not None
        found: dict[str, np.ndarray[Any, Any]] = {}
        slots = {"mean": "exp_avg", "square": "exp_avg_sq", "momentum": "momentum_buffer", "squares": "sum"}
        for name, param in self.module.named_parameters():
            if name not in self.step.trained:
                continue
            found[f"new:{name}"] = param.detach().numpy().copy()
            for slot in self.step.optimizer.slots:
                found[f"new:{slot}:{name}"] = self.optimizer.state[param][slots[slot]].numpy().copy()
            if isinstance(self.step.optimizer, Adam):
                steps = float(self.optimizer.state[param]["step"])
                found["new:correction1"] = np.asarray(1 - self.step.optimizer.beta1**steps)
                found["new:correction2"] = np.asarray(1 - self.step.optimizer.beta2**steps)
        return found


def _torch_optimizer(ours: Optimizer, moving: list[dict[str, Any]]) -> torch.optim.Optimizer:
    if isinstance(ours, SGD):
        return torch.optim.SGD(moving, lr=0.0, momentum=ours.momentum, weight_decay=ours.weight_decay)
    if isinstance(ours, Adam):
        betas = (ours.beta1, ours.beta2)
        kind = torch.optim.AdamW if ours.decoupled else torch.optim.Adam
        return kind(moving, lr=0.0, betas=betas, eps=ours.epsilon, weight_decay=ours.weight_decay)
    if isinstance(ours, Adagrad):
        return torch.optim.Adagrad(moving, lr=0.0, eps=ours.epsilon, weight_decay=ours.weight_decay)
    raise EngineError(f"no PyTorch counterpart is known for the optimizer {type(ours).__name__}")


def _fresh(plan: GraphPlan, rng: np.random.Generator, smaller: bool) -> dict[str, Array]:
    """A batch like the example's, with other numbers: short and empty histories, padding and soft labels included.

    smaller: of a random size up to the example's.
    """
    batch: dict[str, Array] = {}
    size = int(rng.integers(1, plan.spec.batch + 1)) if smaller else plan.spec.batch
    for spec in plan.spec.of("feature", "label", "weight", "hyper"):
        example = plan.examples[spec.name].numpy()
        if spec.shape[:1] == (BATCH,):
            example = example[:size]
        if spec.role == "hyper":
            batch[spec.name] = example
        elif spec.role == "label":
            batch[spec.name] = rng.random(example.shape).round(1).astype(np.float32)
        elif spec.role == "weight":
            weight = rng.random(example.shape).astype(np.float32)
            weight[1:][-2:] = 0
            batch[spec.name] = weight
        elif example.dtype.kind == "f":
            batch[spec.name] = rng.normal(size=example.shape).astype(np.float32)
        else:
            rows = next(
                iter(len(plan.examples[t.name]) for t in plan.spec.inputs if t.table == spec.table and t is not spec)
            )
            ids = rng.integers(1, rows, example.shape)
            if example.ndim == 2:
                ids[np.arange(example.shape[1]) >= rng.integers(0, example.shape[1] + 1, (len(ids), 1))] = 0
            batch[spec.name] = ids.astype(np.int64)
    return batch


def _stack(batches: Sequence[Mapping[str, Array]], spec: GraphSpec) -> dict[str, Array]:
    """Batches along a first dimension; what is the same for all steps as it is."""
    scanned = {t.name for t in spec.of(*BATCH_ROLES)}
    return {n: np.stack([b[n] for b in batches]) if n in scanned else a for n, a in batches[0].items()}


def _distance(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max(initial=0.0))


def _scale(expected: np.ndarray[Any, Any], before: Array | None) -> float:
    """What a difference is measured by: how far the tensor moved, or how large it is where it is not an update."""
    size = float(np.abs(expected).max(initial=0.0))
    # float32 resolves 1e-7 of a tensor's size, so smaller moves are measured against a thousandth of it: rounding
    # stays below the tolerance, and a missing move of a millionth of the tensor's size is still seen
    scale = size if before is None else max(float(np.abs(expected - before).max(initial=0.0)), 1e-3 * size)
    return max(scale, 1e-6)
