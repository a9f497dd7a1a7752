"""Moves the rows of items so that the model's logits become those asked for.

Gradient descent at one rate for all rows overshoots on some and hardly moves others: how far a logit moves with a step
differs from item to item by orders of magnitude. The secant method does not: the step graph says in which direction a
row is to go, the score graph how far the logit went, and the row goes as many times as far as is needed; then as many
times as what this step gave asks for. Most rows' gradients hardly turn on so short a way, and asking costs more than
two scores: so it is asked again only where the first direction did not lead far enough
(`docs/adr/0028-directions-are-asked-for-again-where-they-fell-short.md`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from device_runtime.candidates import sigmoid
from device_runtime.engines import Array
from device_runtime.model import VOCABULARY, Model
from device_runtime.samples import Float32, Float64, Int64, SampleBatch
from device_runtime.tables import TOGETHER, LocalTable, features
from device_runtime.trainer import initial_state, scores, train

_STILL = 1e-12
"""Learning rate of what must not move: training refuses 0."""
_PUSH = 2.0
"""Logits by which a probe's label differs from the prediction: a push of like size for every row."""
_FAR = 3.0
"""A step's length, at most: in terms of the root mean square of rows' lengths."""
_DIRECTIONS, _NEAR, _SLIGHT = 3, 0.1, 0.01
"""How often a row's direction is asked for, at most: again only where more is left of the change than this share of it,
and than so many logits."""


def apart(model: Model, columns: Mapping[str, Array], rows: int) -> tuple[dict[str, Array], Int64]:
    """Features whose histories point to rows of their own, which may train and are thrown away; and the rows, int64,
    that these are copies of (`with_past`). rows: of the table; 0, the padding, stays what it is.

    A user's history is in each of their samples. Were its rows to move with every one, the user's whole profile would
    drift at the rate that is meant for an item seen once.
    """
    schema = model.manifest.schema
    histories = [f.name for f in schema.features if f.kind == "ids" and f.vocabulary == VOCABULARY]
    seen = np.zeros(rows, bool)
    for name in histories:
        seen[columns[name].astype(np.int64)] = True
    seen[0] = False
    past = np.flatnonzero(seen)
    moved = np.zeros(rows, np.int64)
    moved[past] = rows + np.arange(len(past))
    return {n: moved[c.astype(np.int64)] if n in histories else c for n, c in columns.items()}, past


def with_past(model: Model, values: Mapping[str, Array], copied: Mapping[str, Array], past: Int64) -> dict[str, Array]:
    """The values, with these rows of `copied` under their own."""
    return {**values, **{n: np.concatenate([values[n], copied[n][past]]) for n in sliced(model)}}


def sliced(model: Model) -> list[str]:
    """The step's params and attributes that are cut to the rows at hand."""
    return [t.name for t in model.spec("step").of("param", "attribute") if t.table == VOCABULARY]


def _moving(model: Model) -> list[str]:
    step = model.spec("step")
    return [t.name for t in step.of("param") if t.table and t.name in step.carry.values()]


def reach(
    model: Model,
    values: Mapping[str, Array],
    table: LocalTable,
    samples: SampleBatch,
    change: Float64,
    still: Int64,
    *,
    steps: int,
    probe: float,
    rng: np.random.Generator,
) -> dict[str, Array]:
    """The values, with rows such that the logit of each sample has changed as asked.

    values: params and attributes of the step graph. table: whose rows they are cut to. samples: one an item, at most.
    change: float64 [n], of logits. still: rows of the table that stay. steps: secant steps. probe: the learning rate of
    rows with which directions are asked for. Rows that no gradient moves stay; a step that leads further away is not
    taken. Histories are those of the rows as they were.
    """
    moving = _moving(model)
    if not moving or not len(samples):
        return dict(values)
    found = {n: np.array(values[n], np.float32) for n in moving}
    length = np.sqrt(sum(_square(part[1:]) for part in found.values()))
    far = _FAR * float(np.sqrt(np.mean(length**2))) if len(length) else 0.0
    left, who = change.copy(), np.arange(len(samples))
    for _ in range(_DIRECTIONS):
        for start in range(0, len(who), TOGETHER):  # every step of training copies the rows that it is given
            some = who[start : start + TOGETHER]
            part = samples.take(some)
            rows = table.of(part.ids(VOCABULARY))
            at = table.local(rows.ids)
            moved, left[some] = _reached(
                model,
                {**values, **{n: values[n][at] for n in sliced(model)}},
                {n: found[n][at] for n in moving},
                features(part, {VOCABULARY: rows}),
                left[some],
                ~np.isin(at, still),
                far,
                steps=steps,
                probe=probe,
                rng=rng,
            )
            for n in moving:
                found[n][at] = moved[n]
        who = who[np.abs(left[who]) > np.maximum(_NEAR * np.abs(change[who]), _SLIGHT)]
    return {**values, **found}


