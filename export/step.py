"""A training step as a pure function: (params, state, batch, labels, weights, rate) -> (params', state', loss).

Autodiff is traced into the function, so what is exported is an ordinary graph that any inference engine runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad_and_value

Tensors = Mapping[str, Tensor]
Moved = tuple[Tensor, dict[str, Tensor]]
"""A parameter's new value, and its new slots."""


def weighted_log_loss(logit: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits [B] over samples of weight > 0, in a form that never overflows.

    Labels may be soft. A weight of 0 is padding; if all are 0 the loss is 0, not NaN.
    """
    positive = (logit > 0).to(logit.dtype)  # a product, because clamp's backward lowers to selects
    each = logit * (positive - label) + torch.log1p(torch.exp(-logit.abs()))
    return (each * weight).sum() / weight.sum().clamp(min=1e-6)


class Optimizer(ABC):
    """How gradients move parameters.

    `slots` names the state that each parameter has, shaped like it; `scalars` the state that there is once, of shape
    []. All of it starts as zeros.
    """

    @property
    def slots(self) -> tuple[str, ...]:
        return ()

    @property
    def scalars(self) -> tuple[str, ...]:
        return ()

    def advance(self, scalars: Tensors) -> dict[str, Tensor]:
        """The scalars of this step, before any parameter moves."""
        return {}

    @abstractmethod
    def update(self, param: Tensor, grad: Tensor, slots: Tensors, scalars: Tensors, rate: Tensor) -> Moved:
        """One parameter after a step."""


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, PyTorch's conventions. momentum 0 keeps no state."""

    momentum: float = 0.0
    weight_decay: float = 0.0

    @property
    def slots(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum else ()

    def update(
        self, param: Tensor, grad: Tensor, slots: Tensors, scalars: Tensors, rate: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if self.weight_decay:
            grad = grad + self.weight_decay * param
        if not self.momentum:
            return param - rate * grad, {}
        velocity = self.momentum * slots["momentum"] + grad
        return param - rate * velocity, {"momentum": velocity}


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma & Ba, 2015) with decoupled weight decay (Loshchilov & Hutter, 2019)."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    @property
    def slots(self) -> tuple[str, ...]:
        return ("mean", "square")

    @property
    def scalars(self) -> tuple[str, ...]:
        return ("steps",)

    def advance(self, scalars: Tensors) -> dict[str, Tensor]:
        return {"steps": scalars["steps"] + 1}

    def update(
        self, param: Tensor, grad: Tensor, slots: Tensors, scalars: Tensors, rate: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if self.weight_decay:
            param = param * (1 - rate * self.weight_decay)
        mean = self.beta1 * slots["mean"] + (1 - self.beta1) * grad
        square = self.beta2 * slots["square"] + (1 - self.beta2) * grad * grad
        # beta ** steps as exp: a power with a tensor exponent is not in every engine's core operators
        steps = scalars["steps"]
        correct1 = 1 - torch.exp(steps * _log(self.beta1))
        correct2 = 1 - torch.exp(steps * _log(self.beta2))
        moved = rate * (mean / correct1) / (torch.sqrt(square / correct2) + self.epsilon)
        return param - moved, {"mean": mean, "square": square}


def _log(x: float) -> float:
    return float(torch.log(torch.tensor(x, dtype=torch.float64)))


@dataclass(frozen=True)
class Step:
    """One training step of `logits(params, features)`.

    trained: names of the parameters that move; the others are inputs only. clip: global norm of the gradients, at
    most (0 = no clipping).
    """

    logits: Callable[[Tensors, Tensors], Tensor]
    trained: tuple[str, ...]
    optimizer: Optimizer
    clip: float = 0.0

    def state_names(self) -> tuple[str, ...]:
        """Names of the optimizer's state tensors, in the order of the graph's inputs."""
        per_param = [f"{slot}:{name}" for slot in self.optimizer.slots for name in self.trained]
        return (*per_param, *self.optimizer.scalars)

    def initial_state(self, params: Tensors) -> dict[str, Tensor]:
        state = {
            f"{slot}:{name}": torch.zeros_like(params[name]) for slot in self.optimizer.slots for name in self.trained
        }
        return state | {
            name: torch.zeros((), dtype=next(iter(params.values())).dtype) for name in self.optimizer.scalars
        }

    def __call__(
        self, params: Tensors, state: Tensors, features: Tensors, label: Tensor, weight: Tensor, rate: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """(trained params', state', loss)."""
        fixed = {name: value for name, value in params.items() if name not in self.trained}

        def objective(moving: dict[str, Tensor]) -> Tensor:
            return weighted_log_loss(self.logits({**fixed, **moving}, features), label, weight)

        grads, loss = grad_and_value(objective)({name: params[name] for name in self.trained})
        if self.clip:
            norm = torch.sqrt(sum(((g * g).sum() for g in grads.values()), torch.zeros_like(loss)) + 1e-12)
            scale = (self.clip / (norm + 1e-6)).clamp(max=1.0)
            grads = {name: g * scale for name, g in grads.items()}

        scalars = self.optimizer.advance(state)
        new_params: dict[str, Tensor] = {}
        new_state = dict(scalars)
        for name in self.trained:
            slots = {slot: state[f"{slot}:{name}"] for slot in self.optimizer.slots}
            new_params[name], moved = self.optimizer.update(params[name], grads[name], slots, scalars, rate)
            new_state |= {f"{slot}:{name}": value for slot, value in moved.items()}
        return new_params, new_state, loss
