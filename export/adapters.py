"""Small personal parameters beside frozen dense layers: a low-rank patch, or a scale and a shift per layer.

Adapters start without effect, so the cloud's model serves unchanged until a device has trained them. A device stores
and sends only what moved, which is then a few kilobytes however large the model is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from device_runtime.errors import InputError
from export.models.base import Recommender


class LowRankLinear(nn.Linear):
    """`W + up @ down` in place of W (LoRA; Hu et al., ICLR 2022). up: [out, rank], zeros; down: [rank, in]."""

    def __init__(self, of: nn.Linear, rank: int, generator: torch.Generator) -> None:
        _adopt(self, of)
        self.up = nn.Parameter(torch.zeros(of.out_features, rank))
        self.down = nn.Parameter(torch.randn(rank, of.in_features, generator=generator) / math.sqrt(of.in_features))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + nn.functional.linear(nn.functional.linear(x, self.down), self.up)


class PatchedLinear(nn.Linear):
    """`(1 + scale) * y + shift` in place of a layer's output y: a patch of two vectors for a user, over a backbone that
    stays as it is (in the manner of DCCL; Yao et al., KDD 2021). Both [out], zeros."""

    def __init__(self, of: nn.Linear) -> None:
        _adopt(self, of)
        self.scale = nn.Parameter(torch.zeros(of.out_features))
        self.shift = nn.Parameter(torch.zeros(of.out_features))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + self.scale * y + self.shift


def with_low_rank(model: Recommender, rank: int) -> tuple[Recommender, tuple[str, ...]]:
    """A copy with a patch of that rank beside every dense layer larger than it, and the names of the new parameters.

    Raises:
        InputError: no layer is larger.
    """
    generator = torch.Generator().manual_seed(0)
    largest = max((min(layer.weight.shape) for layer in _dense(model).values()), default=0)
    if rank >= largest:
        raise InputError(
            f"a low-rank patch of rank {rank} fits no dense layer of {type(model).__name__}: "
            f"the rank must be below {largest}, the smaller side of its largest layer"
            if largest
            else f"{type(model).__name__} has no nn.Linear that a low-rank patch could sit beside"
        )
    return _replace(
        model,
        lambda layer: LowRankLinear(layer, rank, generator) if rank < min(layer.weight.shape) else None,
        ("up", "down"),
    )


def with_patch(model: Recommender) -> tuple[Recommender, tuple[str, ...]]:
    """A copy with a scale and a shift on the output of every dense layer, and the names of the new parameters.

    Raises:
        InputError: there is no dense layer.
    """
    if not _dense(model):
        raise InputError(f"{type(model).__name__} has no nn.Linear that a patch could sit on")
    return _replace(model, PatchedLinear, ("scale", "shift"))


def _dense(model: nn.Module) -> dict[str, nn.Linear]:
    """Exactly `nn.Linear`: what a subclass does with its weight is not known."""
    return {name: module for name, module in model.named_modules() if type(module) is nn.Linear}


def _replace(
    model: Recommender, adapt: Callable[[nn.Linear], nn.Linear | None], added: tuple[str, ...]
) -> tuple[Recommender, tuple[str, ...]]:
    adapted = copy.deepcopy(model)
    names: list[str] = []
    for name, layer in _dense(adapted).items():
        made = adapt(layer)
        if made is not None:
            parent, _, own = name.rpartition(".")
            setattr(adapted.get_submodule(parent), own, made)
            names += [f"{name}.{parameter}" for parameter in added]
    return adapted, tuple(names)


def _adopt(made: nn.Linear, of: nn.Linear) -> None:
    """Set up a layer around another's own parameters: their names, and so the encoder's digest, stay the same."""
    nn.Module.__init__(made)
    made.in_features, made.out_features = of.in_features, of.out_features
    made.weight, made.bias = of.weight, of.bias
