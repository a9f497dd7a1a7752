"""Product-based neural network (Qu et al., ICDM 2016), with inner products (IPNN)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from export.models.base import Catalogue
from export.models.history import HistoryModel, mean
from export.models.layers import Tower


class PNN(HistoryModel):
    """Four fields of one width, as in DeepFM; their inner products, all pairs, go through the network with them."""

    head: ClassVar[tuple[str, ...]] = ("tower.out",)

    def __init__(self, catalogue: Catalogue, history: int = 50, embedding: int = 16) -> None:
        super().__init__(catalogue, history, embedding)
        self.tower = Tower(4 * embedding + 16)

    def forward(self, item: Tensor, history: Tensor) -> Tensor:  # type: ignore[override]
        target, past, present = self.look_up(self.rows(), item, history)
        fields = torch.cat([target, mean(past, present)], -1)
        field = fields.reshape(fields.shape[0], 4, fields.shape[1] // 4)
        # the whole Gram matrix in one product: picking its upper half would cost more than it saves
        products = torch.bmm(field, field.transpose(1, 2)).reshape(fields.shape[0], 16)
        logit: Tensor = self.tower(torch.cat([fields, products], -1))
        return logit
