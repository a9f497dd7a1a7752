"""Rewrites: they make graphs smaller, and what they compute stays the same on every input."""

from __future__ import annotations

import copy
from collections import Counter

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram

from device_runtime.engines.spec import GraphSpec, TensorSpec
from export.graphs import GraphPlan
from export.lowering import to_onnx, trace
from export.rewrites import for_onnx, for_xnnpack, simplify

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # torch's own


def program(function, *given: Tensor) -> ExportedProgram:
    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return function(*tensors)

    return torch.export.export(Module(), given).run_decompositions()


def operators(exported: ExportedProgram) -> Counter[str]:
    return Counter(
        str(node.target).removeprefix("aten.").split(".")[0]
        for node in exported.graph.nodes
        if node.op == "call_function"
    )


def added(rows: Tensor, at: Tensor) -> Tensor:
    return torch.zeros(8, 32).index_put((at,), rows, accumulate=True)


X = torch.linspace(-3, 3, 8 * 5 * 32).reshape(8, 5, 32)
SCALAR = torch.tensor(0.3)
CASES = {
    "two transposes": (lambda x: x.permute(1, 0, 2).permute(1, 0, 2) * 2, (X,), {"permute": 0}),
    "two permutes": (lambda x: x.permute(1, 0, 2).permute(2, 0, 1) * 2, (X,), {"permute": 1}),
    "a dropped dimension": (lambda x: x.sum(1, keepdim=True).view(8, 32) * 2, (X,), {"view": 0, "sum": 1}),
    "the same twice": (lambda x: (x * x).exp() + (x * x).exp(), (X,), {"exp": 1, "mul": 1}),
    "two scales": (lambda x, s, t: (s * (x.exp() * t)) + (s * (x.sin() * t)), (X, SCALAR, SCALAR + 1), {"mul": 3}),
    "a vector that is turned": (lambda x: x[0, :, :1].sin().permute(1, 0) * 2, (X,), {"permute": 0, "view": 1}),
    "a matrix that is turned": (lambda x: x[0].sin().permute(1, 0) * 2, (X,), {"permute": 1}),
    "a view of a view": (
        lambda x: x.sin().unsqueeze(0).view(40, 32).view(8, 160) * 2,
        (X,),
        {"view": 1, "unsqueeze": 0},
    ),
    "a view that changes nothing": (lambda x: x.sin().view(40, 32).view(8, 5, 32) * 2, (X,), {"view": 0}),
    "a product that is turned": (
        lambda x: torch.bmm(x.permute(0, 2, 1), x.cos()).permute(0, 2, 1) * 2,
        (X,),
        {"permute": 1, "bmm": 1},
    ),
    "a product that is read as it is too": (
        lambda x: (product := torch.bmm(x.permute(0, 2, 1), x.cos())).permute(0, 2, 1) + product,
        (X,),
        {"permute": 2, "bmm": 1},
    ),
    "two scatters": (
        lambda x, i: added(x[0], i) + added(x[1], i.flip(0)) + 0,
        (X, torch.tensor([4, 0, 3, 3, 1])),
        {"index_put": 2, "full": 1, "add": 1},
    ),
    "a rectifier and its slope": (
        lambda x: x * (x > 0).to(x.dtype) + (x > 0).to(x.dtype).cos(),
        (X,),
        {"relu": 1, "mul": 0, "gt": 1},
    ),
    "a product with another's slope": (lambda x, y: x * (y > 0).to(x.dtype) + 0, (X, X.flip(0)), {"relu": 0, "mul": 1}),
    "a product with a higher threshold": (lambda x: x * (x > 1).to(x.dtype) + 0, (X,), {"relu": 0, "mul": 1}),
    "a scale and a quotient": (lambda x, s, t: (s * (x.exp() / t)) - 1, (X, SCALAR, SCALAR + 1), {"div": 1, "mul": 1}),
}


@pytest.mark.parametrize("name", CASES)
def test_simpler_and_the_same(name: str) -> None:
    function, given, expected = CASES[name]
    found = simplify(program(function, *given))
    torch.testing.assert_close(found.module()(*given), function(*given))
    assert {op: operators(found)[op] for op in expected} == expected


