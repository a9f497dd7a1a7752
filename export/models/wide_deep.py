"""Wide & Deep (Cheng et al., DLRS 2016): a linear model that remembers beside a network that generalizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from export.models.base import Catalogue
from export.models.history import HistoryModel, mean, table
from export.models.layers import Tower


class WideDeep(HistoryModel):
    """Wide: a weight for the item and for each item of the history (as their mean). Deep: both, and their product,
    through two hidden layers; the product stands for the crosses that the paper's wide part is given by hand."""

    sliced: ClassVar[Mapping[str, str]] = {**HistoryModel.sliced, "wide.weight": "item"}
    head: ClassVar[tuple[str, ...]] = ("tower.out",)

    def __init__(self, catalogue: Catalogue, history: int = 50, embedding: int = 16) -> None:
        super().__init__(catalogue, history, embedding)
        self.wide = table(catalogue.items, 2, std=0.0)
        self.tower = Tower(6 * embedding)

    def forward(self, item: Tensor, history: Tensor) -> Tensor:  # type: ignore[override]
        # the two linear weights of an item, as target and as history, are looked up with its embedding
        target, past, present = self.look_up(torch.cat([self.rows(), self.wide.weight], -1), item, history)
        split = [target.shape[1] - 2, 1, 1]
        target, wide, _ = torch.split_with_sizes(target, split, -1)
        taste, _, liked = torch.split_with_sizes(mean(past, present), split, -1)
        deep: Tensor = self.tower(torch.cat([taste, target, taste * target], -1))
        return deep + (wide + liked).squeeze(-1)
