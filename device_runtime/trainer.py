"""Epochs over a step graph, and scores from an inference graph, for any number of samples.

A graph takes batches of up to a number of samples; the last batch is what is left. Values are the graph's `param`,
`attribute` and `state` tensors by name. They are never written to: training gives new ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from device_runtime.engines import Graph
from device_runtime.engines.spec import Array, Arrays, GraphSpec
from device_runtime.errors import EngineError, GraphInputError, InputError

Float32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating]
Int64 = npt.NDArray[np.int64]


def initial_state(spec: GraphSpec, values: Arrays) -> dict[str, Array]:
    """Zeros for each `state` tensor; dimensions that vary are taken from the values.

    Raises:
        GraphInputError: the values lack a tensor that says how large a dimension is.
    """
    sizes: dict[str, int] = {}
    for tensor in spec.inputs:
        if tensor.name in values:
            sizes |= {d: n for d, n in zip(tensor.shape, values[tensor.name].shape, strict=False) if isinstance(d, str)}
    state: dict[str, Array] = {}
    for tensor in spec.of("state"):
        if unknown := [d for d in tensor.shape if isinstance(d, str) and d not in sizes]:
            raise GraphInputError(f"tensor {tensor.name!r}: no given tensor says how large {unknown[0]!r} is")
        shape = [sizes[d] if isinstance(d, str) else d for d in tensor.shape]
        state[tensor.name] = np.zeros(shape, tensor.dtype)
    return state


def advance(graph: Graph, values: Arrays, batch: Arrays, hyper: Mapping[str, float]) -> tuple[dict[str, Array], float]:
    """One step: (values with those updated that the graph carries, loss).

    values: may hold more than the graph takes; what it does not take is passed on. batch: features, labels and sample
    weights, each [B, ...]. hyper: scalars by name.

    Raises:
        GraphInputError: a tensor does not fit.
        EngineError: the engine failed.
    """
    spec = graph.spec
    settings = {t.name: np.array(hyper[t.name], t.dtype) for t in spec.of("hyper") if t.name in hyper}
    given = {name: column[None] for name, column in batch.items()} if spec.steps else dict(batch)
    results = graph(_taken(spec, values) | settings | given)
    moved = {taken: results[given] for given, taken in spec.carry.items()}
    return {**values, **moved}, float(results["loss"].reshape(()))


def calls(order: Int64, batch: int, steps: int) -> Iterator[Int64]:
    """Indices [k, up to batch] of each call over samples in this order, k up to steps: all batches of a call are of one
    size, and the last one of all may be smaller than the others."""
    whole = len(order) // batch
    full, rest = order[: whole * batch].reshape(-1, batch), order[whole * batch :]
    for start in range(0, whole, steps):
        yield full[start : start + steps]
    if len(rest):
        yield rest[None]


def train(
    graph: Graph,
    values: Arrays,
    features: Arrays,
    labels: Floats,
    weights: Floats,
    *,
    rate: float,
    epochs: int,
    rng: np.random.Generator,
    table_rate: float | None = None,
    ended: Callable[[Mapping[str, Array]], bool] | None = None,
) -> tuple[dict[str, Array], list[float]]:
    """Epochs of a step graph over n samples: (all values with those updated that train, mean loss of each epoch).

    values: parameters and attributes; optimizer state starts at zero unless it is among them. features: name ->
    [n, ...] as the graph takes them. labels: float [n]. weights: float [n], at least 0; samples of weight 0 are left
    out. table_rate: the learning rate of rows of tables, if not the same. ended: told the values after each epoch,
    which are its to keep; True, and it was the last.

    Raises:
        InputError: nothing to train on, lengths differ, the rate is not above 0, labels are not from 0 to 1, or a
            number is not finite.
        EngineError: training diverged; the values given are as they were.
        GraphInputError: a tensor does not fit the graph.
    """
    _check_samples(features, labels, weights)
    if not (math.isfinite(rate) and rate > 0):
        raise InputError(f"the learning rate must be a finite number above 0, not {rate}")
    spec = graph.spec
    [label], [weight] = spec.of("label"), spec.of("weight")
    current = {**initial_state(spec, values), **values}
    used = np.flatnonzero(weights > 0)
    if not len(used):
        raise InputError("there are no samples of weight above 0 to train on")
    rates = {"table_rate": rate if table_rate is None else table_rate}
    hyper: dict[str, Array] = {t.name: np.array(rates.get(t.name, rate), t.dtype) for t in spec.of("hyper")}
    bound = graph.bind(current)
    losses = []
    for epoch in range(epochs):
        total, mass = 0.0, 0.0
        for at in calls(used[rng.permutation(len(used))], spec.batch, spec.steps or 1):
            stack = {name: column[at] for name, column in features.items()}
            stack[label.name] = labels[at].astype(label.dtype)
            stack[weight.name] = weights[at].astype(weight.dtype)
            given = stack if spec.steps else {name: column[0] for name, column in stack.items()}
            found = bound.step(given | hyper)["loss"].reshape(-1).astype(np.float32)
            if not np.isfinite(found).all():
                raise _diverged(epoch, f"the loss became {found[~np.isfinite(found)][0]}", rate)
            share = stack[weight.name].sum(1, dtype=np.float64)
            total, mass = total + float(found @ share), mass + float(share.sum())
        current = current | bound.values()
        if wrong := not_finite(current, spec):
            raise _diverged(epoch, f"{wrong!r} is not finite", rate)
        losses.append(total / mass)
        if ended is not None and ended(current):
            break
    return current, losses


def scores(graph: Graph, values: Arrays, features: Arrays) -> Float32:
    """The single output of an inference graph for n samples, float32 [n, ...].

    values: may hold more than the graph takes. features: name -> [n, ...].

    Raises:
        InputError: the features differ in length.
        GraphInputError: a tensor does not fit the graph.
        EngineError: the engine failed.
    """
    spec = graph.spec
    [output] = spec.outputs
    lengths = {len(column) for column in features.values()}
    if len(lengths) != 1:
        raise InputError(f"the features differ in length: {sorted(lengths)}")
    [count] = lengths
    fixed = _taken(spec, values)
    parts = [np.zeros((0, *[d for d in output.shape[1:] if isinstance(d, int)]), np.float32)]
    for start in range(0, count, spec.batch):
        result = graph(fixed | {name: column[start : start + spec.batch] for name, column in features.items()})
        parts.append(result[output.name].astype(np.float32))
    return np.concatenate(parts)


def not_finite(values: Arrays, spec: GraphSpec) -> str:
    """The name of a carried tensor that holds nan or inf; "" where all are finite."""
    for name in spec.carry.values():
        if values[name].dtype.kind == "f" and not np.isfinite(values[name]).all():
            return name
    return ""


def _taken(spec: GraphSpec, values: Arrays) -> dict[str, Array]:
    return {t.name: values[t.name] for t in spec.inputs if t.name in values}


def _diverged(epoch: int, what: str, rate: float) -> EngineError:
    return EngineError(f"training diverged in epoch {epoch + 1}: {what}; lower the rate, now {rate}")


def _check_samples(features: Arrays, labels: Floats, weights: Floats) -> None:
    for what, column in (*features.items(), ("weights", weights)):
        if len(column) != len(labels):
            raise InputError(f"{what} has {len(column)} rows, the labels have {len(labels)}")
    if not np.isfinite(labels).all():
        raise InputError("labels must be finite numbers")
    if len(labels) and not (labels.min() >= 0 and labels.max() <= 1):
        raise InputError(f"labels must be numbers from 0 to 1; given: from {labels.min()} to {labels.max()}")
    for name, column in features.items():
        if column.dtype.kind == "f" and not np.isfinite(column).all():
            raise InputError(f"feature {name!r} must hold finite numbers")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise InputError("sample weights must be finite numbers of at least 0")
