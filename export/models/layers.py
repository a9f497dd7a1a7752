"""Parts that several models share, each of a form whose backward lowers to few, fast operators."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.models.base import relu


class Tower(nn.Module):
    """A multi-layer perceptron with two hidden layers: [B, inputs] -> logits [B]."""

    def __init__(self, inputs: int, hidden: int = 80, deeper: int = 40) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden)
        self.deeper = nn.Linear(hidden, deeper)
        self.out = nn.Linear(deeper, 1)

    def forward(self, x: Tensor) -> Tensor:
        logit: Tensor = self.out(relu(self.deeper(relu(self.hidden(x)))))
        return logit.squeeze(-1)


class Norm(nn.Module):
    """Layer normalization (Ba et al., 2016) over the last dimension, by sums and products."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-5)
        return centred / spread * self.scale + self.shift


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), in a form that neither overflows nor selects, and has the right slope at 0."""
    size = x.abs()
    return 0.5 * (x + size) + torch.log1p(torch.exp(-size))