def _reached(
    model: Model,
    values: Mapping[str, Array],
    rows: Mapping[str, Float32],
    columns: Mapping[str, Array],
    change: Float64,
    free: npt.NDArray[np.bool_],
    far: float,
    *,
    steps: int,
    probe: float,
    rng: np.random.Generator,
) -> tuple[Mapping[str, Float32], Float64]:
    """(the rows of some samples, moved along one direction each; float64 [n], how much of the change is left where the
    row may move, else 0). values: cut to these rows, as histories see them. rows: as they are by now. columns: the
    samples' features. free: bool [rows], whether each may move. far: a step's length, at most."""
    [item] = [f.name for f in model.manifest.schema.features if f.kind == "id" and f.vocabulary == VOCABULARY]
    at = columns[item].astype(np.int64)
    columns, past = apart(model, columns, len(free))
    moving = _moving(model)

    def placed(rows: Mapping[str, Array]) -> dict[str, Array]:
        return with_past(model, {**values, **rows}, values, past)

    def logits(rows: Mapping[str, Array]) -> Float64:
        return scores(model.graph("score"), placed(rows), columns).astype(np.float64)

    def direction_to(labels: Float32) -> dict[str, Float32]:
        step, start = model.graph("step"), placed(rows)
        trained, _ = train(
            step,
            {**start, **initial_state(step.spec, start)},
            columns,
            labels,
            np.ones(len(labels), np.float32),
            rate=_STILL,
            epochs=1,
            rng=rng,
            table_rate=probe,
        )
        return {n: trained[n][: len(free)].astype(np.float32) - rows[n] for n in moving}

    now = logits(rows)
    goal = now + change
    direction = direction_to(sigmoid(now + np.sign(change) * _PUSH).astype(np.float32))
    slope = logits({n: rows[n] + direction[n] for n in moving}) - now
    may = free[at] & (slope * change > 0)
    most = far / np.maximum(np.sqrt(sum(_square(part[at]) for part in direction.values())), 1e-12)
    for _ in range(steps):
        lacking = goal - now
        times = np.where(may & (slope != 0), lacking / np.where(slope == 0, 1, slope), 0)
        times = np.clip(times, -most, most)
        tried = _stepped(rows, direction, at, times)
        then = logits(tried)
        slope = np.where(times != 0, (then - now) / np.where(times == 0, 1, times), slope)
        times[np.abs(goal - then) > np.abs(lacking)] = 0
        rows = _stepped(rows, direction, at, times)
        now = np.where(times != 0, then, now)
    return rows, np.where(free[at], goal - now, 0)


def _stepped(
    rows: Mapping[str, Float32], direction: Mapping[str, Float32], at: Int64, times: Float64
) -> dict[str, Float32]:
    found = {n: part.copy() for n, part in rows.items()}
    for n, part in found.items():
        shape = (-1, *[1] * (part.ndim - 1))
        part[at] += times.reshape(shape).astype(np.float32) * direction[n][at]
    return found


def _square(part: Float32) -> Float64:
    return np.asarray((part.reshape(len(part), -1).astype(np.float64) ** 2).sum(1))
