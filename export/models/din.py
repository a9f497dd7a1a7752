"""Deep Interest Network (Zhou et al., KDD 2018): the history, weighted by its relevance to the target item."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.models.base import Catalogue, masked_softmax, relu
from export.models.history import HistoryModel


class DIN(HistoryModel):
    """DIN over (item, history of liked items), as a `HistoryModel` sees them.

    The attention unit W·[q, h, q-h, q*h] (section 4.3) is factored: it is linear in h for a given q, so one small
    matrix per sample, `behave + q * interact`, meets the history in a single product.
    """

    def __init__(self, catalogue: Catalogue, history: int = 50, embedding: int = 16, attention: int = 36) -> None:
        super().__init__(catalogue, history, embedding)
        d = 2 * embedding
        self.ask = nn.Linear(d, attention)
        self.behave = nn.Parameter(torch.empty(d, attention))
        self.interact = nn.Parameter(torch.empty(d, attention))
        self.weigh = nn.Linear(attention, 1, bias=False)  # softmax does not feel a bias
        self.hidden = nn.Linear(3 * d, 80)
        self.deeper = nn.Linear(80, 40)
        self.out = nn.Linear(40, 1)
        for matrix in (self.behave, self.interact):
            nn.init.xavier_uniform_(matrix)

    def forward(self, item: Tensor, history: Tensor) -> Tensor:  # type: ignore[override]
        target, past, present = self.look_up(self.rows(), item, history)
        matrix = self.behave.T + target.unsqueeze(1) * self.interact.T
        unit_out = relu(torch.bmm(past, matrix.transpose(1, 2)) + self.ask(target).unsqueeze(1))
        weight = masked_softmax(self.weigh(unit_out).squeeze(-1), present)
        interest = torch.bmm(weight.unsqueeze(1), past).squeeze(1)
        x = torch.cat([interest, target, interest * target], -1)
        x = relu(self.deeper(relu(self.hidden(x))))
        logit: Tensor = self.out(x)
        return logit.squeeze(-1)
