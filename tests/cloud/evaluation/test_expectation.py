"""Shares of users in expectation, against made-up populations whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cloud.evaluation.expectation import difference_variance, expected_tails
from device_runtime.metrics import auc


def test_the_variance_is_that_of_drawing_other_rows(rng: np.random.Generator) -> None:
    found, stated = [], []
    for _ in range(400):
        labels = np.repeat([1, 0], [12, 18]).astype(np.float32)
        shared = rng.normal(size=30)
        before = (shared + 0.5 * labels + 0.5 * rng.normal(size=30)).astype(np.float32)
        after = (shared + 0.8 * labels + 0.5 * rng.normal(size=30)).astype(np.float32)
        found.append((auc(labels, after) or 0.0) - (auc(labels, before) or 0.0))
        stated.append(difference_variance(labels, before, after))
    assert np.mean(stated) == pytest.approx(np.var(found), rel=0.25)


def test_the_same_order_has_no_variance_and_one_row_says_nothing() -> None:
    labels, scores = np.array([1, 1, 0, 0], np.float32), np.array([4, 2, 3, 1], np.float32)
    assert difference_variance(labels, scores, 2 * scores) == 0
    assert math.isinf(difference_variance(np.array([1, 0, 0, 0], np.float32), scores, scores[::-1]))


def test_noise_alone_makes_nobody_worse_in_expectation(rng: np.random.Generator) -> None:
    variances = rng.uniform(0.001, 0.01, 2000)
    measured = 0.02 + rng.normal(size=2000) * np.sqrt(variances)
    assert np.mean(measured < -0.01) > 0.25
    assert (expected_tails(measured, variances, 0.01) or (1, 0))[0] < 0.02


def test_a_real_spread_is_found_again(rng: np.random.Generator) -> None:
    true = 0.01 + 0.03 * rng.normal(size=4000)
    variances = rng.uniform(0.0005, 0.005, 4000)
    below, above = expected_tails(true + rng.normal(size=4000) * np.sqrt(variances), variances, 0.01) or (0, 0)
    assert below == pytest.approx(np.mean(true < -0.01), abs=0.03)
    assert above == pytest.approx(np.mean(true > 0.01), abs=0.03)


def test_users_who_kept_the_clouds_weights_count_as_they_are() -> None:
    differences, variances = np.zeros(10), np.zeros(10)
    assert expected_tails(differences, variances, 0.01) == (0, 0)
    differences[:5], variances[:5] = -0.2, 1e-6
    below, above = expected_tails(differences, variances, 0.01) or (0, 0)
    assert below == pytest.approx(0.5) and above == pytest.approx(0.0)
    assert expected_tails(np.array([0.1, 0.0]), np.array([math.inf, 0.0]), 0.01) is None
    unknown = expected_tails(np.array([0.1, 0.1, 0.5]), np.array([1e-6, 1e-6, math.inf]), 0.01)
    assert unknown is not None and unknown[1] == pytest.approx(1.0), "of whom nothing is known, the others speak"
