"""Can a device feed, slice and train a model? Asked when it is made, so that no training is spent in vain."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from device_runtime.errors import InputError
from device_runtime.samples import Feature, Schema
from export.models.base import Catalogue, Recommender

VOCABULARY = "item"
_BATCH = 4


def check_recommender(model: Recommender, catalogue: Catalogue, history: int) -> None:
    """Refuse a model whose declarations do not hold.

    Raises:
        InputError: says which declaration, what was expected and what was found.
    """
    name = type(model).__name__
    _check_schema(name, getattr(model, "schema", None), history)
    _check_sliced(name, model, catalogue)
    width, start = getattr(model, "width", None), getattr(model, "filter_from", None)
    if not isinstance(width, int) or width < 1:
        raise InputError(f"{name}.width must be the number of columns that `encode` gives, at least 1; it is {width!r}")
    if not isinstance(start, int) or not 0 <= start < width:
        raise InputError(
            f"{name}.filter_from must be a column of the embedding, from 0 to {width - 1}; it is {start!r}: "
            "the columns from there on describe the impression, and the sample classifier needs at least one"
        )
    _check_outputs(name, model, catalogue)


def _check_schema(name: str, schema: object, history: int) -> None:
    if not isinstance(schema, Schema):
        raise InputError(f"{name}.schema must be a device_runtime.samples.Schema, set in its constructor")
    made = {
        "item": Feature("item", "id", VOCABULARY),
        "history": Feature("history", "ids", VOCABULARY, history),
    }
    what = "devices make `item` (an id of 'item') and `history` (ids of 'item') of their events, and nothing else"
    for feature in schema.features:
        expected = made.pop(feature.name, None)
        if expected is None:
            raise InputError(f"{name} asks for a feature {feature.name!r} ({feature.kind}) that no device has: {what}")
        if (feature.kind, feature.vocabulary) != (expected.kind, expected.vocabulary):
            raise InputError(
                f"{name} asks for {feature.name!r} as {feature.kind} of {feature.vocabulary!r}, "
                f"but it is {expected.kind} of {expected.vocabulary!r}: {what}"
            )
        if feature.bound != expected.bound:
            raise InputError(
                f"{name}'s {feature.name!r} holds {feature.bound} ids, but the model was made for {expected.bound}: "
                "use the constructor's `history` as its bound"
            )
    if made:
        raise InputError(f"{name}'s schema lacks {', '.join(made)}: {what}")


def _check_sliced(name: str, model: Recommender, catalogue: Catalogue) -> None:
    held: dict[str, Tensor] = dict(model.named_parameters()) | dict(model.named_buffers())
    sliced = getattr(model, "sliced", {})
    if not any(n in dict(model.named_parameters()) for n in sliced):
        raise InputError(f"{name}.sliced must name at least one parameter with a row per item, such as 'item.weight'")
    for tensor, vocabulary in sliced.items():
        if tensor not in held:
            raise InputError(f"{name}.sliced names {tensor!r}, but the model has only {', '.join(sorted(held))}")
        if vocabulary != VOCABULARY:
            raise InputError(f"{name}.sliced cuts {tensor!r} by {vocabulary!r}; the only vocabulary is {VOCABULARY!r}")
        if len(held[tensor]) != catalogue.items:
            raise InputError(f"{name}: {tensor!r} has {len(held[tensor])} rows, but there are {catalogue.items} items")
    for tensor, value in model.named_parameters():
        if value.dtype != torch.float32:
            raise InputError(f"{name}: parameter {tensor!r} is {_dtype(value)}; graphs train float32")


def _check_outputs(name: str, model: nn.Module, catalogue: Catalogue) -> None:
    """Both functions, tried on a few samples, over all rows and over few of them."""
    assert isinstance(model, Recommender)
    training = model.training
    model.eval()
    bound = model.schema["history"].bound
    last = min(catalogue.items - 1, _BATCH)
    item = torch.arange(_BATCH).clamp(max=last)
    history = torch.zeros(_BATCH, bound, dtype=torch.int64)
    history[1:, 0] = last
    held: dict[str, Tensor] = dict(model.named_parameters()) | dict(model.named_buffers())
    few = {n: held[n][: last + 1] for n in model.sliced}
    with torch.no_grad():
        for function, shape in (("forward", (_BATCH,)), ("encode", (_BATCH, model.width))):
            whole = _call(name, model, function, {}, item, history)
            if not isinstance(whole, Tensor) or tuple(whole.shape) != shape:
                found = list(whole.shape) if isinstance(whole, Tensor) else type(whole).__name__
                raise InputError(
                    f"{name}.{function} must give a tensor of {list(shape)} for {_BATCH} samples, not {found}"
                )
            if not torch.isfinite(whole).all():
                raise InputError(
                    f"{name}.{function} gives numbers that are not finite, for instance of empty histories"
                )
            if not torch.allclose(whole, _call(name, model, function, few, item, history), atol=1e-5):
                raise InputError(
                    f"{name}.{function} changes with the number of rows in {', '.join(model.sliced)}; "
                    "a device holds only the rows in use, so the result may depend on the ids' rows alone"
                )
            length = torch.linalg.vector_norm(whole, dim=-1)
            if function == "encode" and not ((length - 1).abs().minimum(length) < 1e-3).all():
                raise InputError(f"{name}.encode must give rows of unit length; export.models.base.unit makes them so")
    model.train(training)


class _Named(nn.Module):
    def __init__(self, model: Recommender, function: str) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, item: Tensor, history: Tensor) -> Tensor:
        result: Tensor = getattr(self.model, self.function)(item=item, history=history)
        return result


def _call(
    name: str, model: Recommender, function: str, held: Mapping[str, Tensor], item: Tensor, history: Tensor
) -> Tensor:
    try:
        own = {f"model.{n}": value for n, value in held.items()}
        result: Tensor = functional_call(_Named(model, function), own, (item, history))
        return result
    except Exception as error:  # whatever a user's code may raise
        raise InputError(f"{name}.{function}(item=…, history=…) fails: {type(error).__name__}: {error}") from error


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
