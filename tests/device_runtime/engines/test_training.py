"""The trainer, over real graphs of each engine."""

from __future__ import annotations

import numpy as np
import pytest

from device_runtime.engines import Array, GraphSpec, TensorSpec
from device_runtime.errors import EngineError, GraphInputError, InputError
from device_runtime.trainer import Float32, calls, initial_state, scores, train
from tests.device_runtime.engines.tiny import (
    BATCH,
    FEATURES,
    PARAMS,
    SCORE,
    STATE,
    STEP,
    Load,
    logits,
    sample,
    step,
    tensors,
)

VALUES: dict[str, Array] = {p.name: sample(STEP)[p.name] for p in PARAMS}


def samples(count: int) -> tuple[dict[str, Array], Float32, Float32]:
    rng = np.random.default_rng(5)
    numbers = rng.normal(size=(count, 2)).astype(np.float32)
    features: dict[str, Array] = {"history": rng.integers(0, 10, (count, 3)), "numbers": numbers}
    return features, (numbers[:, 0] > 0).astype(np.float32), np.ones(count, np.float32)


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_any_number_of_samples_trains(load: Load) -> None:
    features, labels, weights = samples(21)
    values, losses = train(load("step"), VALUES, features, labels, weights, rate=0.2, epochs=5, rng=rng())
    assert len(losses) == 5
    assert losses[-1] < 0.7 * losses[0]
    assert set(values) == {t.name for t in (*PARAMS, *STATE)}


def test_a_smaller_batch_is_a_step_of_those_samples_alone(load: Load) -> None:
    """5 samples in a graph of up to 8."""
    features, labels, weights = samples(5)
    values, losses = train(load("step"), VALUES, features, labels, weights, rate=0.2, epochs=1, rng=rng())
    given = VALUES | initial_state(STEP, VALUES) | features
    given |= {"label": labels, "sample_weight": weights, "learning_rate": np.array(0.2, np.float32)}
    wanted = step(*tensors(STEP, given))
    np.testing.assert_allclose(values["item.weight"], wanted[0], atol=1e-6)
    assert losses == [pytest.approx(float(wanted[-1]), abs=1e-6)]


def test_samples_of_weight_zero_are_left_out(load: Load) -> None:
    features, labels, weights = samples(12)
    weights[5:] = 0
    some = {name: column[:5] for name, column in features.items()}
    all_of_them = train(load("step"), VALUES, features, labels, weights, rate=0.2, epochs=2, rng=rng())
    five = train(load("step"), VALUES, some, labels[:5], weights[:5], rate=0.2, epochs=2, rng=rng())
    assert all_of_them[1] == five[1]


