"""What `coda bench engines` trains: the models, their step, and the same step for PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from device_runtime.samples import Float32
from export.graphs import EXAMPLE_ROWS, GraphPlan, classifier_plans, logits_of, recommender_plans
from export.models import create
from export.models.base import Catalogue, Recommender
from export.models.classifier import SampleClassifier
from export.package import CLIP
from export.step import SGD, Adam, Step
from export.training import EPSILON

CATEGORIES, WIDTH = 20, 32


@dataclass(frozen=True)
class Subject:
    """A module, its training step, and that step as a graph before lowering."""

    module: nn.Module
    step: Step
    plan: GraphPlan

    def forward(self) -> Tensor:
        """Logits of the plan's example batch."""
        given = {name: self.plan.examples[name] for name in self.features}
        output: Tensor = self.module(**given)
        return output

    def torch_optimizer(self) -> torch.optim.Optimizer:
        if isinstance(self.step.optimizer, SGD):
            return torch.optim.SGD(self.module.parameters(), lr=self.rate)
        return torch.optim.AdamW(self.module.parameters(), lr=self.rate, eps=EPSILON, weight_decay=0.0)

    @property
    def rate(self) -> float:
        """The learning rate: the one that the step graph is given."""
        return float(self.plan.examples["learning_rate"])

    @property
    def start(self) -> dict[str, Float32]:
        """The trained weights before the first step."""
        return {name: self.plan.examples[name].numpy() for name in self.step.trained}

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(t.name for t in self.plan.spec.of("feature"))

    @property
    def takes_history(self) -> bool:
        return isinstance(self.module, Recommender)


def subject(name: str, history: int) -> Subject:
    """By name: `classifier`, or a model as `coda train --model` takes it. Always the same random weights.

    Raises:
        InputError: there is no such model.
    """
    torch.manual_seed(0)
    module: nn.Module
    if name == "classifier":
        classifier = SampleClassifier(WIDTH)
        module, optimizer, clip = classifier, Adam(epsilon=EPSILON), 0.0
        step = Step(logits_of(module), tuple(n for n, _ in module.named_parameters()), optimizer, clip)
        return Subject(module, step, classifier_plans(classifier, step)[-1])
    categories = torch.randint(1, CATEGORIES, (EXAMPLE_ROWS, 4))
    model = create(name, Catalogue(EXAMPLE_ROWS, CATEGORIES, categories), history)
    step = Step(logits_of(model), tuple(n for n, _ in model.named_parameters()), SGD(), CLIP)
    return Subject(model, step, recommender_plans(model, step)[-1])