def test_a_scale_that_others_read_stays() -> None:
    def function(x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        scaled = x * t
        return s * scaled + 0, scaled + 1

    given = (X, SCALAR, SCALAR + 1)
    found = simplify(program(function, *given))
    torch.testing.assert_close(found.module()(*given), function(*given))
    assert operators(found)["mul"] == 2


WIDE = torch.linspace(-1, 1, 8 * 30 * 36).reshape(8, 30, 36)
RUNS = {
    "the same for all places": (lambda x, y: x + y[:, :1].exp(), 1),
    "with a matrix for all samples": (lambda x, y: y[:, :1].exp() * x[0], 1),
    "less": (lambda x, y: y[:, :1].exp() - x, 1),
    "another for each place": (lambda x, y: x + y.exp(), 0),
    "a number for each place": (lambda x, y: x * y[:, :, :1].exp(), 0),
}


@pytest.mark.parametrize("name", RUNS)
def test_long_runs_are_the_same_to_the_bit(name: str) -> None:
    function, repeats = RUNS[name]
    given = (WIDE, WIDE.flip(0))
    found = for_onnx(program(lambda x, y: function(x, y) * 1, *given))
    assert torch.equal(found.module()(*given), function(*given))
    assert operators(found)["repeat"] == repeats


XNNPACK = {
    "a rectifier's slope": (lambda x: (x > 0).to(x.dtype) + 0, (X,), ("_to_copy",)),
    "a layer": (lambda x, w, b: torch.addmm(b, x[0], w) + 0, (X, torch.randn(32, 7), torch.randn(7)), ("addmm", "mm")),
    "a sum over the first": (lambda x: x.sum(0) + 0, (X,), ("sum",)),
    "a sum over the middle": (lambda x: x.sum(1, keepdim=True) + 0, (X,), ("sum",)),
    "a sum over the last": (lambda x: x.sum(-1) + 0, (X,), ("sum",)),
    "a sum over all": (lambda x: x.sum() + 0, (X,), ("sum",)),
    "a new dimension": (lambda x: x.unsqueeze(1).sin().squeeze(1) + 0, (X,), ("unsqueeze", "squeeze")),
}


@pytest.mark.parametrize("name", XNNPACK)
def test_nothing_is_left_that_xnnpack_lacks(name: str) -> None:
    function, given, gone = XNNPACK[name]
    before = program(function, *given)
    found = for_xnnpack(copy.deepcopy(before))
    torch.testing.assert_close(found.module()(*given), function(*given), rtol=1e-4, atol=1e-4)
    assert not set(gone) & set(operators(found))
    assert set(gone) & set(operators(before))


@pytest.mark.parametrize("x", [0.0, -0.0, 1.2e-38, -1.2e-38, 3e38, -3e38, float("inf"), float("-inf")])
def test_the_slope_is_exact_at_the_edges(x: float) -> None:
    given = torch.tensor([x])
    found = for_xnnpack(program(lambda t: (t > 0).to(t.dtype) + 0, given))
    assert found.module()(given).item() == float(x > 0)


def test_onnx_adds_up_squares_in_one_operator() -> None:
    values = torch.linspace(-2, 3, 12).reshape(3, 4)
    spec = GraphSpec(
        (TensorSpec("x", "float32", (3, 4), "feature"),), (TensorSpec("sum", "float32", (3,), "output"),), {}, {}
    )
    plan = GraphPlan("sum", lambda given: {"sum": (given["x"] * given["x"]).sum(1)}, spec, {"x": values})
    data = to_onnx(trace(plan))
    assert [node.op_type for node in onnx.load_from_string(data).graph.node] == ["ReduceSumSquare"]
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    [found] = session.run(None, {"x": values.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), (values * values).sum(1))


@pytest.mark.parametrize(
    "threshold, kinds", [(0, {"HardSigmoid": 1, "Greater": 0}), (1, {"HardSigmoid": 0, "Greater": 1})]
)
def test_onnx_reads_a_rectifiers_slope_off_its_output(threshold: int, kinds: dict[str, int]) -> None:
    values = torch.tensor([0.0, -0.0, 1.2e-19, 1.0, -1.2e-38, -1.0, 3e3, float("inf"), float("-inf")])
    spec = GraphSpec(
        (TensorSpec("x", "float32", (9,), "feature"),), (TensorSpec("slope", "float32", (9,), "output"),), {}, {}
    )
    plan = GraphPlan(
        "slope", lambda given: {"slope": (torch.relu(given["x"]) > threshold).float()}, spec, {"x": values}
    )
    data = to_onnx(trace(plan))
    found = Counter(node.op_type for node in onnx.load_from_string(data).graph.node)
    assert {kind: found[kind] for kind in kinds} == kinds
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])  # CoDA's own refuses infinities
    assert session.run(None, {"x": values.numpy()})[0].tolist() == (values > threshold).float().tolist()
