"""Operators that an engine lacks are named before anything is lowered."""

import re

import pytest
import torch
from torch import nn

from device_runtime.bundle import Training
from device_runtime.errors import EngineError
from export.audit import audited, executorch_kernels
from export.graphs import recommender_plans
from export.models.base import Catalogue, gather
from export.models.din import DIN
from export.training import prepare


class Singular(nn.Module):
    def forward(self, x):
        return x + torch.linalg.svd(x, full_matrices=False)[1].sum()


class Counts(nn.Module):
    def forward(self, x):
        return x * x.nonzero().shape[0]


class Looks(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class Sorts(nn.Module):
    def forward(self, x):
        return torch.sort(x, -1)[0]


class Drops(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True)


class LogGamma(nn.Module):
    def forward(self, x):
        return torch.lgamma(x * x + 1)


def plans(odd):
    class Model(DIN):
        def __init__(self):
            super().__init__(Catalogue(40, 3, torch.ones(40, 4, dtype=torch.int64)), 4, 4, 5)
            self.odd = odd()

        def forward(self, item, history):
            return super().forward(item, history) + self.odd(gather(self.item.weight, item)).sum(1)

    torch.manual_seed(0)
    model, step = prepare(Model().eval(), Training())
    return recommender_plans(model, step)


@pytest.mark.parametrize(
    ("odd", "operator", "engines", "instead"),
    [
        (Singular, "aten._linalg_svd", ["onnx: opset 20", "executorch: no such kernel"], "low-rank product"),
        (Sorts, "aten.sort", ["executorch: no such kernel"], r"torch\.topk"),
        (Counts, "aten.nonzero", ["no engine can run it in a fixed graph"], "a mask of 0 and 1"),
        (Looks, "aten._local_scalar_dense", ["no engine can run it in a fixed graph"], r"no \.item\(\)"),
        (Drops, "aten.bernoulli_", ["no engine can run it in a fixed graph"], "deterministic"),
    ],
)
def test_an_operator_is_named_with_module_engine_and_replacement(odd, operator, engines, instead):
    with pytest.raises(EngineError) as caught:
        audited(plans(odd)[1], ["onnx", "executorch"])
    message = str(caught.value)
    assert message.startswith("graph 'score' uses operators that cannot be lowered:")
    lines = message.splitlines()[1:]
    assert len(lines) == len(engines)
    for line, engine in zip(lines, engines, strict=True):
        assert line.startswith(f"  {operator} (in 'Model.odd'): {engine}")
        assert re.search(instead, line)


def test_an_operator_of_the_backward_pass_is_named_too():
    """lgamma's derivative is digamma, which no line of the model mentions."""
    with pytest.raises(EngineError, match=r"prims\.digamma \(in the backward pass.*\): onnx"):
        audited(plans(LogGamma)[2], ["onnx"])


def test_only_the_engines_that_are_asked_for_count():
    assert audited(plans(Sorts)[1], ["onnx"]).plan.name == "score"


def test_kernels_are_those_of_the_libraries():
    kernels = executorch_kernels()
    assert {"bmm", "index_put", "_softmax", "view_copy", "view"} <= kernels
    assert not {"_linalg_svd", "sort", "native_layer_norm_backward"} & kernels
