"""Weights that stay with the engine: the same numbers as passing them each time, and the same refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from device_runtime.engines import Array, GraphSpec, TensorSpec, open_engine
from device_runtime.errors import EngineError, GraphInputError
from tests.device_runtime.engines.tiny import STEP, Load, sample, step, tensors

GIVEN = sample(STEP)
VALUES: dict[str, Array] = {t.name: GIVEN[t.name] for t in STEP.of("param", "state")}
BATCH: dict[str, Array] = {n: a for n, a in GIVEN.items() if n not in VALUES}


def test_steps_are_those_of_calls(load: Load) -> None:
    graph = load("step")
    before = {name: array.copy() for name, array in VALUES.items()}
    bound, values = graph.bind(VALUES), VALUES
    for number in range(5):  # an odd and an even number of steps end in different buffers
        batch = {n: a for n, a in sample(STEP, seed=number).items() if n not in VALUES}
        results = graph({**values, **batch})
        values = {taken: results[name] for name, taken in STEP.carry.items()}
        found = bound.step(batch)
        assert set(found) == {"loss"}
        np.testing.assert_array_equal(found["loss"], results["loss"])
        for name, array in bound.values().items():
            np.testing.assert_array_equal(array, values[name])
    for name, array in before.items():
        np.testing.assert_array_equal(VALUES[name], array)


def test_batches_of_any_size_up_to_the_bound(load: Load) -> None:
    """Large ones follow small ones and the other way round; each step is that of its samples alone."""
    bound, values = load("step").bind(VALUES), VALUES
    for number, size in enumerate((8, 3, 1, 8, 5, 1)):
        batch = {n: a for n, a in sample(STEP, seed=number, batch=size).items() if n not in VALUES}
        wanted = [t.numpy() for t in step(*tensors(STEP, {**values, **batch}))]
        assert bound.step(batch)["loss"] == pytest.approx(wanted[-1], abs=1e-6)
        values = bound.values()
        for (_, name), array in zip(STEP.carry.items(), wanted[:-1], strict=True):
            np.testing.assert_allclose(values[name], array, atol=1e-6)


def test_what_it_gives_is_the_callers(load: Load) -> None:
    bound = load("step").bind(VALUES)
    loss = bound.step(BATCH)["loss"]
    kept, values = float(loss), bound.values()
    copies = {name: array.copy() for name, array in values.items()}
    assert float(bound.step(BATCH)["loss"]) != kept
    assert float(loss) == kept
    for name, array in copies.items():
        np.testing.assert_array_equal(values[name], array)


def test_two_bindings_of_one_graph_do_not_mix(load: Load) -> None:
    graph = load("step")
    one, other = graph.bind(VALUES), graph.bind(VALUES)
    losses = [float(one.step(BATCH)["loss"]) for _ in range(3)]
    assert float(other.step(BATCH)["loss"]) == losses[0]
    assert losses[2] < losses[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"linear": None}, "missing tensors: linear"),
        ({"linear": np.zeros(6)}, "'linear': expected float32, given float64"),
        ({"linear": np.zeros(5, np.float32)}, "'linear': expected shape [6], given [5]"),
        ({"bias": np.array(np.nan, np.float32)}, "'bias': expected finite numbers, given nan"),
        ({"momentum:bias": np.array(np.inf, np.float32)}, "'momentum:bias': expected finite numbers, given inf"),
        ({"momentum:item.weight": np.zeros((9, 4), np.float32)}, "rows is 10 in another tensor"),
    ],
)
def test_values_that_do_not_fit_are_refused(load: Load, change: dict[str, Array | None], message: str) -> None:
    with pytest.raises(GraphInputError) as refused:
        load("step").bind({n: a for n, a in (VALUES | change).items() if a is not None})
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "missing tensors: label"),
        ({"linear": VALUES["linear"]}, "tensors that the graph does not take: linear"),
        ({"label": np.zeros(8)}, "'label': expected float32, given float64"),
        (
            {"label": np.zeros(7, np.float32)},
            "'label': expected shape ['batch'] (batch is 8 in another tensor), given [7]",
        ),
        (
            {"history": np.zeros((9, 3), np.int64)},
            "'history': expected shape ['batch', 3] (batch from 1 to 8), given [9, 3]",
        ),
        (
            {"history": np.zeros((0, 3), np.int64)},
            "'history': expected shape ['batch', 3] (batch from 1 to 8), given [0, 3]",
        ),
        ({"label": np.full(8, np.nan, np.float32)}, "'label': expected finite numbers, given nan"),
        ({"sample_weight": np.full(8, np.nan, np.float32)}, "'sample_weight': expected finite numbers, given nan"),
        ({"sample_weight": np.full(8, np.inf, np.float32)}, "'sample_weight': expected finite numbers, given inf"),
        ({"numbers": np.full((8, 2), np.nan, np.float32)}, "'numbers': expected finite numbers, given nan"),
        ({"learning_rate": np.array(np.nan, np.float32)}, "'learning_rate': expected finite numbers, given nan"),
        ({"history": np.full((8, 3), 10)}, "'history': expected rows of 'item' from 0 to 9, given 10"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_before_anything_moves(
    load: Load, change: dict[str, Array | None], message: str
) -> None:
    graph = load("step")
    bound = graph.bind(VALUES)
    bound.step(BATCH)
    before = bound.values()
    wrong = {n: a for n, a in (BATCH | change).items() if a is not None}
    with pytest.raises(GraphInputError) as refused:
        bound.step(wrong)
    assert message in str(refused.value)
    for name, array in bound.values().items():
        np.testing.assert_array_equal(array, before[name])
    if "linear" not in change:  # which a call takes
        with pytest.raises(GraphInputError) as refused:
            graph(VALUES | wrong)
        assert message in str(refused.value)
    bound.step(BATCH)


def test_a_failed_run_leaves_the_weights(load: Load) -> None:
    graph = load("gather")
    bound = graph.bind({"table": sample(graph.spec)["table"]})
    given = {"history": sample(graph.spec)["history"]}
    right = bound.step(given)["picked"]
    with pytest.raises(EngineError, match="failed while running"):
        bound.step({"history": np.full((8, 3), 1 << 40)})
    np.testing.assert_array_equal(bound.step(given)["picked"], right)


@pytest.mark.parametrize("name", ["onnx", "reference"])
def test_a_batch_may_vary_in_a_dimension_of_its_own(name: str, tmp_path: Path) -> None:
    """As in a graph that takes several training steps in one call."""
    spec = GraphSpec(
        (TensorSpec("w", "float32", (2,), "param"), TensorSpec("x", "float32", ("steps", 2), "feature")),
        (TensorSpec("new:w", "float32", (2,), "output"), TensorSpec("loss", "float32", ("steps", 2), "output")),
        carry={"new:w": "w"},
        bounds={"steps": (1, 8)},
    )
    shapes: dict[str, list[int | str]] = {"w": [2], "x": ["steps", 2], "new:w": [2], "loss": ["steps", 2]}
    values = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()}
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["total"], keepdims=0),
        helper.make_node("Add", ["w", "total"], ["new:w"]),
        helper.make_node("Neg", ["x"], ["loss"]),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [0])
    graph = helper.make_graph(nodes, "g", [values["w"], values["x"]], [values["new:w"], values["loss"]], [axes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "g")
    bound = open_engine(name).load(tmp_path / "g", spec).bind({"w": np.zeros(2, np.float32)})
    total = 0
    for steps in (3, 3, 1, 8, 2):
        x = np.full((steps, 2), steps, np.float32)
        np.testing.assert_array_equal(bound.step({"x": x})["loss"], -x)
        total += steps * steps
        np.testing.assert_array_equal(bound.values()["w"], [total, total])
    with pytest.raises(GraphInputError, match="steps from 1 to 8"):
        bound.step({"x": np.zeros((9, 2), np.float32)})
