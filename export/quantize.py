"""Narrower weights for a bundle, and what they cost in accuracy: measured on the model itself, stated in the manifest.

Largest is what item rows save: they are most of what a device fetches and keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from device_runtime.bundle import RankWeights, WeightForm
from device_runtime.engines import Array
from device_runtime.errors import InputError
from device_runtime.metrics import auc
from device_runtime.quantized import SCALE, Float32, widened
from device_runtime.samples import SampleBatch
from device_runtime.tables import LocalTable, features
from export.graphs import feature_examples
from export.models.base import Recommender

FORMS: tuple[WeightForm, ...] = get_args(WeightForm)
MADE_UP = 1024
"""Random samples that logits are compared on where none are held out."""
_BATCH = 1024


def narrowed(values: Mapping[str, Array], form: WeightForm, rows: bool) -> dict[str, Array]:
    """Weights in the form in which they are stored, with a scale beside each that became bytes; integers as int32.

    rows: of an item table, which is never stored wider than half precision (the same rows travel in shards and in
    answers); else a model's other tensors. Those of less than two dimensions are few, and become float16 under `int8`.

    Raises:
        InputError: there is no such form, or a weight is not finite or too large for it.
    """
    if form not in FORMS:
        raise InputError(f"weights cannot be stored as {form!r}; choose {', '.join(FORMS)}")
    found: dict[str, Array] = {}
    for name, value in values.items():
        if value.dtype.kind != "f":
            found[name] = value.astype(np.int32) if rows else value
        elif not np.isfinite(value).all():
            raise InputError(f"weight {name!r} holds numbers that are not finite; train again at a lower rate")
        elif form == "int8" and value.ndim > 1:
            found[name], found[SCALE + name] = _bytes(name, value.astype(np.float32))
        elif form == "fp32" and not rows:
            found[name] = value
        else:
            found[name] = _half(name, value)
    return found


def _half(name: str, value: Array) -> Array:
    largest = float(np.abs(value).max(initial=0))
    if largest > float(np.finfo(np.float16).max):
        raise InputError(f"weight {name!r} reaches {largest:.3g}, which float16 cannot hold (65504 at most)")
    return value.astype(np.float16)


def _bytes(name: str, value: Float32) -> tuple[Array, Array]:
    """(int8 [n, ...], float16 [n]): multiples of about a 127th of each row's largest magnitude, and that 127th."""
    largest: Float32 = np.abs(value).max(tuple(range(1, value.ndim)), initial=0)
    scale = _half(f"{SCALE}{name}", largest / 127)
    # up, so that the largest stays within 127 steps
    short = scale.astype(np.float32) * 127 < largest
    scale[short] = np.nextafter(scale[short], np.float16(np.inf))
    step = np.where(largest > 0, scale.astype(np.float32), np.float32(1)).reshape(-1, *[1] * (value.ndim - 1))
    return np.clip(np.rint(value / step), -127, 127).astype(np.int8), scale


def loss_of(
    model: Recommender, narrow: Mapping[str, Array], form: WeightForm, held_out: SampleBatch | None
) -> RankWeights:
    """How far the model's logits move, and its AUC on held-out samples, if it ranks by the narrow weights.

    narrow: every parameter and buffer of the model, as stored. held_out: labelled samples that the model was not
    trained on; None: logits are compared on made-up ones, and no AUC is stated.
    """
    values = {n: torch.from_numpy(np.array(v)) for n, v in widened(narrow).items()}
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {n: v.to(own[n].dtype) for n, v in values.items()}
    given = inputs_of(model, held_out)
    count = len(next(iter(given.values())))
    exact, rounded = (_logits(model, used, given, count) for used in ({}, values))
    before, after = (None, None) if held_out is None else (auc(held_out.labels, x) for x in (exact, rounded))
    return RankWeights(
        form=form,
        samples=count,
        max_logit_difference=float(np.abs(rounded - exact).max(initial=0)),
        auc_change=None if before is None or after is None else after - before,
    )


def inputs_of(model: Recommender, held_out: SampleBatch | None) -> dict[str, Tensor]:
    """What the model's methods take, of whole tables; of made-up samples where there are none."""
    if held_out is None:
        rows = min(_rows(model, name) for name in model.sliced.values())
        return {spec.name: value for spec, value in feature_examples(model, MADE_UP, rows).items()}
    everything = {name: np.arange(_rows(model, name), dtype=np.int32) for name in set(model.sliced.values())}
    tables = {name: LocalTable(ids, {}) for name, ids in everything.items()}
    return {name: torch.from_numpy(value) for name, value in features(held_out, tables).items()}


def _rows(model: Recommender, vocabulary: str) -> int:
    return min(len(model.state_dict()[n]) for n, of in model.sliced.items() if of == vocabulary)


def _logits(model: Recommender, values: Mapping[str, Tensor], given: Mapping[str, Tensor], count: int) -> Float32:
    found = []
    with torch.no_grad():
        for start in range(0, count, _BATCH):
            batch = {name: value[start : start + _BATCH] for name, value in given.items()}
            found.append(functional_call(model, dict(values), (), batch).numpy())
    return np.concatenate(found).astype(np.float32)