def test_the_same_seed_gives_the_same_weights_and_touches_nothing(load: Load) -> None:
    before = {name: array.copy() for name, array in VALUES.items()}
    first, second = (
        train(load("step"), VALUES, *samples(21), rate=0.1, epochs=2, rng=rng())[0]["linear"] for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
    for name, array in before.items():
        np.testing.assert_array_equal(VALUES[name], array)


def test_state_continues_where_it_was(load: Load) -> None:
    once, _ = train(load("step"), VALUES, *samples(8), rate=0.1, epochs=1, rng=rng())
    on, _ = train(load("step"), once, *samples(8), rate=0.1, epochs=1, rng=rng())
    fresh = {p.name: once[p.name] for p in PARAMS}
    again, _ = train(load("step"), fresh, *samples(8), rate=0.1, epochs=1, rng=rng())
    assert not np.allclose(on["linear"], again["linear"])


def test_values_that_the_graph_does_not_take_are_passed_on(load: Load) -> None:
    extra = VALUES | {"other": np.zeros(3)}
    values, _ = train(load("step"), extra, *samples(3), rate=0.1, epochs=1, rng=rng())
    assert values["other"] is extra["other"]


@pytest.mark.parametrize(("graph", "rate"), [("broken", 0.1), ("step", 1e38)])
def test_divergence_is_an_error_and_leaves_the_values(load: Load, graph: str, rate: float) -> None:
    before = {name: array.copy() for name, array in VALUES.items()}
    with pytest.raises(EngineError, match="training diverged in epoch"):
        train(load(graph), VALUES, *samples(20), rate=rate, epochs=3, rng=rng())
    for name, array in before.items():
        np.testing.assert_array_equal(VALUES[name], array)


@pytest.mark.parametrize(
    ("labels", "weights", "message"),
    [
        ([0, 1, np.nan], [1, 1, 1], "labels must be finite"),
        ([0, 1, 2], [1, 1, 1], "labels must be numbers from 0 to 1; given: from 0.0 to 2.0"),
        ([0, 1, 1], [1, np.inf, 1], "weights must be finite"),
        ([0, 1, 1], [1, -1, 1], "of at least 0"),
        ([0, 1, 1], [0, 0, 0], "no samples of weight above 0"),
        ([0, 1], [1, 1], "history has 3 rows, the labels have 2"),
        ([0, 1, 1], [1, 1], "weights has 2 rows, the labels have 3"),
    ],
)
def test_samples_that_cannot_be_trained_on_are_refused(
    load: Load, labels: list[float], weights: list[float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(
            *(load("step"), VALUES, samples(3)[0], np.array(labels, np.float32), np.array(weights, np.float32)),
            rate=0.1,
            epochs=1,
            rng=rng(),
        )


def test_features_and_rates_that_cannot_be_trained_with_are_refused(load: Load) -> None:
    features, labels, weights = samples(3)
    features["numbers"][1, 0] = np.nan
    with pytest.raises(InputError, match="feature 'numbers' must hold finite numbers"):
        train(load("step"), VALUES, features, labels, weights, rate=0.1, epochs=1, rng=rng())
    for rate in (0.0, -0.1, np.nan, np.inf):
        with pytest.raises(InputError, match="learning rate must be a finite number above 0"):
            train(load("step"), VALUES, *samples(3), rate=rate, epochs=1, rng=rng())


@pytest.mark.parametrize("count", [0, 1, BATCH, 19])
def test_scores_of_any_number_of_samples(load: Load, count: int) -> None:
    features, _, _ = samples(count)
    found = scores(load("score"), VALUES | {"other": np.zeros(3)}, features)
    assert (found.dtype, found.shape) == (np.float32, (count,))
    params = dict(zip(VALUES, tensors(SCORE, VALUES | sample(SCORE))[:3], strict=True))
    past = tensors(GraphSpec(FEATURES, ()), features)
    np.testing.assert_allclose(found, logits(params, *past).numpy(), atol=1e-5)


def test_scores_keep_what_follows_the_batch(load: Load) -> None:
    table = sample(SCORE)["item.weight"]
    history = samples(11)[0]["history"]
    np.testing.assert_array_equal(scores(load("gather"), {"table": table}, {"history": history}), table[history])


def test_scores_refuse_columns_of_different_length(load: Load) -> None:
    with pytest.raises(InputError, match=r"differ in length: \[2, 3\]"):
        scores(load("score"), VALUES, {"history": np.zeros((2, 3), np.int64), "numbers": np.zeros((3, 2), np.float32)})


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [(1, 1)]), (8, [(1, 8)]), (19, [(2, 8), (1, 3)]), (40, [(3, 8), (2, 8)])]
)
def test_calls_cover_each_sample_once(count: int, sizes: list[tuple[int, int]]) -> None:
    """At most 3 steps in a call, of at most 8 samples each."""
    found = list(calls(np.arange(count)[::-1], 8, 3))
    assert [at.shape for at in found] == sizes
    assert np.concatenate([at.ravel() for at in found]).tolist() == list(range(count))[::-1]


def test_state_needs_to_know_its_size() -> None:
    spec = GraphSpec((TensorSpec("slot", "float32", ("rows", 2), "state"),), ())
    with pytest.raises(GraphInputError, match="no given tensor says how large 'rows' is"):
        initial_state(spec, {})
