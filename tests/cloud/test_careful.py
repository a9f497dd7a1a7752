"""The most careful option: better than nothing for sure, and hardly worse than the best."""

import numpy as np
import pytest

from cloud.careful import most_careful


def gains(rng, *means, scatter=1.0, contributors=400):
    """Of options over the first, which gains nothing over itself; each option scatters as its own."""
    found = np.array([0.0, *means]) + scatter * rng.normal(size=(contributors, 1 + len(means)))
    found[:, 0] = 0
    return found


@pytest.mark.parametrize(
    ("means", "chosen"),
    [
        ((0.0, 0.0, 0.0), 0),  # nothing is better than nothing
        ((0.5, 1.0, 2.0), 3),  # surely the best
        ((0.5, 2.0, 2.01), 2),  # hardly worse than the best, and more careful
        ((-1.0, 2.0, -1.0), 2),
        ((0.02, 0.02, 0.02), 0),  # who knows
    ],
)
def test_it_is_the_first_that_is_hardly_worse_than_the_best(rng, means, chosen):
    assert most_careful(gains(rng, *means)) == chosen


@pytest.mark.parametrize("contributors", [0, 1])
def test_one_contributor_is_no_evidence(rng, contributors):
    assert most_careful(gains(rng, 5.0, contributors=contributors)) == 0


def test_gains_without_scatter_are_sure(rng):
    assert most_careful(gains(rng, 0.1, 0.2, scatter=0.0)) == 2
