"""A gated recurrent model of the history, in the form that needs no loop.

GRU4Rec (Hidasi et al., ICLR 2016) runs a GRU over a session. Unrolled over 50 items, a GRU's training step is some
thousand tiny operators, one after another. The minimal GRU (Feng et al., "Were RNNs All We Needed?", 2024) lets the
gate see the input only, not the state before it. Then the state is a weighted sum in closed form, and all places are
computed at once: a step costs what an attention costs, and its graph does not grow with the history.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from export.models.base import Catalogue
from export.models.history import HistoryModel
from export.models.layers import Tower, softplus


class GRU(HistoryModel):
    """h_t = (1 - z_t) * h_{t-1} + z_t * c_t, with gate z = sigmoid(G x) and candidate c = C x.

    The last state is the sum of z_t * c_t, each times what the later gates let through of it: the product of 1 - z_s
    over s > t, taken as a sum of logarithms, all of which are negative, so nothing overflows.
    """

    ordered: ClassVar[bool] = True
    head: ClassVar[tuple[str, ...]] = ("tower.out",)

    def __init__(self, catalogue: Catalogue, history: int = 50, embedding: int = 16) -> None:
        super().__init__(catalogue, history, embedding)
        width = 2 * embedding
        self.gate = nn.Linear(width, width)
        self.candidate = nn.Linear(width, width)
        self.tower = Tower(3 * width)

    def forward(self, item: Tensor, history: Tensor) -> Tensor:  # type: ignore[override]
        target, past, present = self.look_up(self.rows(), item, history)
        state = last_state(self.gate(past), self.candidate(past), present)
        logit: Tensor = self.tower(torch.cat([state, target, state * target], -1))
        return logit


def last_state(gate: Tensor, candidate: Tensor, present: Tensor) -> Tensor:
    """gate, before its sigmoid, and candidate: [B, H, d]; present: [B, H], 0 where a place is skipped -> [B, d]."""
    filled = present.unsqueeze(-1)
    kept = -softplus(gate) * filled  # log(1 - z); 0 where nothing comes in
    batch, places, width = gate.shape
    index = torch.arange(places)
    later = (index.unsqueeze(1) > index.unsqueeze(0)).to(gate.dtype)  # [s, t]: 1 where s comes after t
    # one plain matrix product: a broadcast one would copy the mask for every sample
    summed = torch.mm(kept.transpose(1, 2).reshape(batch * width, places), later)
    through = torch.exp(summed.reshape(batch, width, places).transpose(1, 2))
    return (torch.sigmoid(gate) * filled * through * candidate).sum(1)
