"""Logistic regression: the smallest model, and the yardstick for the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from device_runtime.samples import Feature, Schema
from export.models.base import Catalogue, Recommender, gather, unit
from export.models.history import mean, table


class LR(Recommender):
    """A weight for the item, for each item of the history (as their mean), for the item's categories, and for one
    cross: how much the item is like the history.

    Likeness, and `encode`, need vectors, and a linear model learns none: an item's `code` is a frozen random
    projection of its categories and itself, so that items that share a category are near in it.
    """

    sliced: ClassVar[Mapping[str, str]] = {"item.weight": "item", "code": "item", "item_categories": "item"}
    head: ClassVar[tuple[str, ...]] = ("affinity", "bias")

    def __init__(self, catalogue: Catalogue, history: int = 50, code: int = 16) -> None:
        super().__init__()
        past = Feature("history", "ids", "item", history, ordered=False)
        self.schema = Schema((Feature("item", "id", "item"), past))
        self.item = table(catalogue.items, 2, std=0.0)
        self.category = table(catalogue.categories, 1, std=0.0)
        self.affinity = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(1))
        self.item_categories: Tensor
        self.register_buffer("item_categories", catalogue.item_categories)
        self.code: Tensor
        self.register_buffer("code", _codes(catalogue, code))
        self.width, self.filter_from = 2 * code, code

    def _look_up(self, columns: list[Tensor], item: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the columns side by side: the items' [B, d], and their mean over the histories [B, d]."""
        rows = torch.cat(columns, -1)
        return gather(rows, item), mean(gather(rows, history), (history != 0).to(rows.dtype))

    def forward(self, item: Tensor, history: Tensor) -> Tensor:  # type: ignore[override]
        present = (self.item_categories != 0).to(self.code.dtype)
        category = (gather(self.category.weight, self.item_categories).squeeze(-1) * present).sum(1, keepdim=True)
        target, taste = self._look_up([self.code, self.item.weight, category], item, history)
        split = [self.code.shape[1], 1, 1, 1]
        code, own, _, kind = torch.split_with_sizes(target, split, -1)
        liking, _, liked, _ = torch.split_with_sizes(taste, split, -1)
        cross = (code * liking).sum(-1, keepdim=True)
        return (own + kind + liked + self.affinity * cross + self.bias).squeeze(-1)

    def encode(self, item: Tensor, history: Tensor) -> Tensor:  # type: ignore[override]
        target, taste = self._look_up([self.code], item, history)
        return unit(torch.cat([unit(taste), unit(target)], -1))


def _codes(catalogue: Catalogue, width: int) -> Tensor:
    """float32 [items, width]: unit length; half of an item's is its own, the rest its categories'."""
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(catalogue.items, width, generator=generator)
    of_category = torch.randn(catalogue.categories, width, generator=generator)
    categories = catalogue.item_categories
    present = (categories != 0).float().unsqueeze(-1)
    shared = (of_category[categories] * present).sum(1) / present.sum(1).clamp(min=1)
    code = unit(0.5 * own + shared)
    code[0] = 0
    return code
