"""Deep Interest Network (Zhou et al., KDD 2018): the history, weighted by its relevance to the target item."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from device_runtime.samples import Feature, Schema
from export.models.base import Catalogue, Recommender, gather, masked_softmax, relu, unit


class DIN(Recommender):
    """DIN over (item, history of liked items); an item is its embedding beside the mean of its categories'.

    No user id: the pool is anonymous, and a device must be able to start from nothing. The attention unit
    W·[q, h, q-h, q*h] (section 4.3) is factored: it is linear in h for a given q, so one small matrix per
    sample, `behave + q * interact`, meets the history in a single product.
    """

    sliced: ClassVar[Mapping[str, str]] = {"item.weight": "item", "item_categories": "item"}

    def __init__(self, catalogue: Catalogue, history: int = 50, embedding: int = 16, attention: int = 36) -> None:
        super().__init__()
        # attention is a sum over the history, in whatever order
        past = Feature("history", "ids", "item", history, ordered=False)
        self.schema = Schema((Feature("item", "id", "item"), past))
        self.item = nn.Embedding(catalogue.items, embedding)
        self.category = nn.Embedding(catalogue.categories, embedding)
        self.item_categories: Tensor
        self.register_buffer("item_categories", catalogue.item_categories)
        d = 2 * embedding
        self.ask = nn.Linear(d, attention)
        self.behave = nn.Parameter(torch.empty(d, attention))
        self.interact = nn.Parameter(torch.empty(d, attention))
        self.weigh = nn.Linear(attention, 1, bias=False)  # softmax does not feel a bias
        self.hidden = nn.Linear(3 * d, 80)
        self.deeper = nn.Linear(80, 40)
        self.out = nn.Linear(40, 1)
        self.width, self.filter_from = 2 * d, d
        for table in (self.item, self.category):
            nn.init.normal_(table.weight, std=0.05)
            with torch.no_grad():
                table.weight[0] = 0
        for matrix in (self.behave, self.interact):
            nn.init.xavier_uniform_(matrix)

    def _rows(self) -> Tensor:
        """[rows, 2 * embedding]: every item at hand, once, instead of once per place in a history."""
        categories = self.item_categories
        count = (categories != 0).to(self.item.weight.dtype).sum(-1, keepdim=True).clamp(min=1)
        # padding is masked in the small table, not in every item's four places: fewer numbers, and no gradient either
        known = (torch.arange(self.category.weight.shape[0]) != 0).to(self.item.weight.dtype).unsqueeze(-1)
        pooled = gather(self.category.weight * known, categories).sum(1) / count
        return torch.cat([self.item.weight, pooled], -1)

    def _look_up(self, item: Tensor, history: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(target [B, d], past [B, H, d], present [B, H]). Two gathers: taking one result apart costs more."""
        rows = self._rows()
        return gather(rows, item), gather(rows, history), (history != 0).to(rows.dtype)

    def forward(self, item: Tensor, history: Tensor) -> Tensor:  # type: ignore[override]
        target, past, present = self._look_up(item, history)
        matrix = self.behave + target.unsqueeze(2) * self.interact
        unit_out = relu(torch.bmm(past, matrix) + self.ask(target).unsqueeze(1))
        weight = masked_softmax(self.weigh(unit_out).squeeze(-1), present)
        interest = torch.bmm(weight.unsqueeze(1), past).squeeze(1)
        x = torch.cat([interest, target, interest * target], -1)
        x = relu(self.deeper(relu(self.hidden(x))))
        logit: Tensor = self.out(x)
        return logit.squeeze(-1)

    def encode(self, item: Tensor, history: Tensor) -> Tensor:  # type: ignore[override]
        target, past, present = self._look_up(item, history)
        mean = (past * present.unsqueeze(-1)).sum(1) / present.sum(-1, keepdim=True).clamp(min=1)
        return unit(torch.cat([unit(mean), unit(target)], -1))
