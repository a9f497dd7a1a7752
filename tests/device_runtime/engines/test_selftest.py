"""An engine that does not train, or otherwise than the exporter saw, is refused: each way by a graph that does."""

from __future__ import annotations

import numpy as np
import pytest

from device_runtime.bundle import Golden
from device_runtime.engines import Array, Engine, Graph
from device_runtime.engines.selftest import LOSS_WITHIN, ROWS, golden_steps, self_test, trial
from device_runtime.errors import EngineError, GraphInputError, SelfTestFailed
from tests.device_runtime.engines.tiny import PARAMS, RATE, STATE, STEP, Load

HELD: dict[str, Array] = {
    "linear": np.linspace(-0.5, 0.5, 6, dtype=np.float32),
    "bias": np.array(0.1, np.float32),
}
VALUES, BATCH = trial(STEP, HELD, {})


@pytest.fixture
def golden(engine: Engine, load: Load) -> Golden:
    """What the graph does that trains."""
    return golden_steps(engine, load("step"), VALUES, BATCH, RATE)


def test_a_trial_is_the_same_everywhere_and_fits_the_graph() -> None:
    assert VALUES["item.weight"].shape == (ROWS, 4) and np.abs(VALUES["item.weight"]).max() <= 0.3
    np.testing.assert_array_equal(VALUES["linear"], HELD["linear"])
    STEP.check_tensors(BATCH, STEP.of("feature", "label", "weight"))
    assert set(BATCH["label"]) == {0, 1}
    lengths = (BATCH["history"] > 0).sum(1)
    assert lengths.tolist() == [0, 1, 2, 3, 0, 1, 2, 3] and BATCH["history"].max() < ROWS
    np.testing.assert_allclose(VALUES["item.weight"][0], 0.3 * np.sin([1, 2, 3, 4]), rtol=1e-6)


def test_an_engine_that_trains_passes(engine: Engine, load: Load, golden: Golden) -> None:
    before = {name: array.copy() for name, array in VALUES.items()}
    assert len(golden.losses) == 8 and golden.losses[-1] < golden.losses[0]
    assert set(golden.moved) == {t.name for t in (*PARAMS, *STATE)}
    assert min(golden.moved.values()) > 0
    assert self_test(engine, load("step"), VALUES, BATCH, RATE, golden) == golden
    for name, array in before.items():
        np.testing.assert_array_equal(VALUES[name], array)


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        ("uphill", "the loss did not fall in 8 steps"),
        ("stuck", "'linear' did not move in 8 steps"),
        ("broken", "'linear' is not finite after step 1"),
        ("forgetful", "moved by"),
        ("halved", "moved by"),
        ("off", "the loss of step 1 is"),
    ],
)
def test_an_engine_that_does_not_train_is_refused(
    engine: Engine, load: Load, golden: Golden, graph: str, reason: str
) -> None:
    with pytest.raises(SelfTestFailed) as failed:
        self_test(engine, load(graph), VALUES, BATCH, RATE, golden)
    assert str(failed.value).startswith(f"engine {engine.name} {engine.version} does not train on this machine: ")
    assert reason in str(failed.value)


def test_what_the_exporter_did_not_see_move_need_not(engine: Engine, load: Load, golden: Golden) -> None:
    """A parameter that the trial's gradient does not reach."""
    still = golden_steps(engine, load("stuck"), VALUES, BATCH, RATE)
    assert still.moved["linear"] == 0
    self_test(engine, load("stuck"), VALUES, BATCH, RATE, still)
    with pytest.raises(SelfTestFailed, match=r"moved by .* in 8 steps, where it should by"):
        self_test(engine, load("step"), VALUES, BATCH, RATE, still)


def test_rounding_is_no_reason(engine: Engine, load: Load, golden: Golden) -> None:
    off = 0.5 * LOSS_WITHIN
    rounded = Golden(tuple(x + off for x in golden.losses), {n: m * 1.005 for n, m in golden.moved.items()})
    self_test(engine, load("step"), VALUES, BATCH, RATE, rounded)


def test_a_loss_that_is_no_number_is_refused(engine: Engine, load: Load, golden: Golden) -> None:
    values = VALUES | {"bias": np.array(np.nan, np.float32)}
    with pytest.raises(SelfTestFailed, match="the loss of step 1 is nan"):
        self_test(engine, load("step"), values, BATCH, RATE, golden)


def test_an_engine_that_fails_says_so(engine: Engine, load: Load, golden: Golden) -> None:
    graph = load("step")

    class Fails:
        spec = graph.spec
        bind = graph.bind

        def __call__(self, inputs: dict[str, Array]) -> dict[str, Array]:
            raise EngineError("no such kernel")

    broken: Graph = Fails()
    with pytest.raises(EngineError, match="no such kernel"):
        self_test(engine, broken, VALUES, BATCH, RATE, golden)


def test_values_that_do_not_fit_are_the_callers_fault(engine: Engine, load: Load, golden: Golden) -> None:
    with pytest.raises(GraphInputError, match="missing tensors: linear"):
        self_test(engine, load("step"), {n: v for n, v in VALUES.items() if n != "linear"}, BATCH, RATE, golden)
