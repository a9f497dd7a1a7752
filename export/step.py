"""A training step as a pure function: (params, state, batch, labels, weights, rate) -> (params', state', loss).

Autodiff is traced into the function, so what is exported is an ordinary graph that any inference engine runs.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vjp

Tensors = Mapping[str, Tensor]
Moved = tuple[Tensor, dict[str, Tensor]]
"""A parameter's new value, and its new slots."""


def weighted_log_loss(logit: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits [B] over samples of weight > 0, in a form that never overflows.

    Labels may be soft. A weight of 0 is padding; if all are 0 the loss is 0, not NaN.
    """
    return (log_loss_and_slope(logit, label)[0] * weight).sum() / weight.sum().clamp(min=1e-6)


def log_loss_and_slope(logit: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """(binary cross-entropy of each logit, its derivative by the logit), all [B].

    The derivative in closed form is three operators where autodiff takes twelve, and is right at a logit of 0, which is
    where a model that starts from zeros is.
    """
    size = logit.abs()
    # max(x, 0) as (x + |x|) / 2, for those who differentiate it: clamp's backward lowers to selects, and x * (x > 0)
    # has the wrong slope at 0. And log(1 + exp(-|x|)) by a sigmoid from 0.5 to 1, so that nothing of it overflows
    each = logit * (0.5 - label) + 0.5 * size - torch.log(torch.sigmoid(size))
    return each, torch.sigmoid(logit) - label


class Optimizer(ABC):
    """How gradients move parameters.

    `slots` names the state that each parameter has, shaped like it; `scalars` the state that there is once, of shape
    []. All of it starts as zeros.

    Embedding tables are updated lazily: a row moves, and its slots with it, only in a step whose gradient reaches it.
    Otherwise weight decay and momentum would move every row on a device at every step, whatever its samples say.
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
    def update(
        self, param: Tensor, grad: Tensor, slots: Tensors, scalars: Tensors, rate: Tensor, touched: Tensor | None
    ) -> Moved:
        """One parameter after a step.

        touched: of a table, 1 for each row that may move and 0 for the others, in a shape that broadcasts; None where
        everything moves.
        """


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, PyTorch's conventions. momentum 0 keeps no state."""

    momentum: float = 0.0
    weight_decay: float = 0.0

    @property
    def slots(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum else ()

    def update(
        self, param: Tensor, grad: Tensor, slots: Tensors, scalars: Tensors, rate: Tensor, touched: Tensor | None
    ) -> Moved:
        grad = _decayed(grad, param, self.weight_decay, touched)
        if not self.momentum:
            return param - rate * grad, {}
        old = slots["momentum"]
        velocity = _mixed(old, self.momentum * old + grad, touched)
        return param - _only(rate * velocity, touched), {"momentum": velocity}


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma & Ba, 2015). decoupled: weight decay as in AdamW (Loshchilov & Hutter, 2019), not in the gradient.

    Steps are counted once, not per row, as PyTorch's `SparseAdam` does.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = True

    @property
    def slots(self) -> tuple[str, ...]:
        return ("mean", "square")

    @property
    def scalars(self) -> tuple[str, ...]:
        return ("correction1", "correction2")

    def advance(self, scalars: Tensors) -> dict[str, Tensor]:
        # 1 - beta ** steps, without the subtraction: in float32 that would be off by 3e-5 at first
        return {
            "correction1": self.beta1 * scalars["correction1"] + (1 - self.beta1),
            "correction2": self.beta2 * scalars["correction2"] + (1 - self.beta2),
        }

    def update(
        self, param: Tensor, grad: Tensor, slots: Tensors, scalars: Tensors, rate: Tensor, touched: Tensor | None
    ) -> Moved:
        decay: Tensor | None = None
        if self.weight_decay and self.decoupled:
            decay = rate * self.weight_decay * param
        else:
            grad = _decayed(grad, param, self.weight_decay, touched)
        mean = _mixed(slots["mean"], self.beta1 * slots["mean"] + (1 - self.beta1) * grad, touched)
        square = _mixed(slots["square"], self.beta2 * slots["square"] + (1 - self.beta2) * grad * grad, touched)
        unbiased = torch.sqrt(square / scalars["correction2"])
        moved = rate * (mean / scalars["correction1"]) / (unbiased + self.epsilon)
        if decay is not None:
            moved = moved + decay
        return param - _only(moved, touched), {"mean": mean, "square": square}


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """Adagrad (Duchi et al., JMLR 2011), PyTorch's conventions: the sum of squares starts at zero."""

    epsilon: float = 1e-10
    weight_decay: float = 0.0

    @property
    def slots(self) -> tuple[str, ...]:
        return ("squares",)

    def update(
        self, param: Tensor, grad: Tensor, slots: Tensors, scalars: Tensors, rate: Tensor, touched: Tensor | None
    ) -> Moved:
        # a row without a gradient has none after `_decayed` either: it and its sum stay as they are
        grad = _decayed(grad, param, self.weight_decay, touched)
        squares = slots["squares"] + grad * grad
        return param - rate * grad / (torch.sqrt(squares) + self.epsilon), {"squares": squares}


def rows_touched(grad: Tensor) -> Tensor:
    """1 for each row of a table's gradient [R, ...] that holds a number other than zero, else 0; [R, 1, ...].

    Samples of weight 0 give no gradient, so padding touches nothing.
    """
    size = grad.abs()  # the largest magnitude, not a sum of squares, which underflows
    if grad.dim() > 1:
        size = size.amax(tuple(range(1, grad.dim())), keepdim=True)
    return (size > 0).to(grad.dtype)


def _decayed(grad: Tensor, param: Tensor, weight_decay: float, touched: Tensor | None) -> Tensor:
    return grad + _only(weight_decay * param, touched) if weight_decay else grad


def _mixed(old: Tensor, new: Tensor, touched: Tensor | None) -> Tensor:
    """The new value where touched; exactly the old one elsewhere. As a product: selects are slow."""
    return new if touched is None else old + touched * (new - old)


def _only(moved: Tensor, touched: Tensor | None) -> Tensor:
    return moved if touched is None else touched * moved


@dataclass(frozen=True)
class Step:
    """One training step of `logits(params, features)`.

    trained: names of the parameters that move; the others are inputs only. clip: global norm of the gradients, at
    most (0 = no clipping). tables: those parameters that are embedding tables, whose rows are updated lazily. rows:
    those of the tables that learn at `table_rate`.
    """

    logits: Callable[[Tensors, Tensors], Tensor]
    trained: tuple[str, ...]
    optimizer: Optimizer
    clip: float = 0.0
    tables: frozenset[str] = frozenset()
    rows: frozenset[str] = frozenset()

    def initial_state(self, params: Tensors, trained: Sequence[str] = ()) -> dict[str, Tensor]:
        """The optimizer's state tensors. trained: names of params, where they are not this step's own."""
        state = {
            f"{slot}:{name}": torch.zeros_like(params[name])
            for slot in self.optimizer.slots
            for name in trained or self.trained
        }
        return state | {
            name: torch.zeros((), dtype=next(iter(params.values())).dtype) for name in self.optimizer.scalars
        }

    def __call__(
        self,
        params: Tensors,
        state: Tensors,
        features: Tensors,
        label: Tensor,
        weight: Tensor,
        rate: Tensor,
        table_rate: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """(trained params', state', loss). table_rate: the learning rate of `rows`; None: that of all others."""
        grads, loss = self.gradients(params, features, label, weight)
        return *self.move(params, grads, state, rate, table_rate), loss

    def gradients(
        self, params: Tensors, features: Tensors, label: Tensor, weight: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """(gradients of the trained params, not yet clipped; loss)."""
        # also of what stays fixed, and dropped as dead code: PyTorch takes another path through a frozen matrix, whose
        # backward is full of strided copies that ExecuTorch lacks
        moving = {name: value for name, value in params.items() if value.is_floating_point()}

        def forward(moving: dict[str, Tensor]) -> Tensor:
            return self.logits({**params, **moving}, features)

        logit, backward = vjp(forward, moving)  # type: ignore[misc]  # three with has_aux only
        each, slope = log_loss_and_slope(logit, label)
        share = weight / weight.sum().clamp(min=1e-6)
        [every] = backward(slope * share)
        return {name: every[name] for name in self.trained}, (each * share).sum()

    def move(
        self, params: Tensors, grads: Tensors, state: Tensors, rate: Tensor, table_rate: Tensor | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(params', state') of those that there are gradients of: the trained ones, or what they were joined into."""
        if self.clip:
            norm = torch.sqrt(functools.reduce(torch.add, [(g * g).sum() for g in grads.values()]) + 1e-12)
            scale = (self.clip / (norm + 1e-6)).clamp(max=1.0)
            grads = {name: g * scale for name, g in grads.items()}
        scalars = self.optimizer.advance(state)
        new_params: dict[str, Tensor] = {}
        new_state = dict(scalars)
        for name, grad in grads.items():
            slots = {slot: state[f"{slot}:{name}"] for slot in self.optimizer.slots}
            touched = rows_touched(grad) if name in self.tables else None
            own = rate if table_rate is None or name not in self.rows else table_rate
            new_params[name], moved = self.optimizer.update(params[name], grad, slots, scalars, own, touched)
            new_state |= {f"{slot}:{name}": value for slot, value in moved.items()}
        return new_params, new_state
