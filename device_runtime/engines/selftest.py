"""Whether an engine trains on this machine, tried on a step graph before a bundle is used.

An engine can run a graph and still not train: a momentum that does nothing, a step that returns what it was given, a
kernel that gives NaN or other numbers on one processor. So a few steps are taken on one batch that is the same
everywhere, and their effect is compared with what the exporter saw, on an engine that agreed with autograd.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from device_runtime.bundle import Golden
from device_runtime.engines import Array, Engine, Graph
from device_runtime.engines.binding import shape
from device_runtime.engines.spec import BATCH, Arrays, GraphSpec, TensorSpec
from device_runtime.errors import SelfTestFailed
from device_runtime.trainer import advance, initial_state, not_finite

STEPS = 8
ROWS = 17
"""Of a table in a trial, padding included."""
LOSS_WITHIN, MOVE_WITHIN = 1e-4, 1e-2
"""Of the golden losses (relative above 1), and of how far a tensor moved in the golden steps."""
_ROUNDING = 2.0**-20
"""Moves below this share of a tensor's size may be rounding."""


def trial(spec: GraphSpec, values: Arrays, largest: Mapping[str, int]) -> tuple[dict[str, Array], dict[str, Array]]:
    """(values, batch) for a self-test: the given weights, and made-up rows and samples, the same on every machine.

    spec: of one step. values: the parameters and attributes that are not sliced. largest: attribute of a table's rows
    -> the largest number that may stand in it.
    """
    held = {t.name: values[t.name] for t in spec.of("param", "attribute") if not t.table}
    for tensor in spec.of("param", "attribute"):
        if tensor.table:
            rows = {str(tensor.shape[0]): ROWS}
            held[tensor.name] = _made_up(tensor, shape(tensor, rows), largest.get(tensor.name, 0))
    sizes = {BATCH: spec.batch}
    batch = {t.name: _made_up(t, shape(t, sizes), ROWS - 1) for t in spec.of("feature")}
    for tensor in spec.of("feature"):
        if tensor.table:
            # no padding in ids as such; histories of every length, the empty one too
            ids = batch[tensor.name] % (ROWS - 1) + 1
            if ids.ndim == 2:
                ids[np.arange(ids.shape[1]) >= np.arange(len(ids))[:, None] % (ids.shape[1] + 1)] = 0
            batch[tensor.name] = ids
    batch["label"] = (np.arange(spec.batch) % 2).astype(np.float32)
    batch["sample_weight"] = np.ones(spec.batch, np.float32)
    return held, batch


def _made_up(tensor: TensorSpec, size: tuple[int, ...], largest: int) -> Array:
    """Numbers from -0.3 to 0.3, or integers from 0 to largest."""
    count = np.arange(math.prod(size), dtype=np.int64).reshape(size)
    if tensor.dtype.startswith("float"):
        return np.asarray(0.3 * np.sin(1.0 + count), tensor.dtype)
    return np.asarray(count % (largest + 1), tensor.dtype)


def golden_steps(engine: Engine, step: Graph, values: Arrays, batch: Arrays, rate: float, steps: int = STEPS) -> Golden:
    """Take steps on one batch: what became of it.

    values: parameters and attributes by name; state starts at zero. batch: features [B, ...], label and sample weight
    [B] that no constant prediction fits. Nothing given is changed.

    Raises:
        SelfTestFailed: the loss did not fall, or a number is not finite.
        EngineError: the engine could not run the graph at all.
    """
    start = {**initial_state(step.spec, values), **values}
    current, losses = start, []
    for number in range(1, steps + 1):
        current, loss = advance(step, current, batch, {"learning_rate": rate, "table_rate": rate})
        if not math.isfinite(loss):
            raise _failed(engine, f"the loss of step {number} is {loss}")
        if wrong := not_finite(current, step.spec):
            raise _failed(engine, f"{wrong!r} is not finite after step {number}")
        losses.append(loss)
    if not losses[-1] < losses[0]:
        first, last = losses[0], losses[-1]
        raise _failed(engine, f"the loss did not fall in {steps} steps: {first:.6g} at first, {last:.6g} at last")
    moved = {}
    for name in step.spec.carry.values():
        change = np.abs(current[name].astype(np.float64) - start[name].astype(np.float64))
        moved[name] = float(change.max(initial=0.0))
    return Golden(tuple(losses), moved)


def self_test(engine: Engine, step: Graph, values: Arrays, batch: Arrays, rate: float, golden: Golden) -> Golden:
    """Take the golden steps again, and refuse the engine if they have another effect.

    Raises:
        SelfTestFailed: the loss did not fall, a number is not finite, a tensor did not move, or a loss or a tensor's
            move is another than in the golden steps.
        EngineError: the engine could not run the graph at all.
    """
    steps = len(golden.losses)
    found = golden_steps(engine, step, values, batch, rate, steps)
    sizes = {n: float(np.abs(values[n]).max(initial=0)) if n in values else moved for n, moved in golden.moved.items()}
    for name, wanted in golden.moved.items():
        if not found.moved[name] and wanted > _ROUNDING * sizes[name]:
            raise _failed(engine, f"{name!r} did not move in {steps} steps")
    for name, wanted in golden.moved.items():
        given = found.moved[name]
        if abs(given - wanted) > MOVE_WITHIN * wanted + _ROUNDING * sizes[name]:
            raise _failed(engine, f"{name!r} moved by {given:.6g} in {steps} steps, where it should by {wanted:.6g}")
    for number, (wanted, given) in enumerate(zip(golden.losses, found.losses, strict=True), 1):
        if abs(given - wanted) > LOSS_WITHIN * max(1.0, abs(wanted)):
            raise _failed(engine, f"the loss of step {number} is {given:.6g}, where it should be {wanted:.6g}")
    return found


def _failed(engine: Engine, what: str) -> SelfTestFailed:
    return SelfTestFailed(f"engine {engine.name} {engine.version} does not train on this machine: {what}")
