"""Whether an engine trains on this machine, tried on a step graph before a bundle is used.

An engine can run a graph and still not train: a momentum that does nothing, a step that returns what it was given,
a kernel that gives NaN on one processor. So a few steps are taken on one batch, and their effect is looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from device_runtime.engines import Engine, Graph
from device_runtime.engines.spec import Arrays
from device_runtime.errors import SelfTestFailed
from device_runtime.trainer import advance, initial_state, not_finite


@dataclass(frozen=True)
class SelfTestResult:
    """losses: before each step, so the first is that of the values given. moved: carried tensor -> largest change."""

    losses: tuple[float, ...]
    moved: dict[str, float]


def self_test(
    engine: Engine, step: Graph, values: Arrays, batch: Arrays, rate: float, steps: int = 8
) -> SelfTestResult:
    """Take steps on one batch, and refuse the engine if they do not train.

    values: parameters and attributes by name; state starts at zero. batch: features [B, ...], label and sample weight
    [B] that no constant prediction fits. Nothing given is changed.

    Raises:
        SelfTestFailed: the loss did not fall, a tensor that should be updated was not, or a number is not finite.
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
        moved[name] = float(np.abs(current[name].astype(np.float64) - start[name].astype(np.float64)).max(initial=0.0))
        if not moved[name]:
            raise _failed(engine, f"{name!r} did not move in {steps} steps")
    return SelfTestResult(tuple(losses), moved)


def _failed(engine: Engine, what: str) -> SelfTestFailed:
    return SelfTestFailed(f"engine {engine.name} {engine.version} does not train on this machine: {what}")
