"""What a model declares so that it can be trained in the cloud, exported, and trained again on a device.

A model is one `nn.Module`. Its inputs are a `Schema`; `sliced` names those parameters and buffers whose first
dimension is a vocabulary. A device holds only a few rows of these, and ids are renumbered to match, so `forward`
must not depend on how many rows a sliced tensor has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from device_runtime.samples import Schema


@dataclass(frozen=True)
class Catalogue:
    """What a model must know of the items: sizes, and the categories of each.

    items, categories: rows of the vocabularies, padding included. item_categories: int64 [items, at most 4], 0 = none.
    """

    items: int
    categories: int
    item_categories: Tensor


class Recommender(nn.Module, ABC):
    """Base of the recommenders.

    schema: the inputs. sliced: parameter or buffer name -> vocabulary. width: of the embedding that `encode` gives.
    filter_from: the first of its columns that describe the impression rather than the person behind it. Only these
    go to the sample classifier: with the others it tells people apart at a glance, and learns nothing of taste.
    head: the last layer, as prefixes of parameter names; what moves where only the head is to train.
    """

    schema: Schema
    sliced: ClassVar[Mapping[str, str]]
    width: int
    filter_from: int
    head: ClassVar[tuple[str, ...]] = ("out",)

    @abstractmethod
    def forward(self, **features: Tensor) -> Tensor:
        """Features as in the schema (ids int64 [B], histories int64 [B, bound], 0 = padding) -> logits [B]."""

    @abstractmethod
    def encode(self, **features: Tensor) -> Tensor:
        """The same features -> float [B, width], unit length; near samples are of near taste and near items."""


def gather(table: Tensor, ids: Tensor) -> Tensor:
    """Rows of [R, d] at ids of any shape. Its backward is one scatter-add; `nn.Embedding`'s drags masks along."""
    return table.index_select(0, ids.reshape(-1)).reshape(*ids.shape, table.shape[1])


def relu(x: Tensor) -> Tensor:
    """As a product, so that the backward is a product too: `threshold_backward` lowers to slow selects."""
    return x * (x > 0).to(x.dtype)


def masked_softmax(score: Tensor, present: Tensor) -> Tensor:
    """Softmax over the last dimension where present (0 or 1); all zeros where nothing is."""
    score = score + (present - 1) * 1e4
    weight = torch.softmax(score, -1)
    return weight * present


def unit(x: Tensor) -> Tensor:
    """Rows scaled to unit length; a zero row stays zero."""
    return x / torch.sqrt((x * x).sum(-1, keepdim=True)).clamp(min=1e-6)
