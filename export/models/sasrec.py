"""Self-attentive sequential recommendation (Kang & McAuley, ICDM 2018)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from export.models.base import Catalogue, gather, masked_softmax, relu
from export.models.history import HistoryModel, table
from export.models.layers import Norm, Tower


class Block(nn.Module):
    """Causal self-attention and a pointwise network, each after a normalization and with a residual (one head)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.between = Norm(width), Norm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)  # a bias would shift all scores alike, which softmax undoes
        self.value = nn.Linear(width, width, bias=False)
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """x: [B, H, d]. visible: [B, H, H], 1 where the second place may be seen from the first."""
        normal = self.before(x)
        score = torch.bmm(self.query(normal), self.key(normal).transpose(1, 2)) / math.sqrt(x.shape[2])
        x = x + torch.bmm(masked_softmax(score, visible), self.value(normal))
        passed: Tensor = self.outer(relu(self.inner(self.between(x))))
        return x + passed


class SASRec(HistoryModel):
    """The state after the newest item of the history meets the item in a small network.

    Places are counted from the newest, so that what "last" means does not depend on the length. The paper scores by an
    inner product, for ranking all items at once; here one impression is judged, by the same network as in the others.
    """

    ordered: ClassVar[bool] = True
    head: ClassVar[tuple[str, ...]] = ("tower.out",)

    def __init__(self, catalogue: Catalogue, history: int = 50, embedding: int = 16, blocks: int = 2) -> None:
        super().__init__(catalogue, history, embedding)
        width = 2 * embedding
        self.place = table(history + 1, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.tower = Tower(3 * width)

    def forward(self, item: Tensor, history: Tensor) -> Tensor:  # type: ignore[override]
        target, past, present = self.look_up(self.rows(), item, history)
        bound = history.shape[1]
        index = torch.arange(bound)
        filled = (history != 0).to(torch.int64)
        place = (filled.sum(1, keepdim=True) - index) * filled  # 1 the newest, 2 the one before; 0 nothing
        x = past + gather(self.place.weight, place)
        earlier = (index.unsqueeze(0) <= index.unsqueeze(1)).to(x.dtype)
        visible = earlier * present.unsqueeze(1)
        for block in self.blocks:
            x = block(x, visible)
        newest = (place == 1).to(x.dtype).unsqueeze(1)
        state = torch.bmm(newest, x).squeeze(1)
        logit: Tensor = self.tower(torch.cat([state, target, state * target], -1))
        return logit
