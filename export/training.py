"""What trains on a device, and how: from a declaration to a model with adapters and a step over it."""

from __future__ import annotations

import math
import re

from torch import nn

from device_runtime.bundle import Training
from device_runtime.errors import InputError
from export.adapters import with_low_rank, with_patch
from export.graphs import logits_of
from export.models.base import Recommender
from export.step import SGD, Adagrad, Adam, Optimizer, Step

EPSILON = 1e-5
"""Of Adam and Adagrad. Larger than is customary: a gradient that is only rounding noise must not become a full step."""


def prepare(model: Recommender, training: Training) -> tuple[Recommender, Step]:
    """The model that is exported (a copy with adapters, or the model itself) and its training step.

    Raises:
        InputError: the declaration contradicts itself, or the model has nothing of what it says is to move.
    """
    optimizer = optimizer_of(training)
    model, names = _moving(model, training.train)
    # a category is in many samples of a batch and needs no rate of its own, as an item does
    return model, Step(logits_of(model), names, optimizer, training.clip, tables_of(model), frozenset(model.sliced))


def optimizer_of(training: Training) -> Optimizer:
    """Raises: InputError: a number is out of range, or does not go with the optimizer."""
    for what in ("weight_decay", "clip"):
        value = getattr(training, what)
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"{what.replace('_', ' ')} must be a finite number of at least 0, not {value}")
    if not 0 <= training.momentum < 1:
        raise InputError(f"momentum must be at least 0 and below 1, not {training.momentum}")
    if training.momentum and training.optimizer != "sgd":
        raise InputError(f"{training.optimizer} takes no momentum; leave it out, or choose sgd")
    decay = training.weight_decay
    if training.optimizer == "sgd":
        return SGD(training.momentum, decay)
    if training.optimizer == "adagrad":
        return Adagrad(EPSILON, decay)
    return Adam(epsilon=EPSILON, weight_decay=decay, decoupled=training.optimizer == "adamw")


def tables_of(model: Recommender) -> frozenset[str]:
    """The parameters that are embedding tables: a row of one belongs to an id."""
    embeddings = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    return frozenset(n for n, _ in model.named_parameters() if n in embeddings or n in model.sliced)


def _moving(model: Recommender, train: str) -> tuple[Recommender, tuple[str, ...]]:
    names = tuple(n for n, _ in model.named_parameters())
    if train == "all":
        return model, names
    if train == "embeddings":
        tables = tables_of(model)
        found = tuple(n for n in names if n in tables)
    elif train == "head":
        found = tuple(n for n in names if any(n == h or n.startswith(f"{h}.") for h in model.head))
    elif train == "patch":
        return with_patch(model)
    elif rank := re.fullmatch(r"lowrank:([1-9]\d*)", train):
        return with_low_rank(model, int(rank[1]))
    else:
        raise InputError(f"cannot train {train!r}; choose all, embeddings, head, patch, or lowrank:R, as in lowrank:4")
    if not found:
        raise InputError(f"{type(model).__name__} has no parameters that count as its {train}")
    return model, found
