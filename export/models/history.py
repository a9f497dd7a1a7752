"""The base of models over (item, history of liked items), which is what a device makes of its events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from device_runtime.samples import Feature, Schema
from export.models.base import Catalogue, Recommender, gather, unit

FEW_CATEGORIES = 64
"""Up to so many, an item's categories are written as numbers for all of them: at most 256 bytes."""


class HistoryModel(Recommender):
    """An item is its embedding beside the mean of its categories' embeddings: [2 * embedding].

    No user id: the pool is anonymous, and a device must be able to start from nothing. A person is the history.
    ordered: whether the model looks at the order of the history; where it does not, the wire need not keep it.
    """

    ordered: ClassVar[bool] = False
    sliced: ClassVar[Mapping[str, str]] = {"item.weight": "item", "item_categories": "item"}

    def __init__(self, catalogue: Catalogue, history: int, embedding: int) -> None:
        super().__init__()
        past = Feature("history", "ids", "item", history, ordered=self.ordered)
        self.schema = Schema((Feature("item", "id", "item"), past))
        self.item = table(catalogue.items, embedding)
        self.category = table(catalogue.categories, embedding)
        self.item_categories: Tensor
        self.register_buffer("item_categories", catalogue.item_categories)
        self.width, self.filter_from = 4 * embedding, 2 * embedding

    def rows(self) -> Tensor:
        """[rows, 2 * embedding]: every item at hand, once, instead of once per place in a history."""
        categories, weight = self.item_categories, self.category.weight
        among = torch.arange(weight.shape[0])
        known = (among != 0).to(weight.dtype).unsqueeze(-1)
        count = (categories != 0).to(weight.dtype).sum(-1, keepdim=True).clamp(min=1)
        # padding is masked in the small table, not in every item's four places: fewer numbers, and no gradient either
        if len(among) <= FEW_CATEGORIES:
            # the mean as a product with each item's shares of the categories, [rows, categories]: they are not trained,
            # so that a call of several steps computes them once
            one = (among.unsqueeze(1) == among).to(weight.dtype) * known
            pooled = (gather(one, categories).sum(1) / count) @ weight
        else:
            pooled = gather(weight * known, categories).sum(1) / count
        return torch.cat([self.item.weight, pooled], -1)

    def look_up(self, rows: Tensor, item: Tensor, history: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of rows [R, d]: the items' [B, d], the histories' [B, H, d], and which places of these are filled [B, H]."""
        return gather(rows, item), gather(rows, history), (history != 0).to(rows.dtype)

    def encode(self, item: Tensor, history: Tensor) -> Tensor:  # type: ignore[override]
        """The mean of the history, and the item, each of the same length: both have a say in what is near."""
        target, past, present = self.look_up(self.rows(), item, history)
        return unit(torch.cat([unit(mean(past, present)), unit(target)], -1))


def table(rows: int, width: int, std: float = 0.05) -> nn.Embedding:
    """An embedding table whose row 0, padding, is zero."""
    made = nn.Embedding(rows, width)
    nn.init.normal_(made.weight, std=std)
    with torch.no_grad():
        made.weight[0] = 0
    return made


def mean(past: Tensor, present: Tensor) -> Tensor:
    """[B, H, d] -> [B, d]: the mean of the places that are filled; zero of an empty history."""
    return (past * present.unsqueeze(-1)).sum(1) / present.sum(-1, keepdim=True).clamp(min=1)
