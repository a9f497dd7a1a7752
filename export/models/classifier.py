"""The personal sample classifier (CoDA, section on fine-grained filtering): is this sample like the user's own?"""

from __future__ import annotations

from torch import Tensor, nn

from export.models.base import relu


class SampleClassifier(nn.Module):
    """One small hidden layer over a sample's frozen features and its label: x [B, width + 1] -> logits [B]."""

    def __init__(self, width: int, hidden: int = 16) -> None:
        super().__init__()
        self.inputs = width + 1
        self.hidden = nn.Linear(self.inputs, hidden)
        self.out = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        logit: Tensor = self.out(relu(self.hidden(x)))
        return logit.squeeze(-1)
