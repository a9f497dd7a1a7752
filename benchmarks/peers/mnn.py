"""Worker: MNN's Python wheel, in the environment that `mnn.sh` makes. It imports nothing of CoDA.

Arguments: threads, folder with `mnn.npz` (the classifier's batch, learning rate and weights). MNN differentiates its
own expressions, so the model is written in them: the sample classifier, the simplest of the subjects. Where MNN cannot
train it, the worker ends with the reason, by asking for the gradient of each operator by itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from protocol import Trainer, serve  # type: ignore[import-not-found]

PARAMETERS = ("hidden.weight", "hidden.bias", "out.weight", "out.bias")


def start() -> Trainer:
    import numpy as np

    with _quiet():
        import MNN  # type: ignore[import-not-found]
        from MNN import expr, nn, optim

    expr.lazy_eval(True)  # else an expression is only its number, without what it was made of
    expr.set_thread_number(int(sys.argv[1]))
    with np.load(Path(sys.argv[2]) / "mnn.npz") as file:
        given = {name: file[name] for name in file.files}

    def constant(array: np.ndarray) -> Any:
        return expr.const(np.ascontiguousarray(array), list(array.shape), expr.NCHW)

    class Classifier(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.held = [constant(given[name]) for name in PARAMETERS]
            for number, value in enumerate(self.held):
                value.fix_as_trainable()
                setattr(self, f"p{number}", value)

        def forward(self, x: Any) -> Any:
            weight, bias, out, shift = self.held
            hidden = expr.relu(expr.matmul(x, weight, False, True) + bias)
            return expr.matmul(hidden, out, False, True) + shift

    x, label, weight = (constant(given[n]) for n in ("x", "label", "sample_weight"))
    model = Classifier()
    model.train(True)
    optimizer = optim.ADAM(model, float(given["learning_rate"]), 0.9, 0.999, 0.0, float(given["epsilon"]))

    def step(_: int) -> float:
        logit = expr.squeeze(model.forward(x), [1])
        each = expr.relu(logit) - logit * label + expr.log(expr.exp(expr.negative(expr.abs(logit))) + 1.0)
        loss = expr.reduce_sum(each * weight) / expr.reduce_sum(weight)
        if not optimizer.step(loss):
            lacking = ", ".join(_without_gradient(expr, optim, np))
            raise SystemExit(f"MNN {MNN.version()}: step() returned False and moved nothing; no gradient of: {lacking}")
        return float(loss.read())

    return Trainer(step, lambda: {n: np.array(v.read()) for n, v in zip(PARAMETERS, model.held, strict=True)})


@contextmanager
def _quiet() -> Iterator[None]:
    """MNN greets on standard output, which is the parent's."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _without_gradient(expr, optim, np) -> list[str]:  # type: ignore[no-untyped-def]
    """Those of the operators in a loss like the above that MNN gives no gradient for."""
    operators = {
        "MatMul": lambda w: expr.matmul(w, w),
        "Add": lambda w: w + w,
        "Mul": lambda w: w * w,
        "ReLU": expr.relu,
        "Exp": expr.exp,
        "Log": expr.log,
        "Abs": expr.abs,
        "Neg": expr.negative,
        "Squeeze": lambda w: expr.squeeze(expr.unsqueeze(w, [0]), [0]),
        "ReduceSum": lambda w: expr.reduce_sum(w, [0], False),
    }
    lacking = []
    for name, operator in operators.items():
        value = expr.const(np.ones((2, 2), np.float32), [2, 2], expr.NCHW)
        value.fix_as_trainable()
        result = operator(value)
        ones = expr.const(np.ones(result.shape, np.float32), result.shape, expr.NCHW)
        if not optim.Grad(None).grad([result], [ones], [value])[1]:
            lacking.append(name)
    return lacking


if __name__ == "__main__":
    serve(start, ["MNN"])
