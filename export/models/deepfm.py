"""DeepFM (Guo et al., IJCAI 2017): a factorization machine and a network over the same embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from export.models.base import Catalogue
from export.models.history import HistoryModel, mean, table
from export.models.layers import Tower


class DeepFM(HistoryModel):
    """Four fields of one width: the item, its categories, and the means of both over the history.

    First order: a weight per item, as target and in a history. Second order: the products of all pairs of fields, by
    half the square of the sum less the sum of squares.
    """

    sliced: ClassVar[Mapping[str, str]] = {**HistoryModel.sliced, "linear.weight": "item"}
    head: ClassVar[tuple[str, ...]] = ("tower.out",)

    def __init__(self, catalogue: Catalogue, history: int = 50, embedding: int = 16) -> None:
        super().__init__(catalogue, history, embedding)
        self.linear = table(catalogue.items, 2, std=0.0)
        self.tower = Tower(4 * embedding)

    def forward(self, item: Tensor, history: Tensor) -> Tensor:  # type: ignore[override]
        target, past, present = self.look_up(torch.cat([self.rows(), self.linear.weight], -1), item, history)
        width = target.shape[1] - 2
        target, first, _ = torch.split_with_sizes(target, [width, 1, 1], -1)
        taste, _, liked = torch.split_with_sizes(mean(past, present), [width, 1, 1], -1)
        fields = torch.cat([target, taste], -1)
        field = fields.reshape(fields.shape[0], 4, width // 2)
        total = field.sum(1)
        second = 0.5 * (total * total - (field * field).sum(1)).sum(-1)
        deep: Tensor = self.tower(fields)
        return deep + second + (first + liked).squeeze(-1)
