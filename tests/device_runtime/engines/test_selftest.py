from __future__ import annotations

import numpy as np
import pytest

from device_runtime.engines import Array, Engine
from device_runtime.engines.selftest import self_test
from device_runtime.errors import GraphInputError, SelfTestFailed
from tests.device_runtime.engines.tiny import PARAMS, RATE, STATE, STEP, Load, sample

GIVEN = sample(STEP)
VALUES: dict[str, Array] = {p.name: GIVEN[p.name] for p in PARAMS}
BATCH: dict[str, Array] = {t.name: GIVEN[t.name] for t in STEP.of("feature", "label", "weight")}


def test_an_engine_that_trains_passes(engine: Engine, load: Load) -> None:
    before = {name: array.copy() for name, array in VALUES.items()}
    result = self_test(engine, load("step"), VALUES, BATCH, RATE, steps=5)
    assert len(result.losses) == 5
    assert result.losses[-1] < result.losses[0]
    assert set(result.moved) == {t.name for t in (*PARAMS, *STATE)}
    assert min(result.moved.values()) > 0
    for name, array in before.items():
        np.testing.assert_array_equal(VALUES[name], array)


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        ("uphill", "the loss did not fall in 8 steps"),
        ("stuck", "'linear' did not move in 8 steps"),
        ("broken", "'linear' is not finite after step 1"),
    ],
)
def test_an_engine_that_does_not_train_is_refused(engine: Engine, load: Load, graph: str, reason: str) -> None:
    with pytest.raises(SelfTestFailed) as failed:
        self_test(engine, load(graph), VALUES, BATCH, RATE)
    assert f"engine {engine.name} {engine.version}" in str(failed.value)
    assert reason in str(failed.value)


def test_a_loss_that_is_no_number_is_refused(engine: Engine, load: Load) -> None:
    values = VALUES | {"bias": np.array(np.nan, np.float32)}
    with pytest.raises(SelfTestFailed, match="the loss of step 1 is nan"):
        self_test(engine, load("step"), values, BATCH, RATE)


def test_values_that_do_not_fit_are_the_callers_fault(engine: Engine, load: Load) -> None:
    with pytest.raises(GraphInputError, match="missing tensors: linear"):
        self_test(engine, load("step"), {n: v for n, v in VALUES.items() if n != "linear"}, BATCH, RATE)
