"""What a device says of its samples when it asks by directory."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_runtime.directory import MOST, SMALLEST, Directory
from device_runtime.errors import InputError, WireError

WIDTH = 6


def unit(rng, count):
    points = rng.normal(size=(count, WIDTH))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def directory(rng, count):
    return Directory.of(unit(rng, count).astype(np.float16), WIDTH)


def by_hand(embeddings, centroids, sharpness):
    """The definition, number by number."""
    mass = [0.0] * len(centroids)
    for row in embeddings.tolist():
        odds = [math.exp(sharpness * sum(a * b for a, b in zip(row, c, strict=True))) for c in centroids.tolist()]
        mass = [m + o / sum(odds) for m, o in zip(mass, odds, strict=True)]
    bytes_ = [round(m / max(mass) * 255) for m in mass]
    return [0 if b < SMALLEST else b for b in bytes_]


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 9), st.sampled_from([0.5, 12.0, 40.0]))
def test_weights_are_mean_soft_assignments_in_bytes(seed, samples, parts, sharpness):
    rng = np.random.default_rng(seed)
    mine, known = unit(rng, samples), directory(rng, parts)
    found = known.weights(mine, sharpness)
    assert found.dtype == np.uint8 and found.max() == 255
    assert found.tolist() == by_hand(mine, known.centroids, sharpness)


def test_a_sample_that_lies_on_a_centroid_asks_for_its_part_alone(rng):
    known = directory(rng, 5)
    assert known.weights(known.centroids[3:4], 100.0).tolist() == [0, 0, 0, 255, 0]


def test_no_order_or_number_of_samples_shows(rng):
    known, mine = directory(rng, 20), unit(rng, 3000)
    once = known.weights(mine, 12.0)
    np.testing.assert_array_equal(known.weights(np.tile(mine[rng.permutation(3000)], (2, 1)), 12.0), once)


def test_the_name_is_of_the_centroids_as_they_are_stored(rng):
    stored = unit(rng, 5).astype(np.float16)
    first, again = Directory.of(stored, WIDTH), Directory.of(stored.copy(order="F"), WIDTH)
    assert first.id == again.id and len(first.id) == 16
    stored[2, 3] = np.nextafter(stored[2, 3], np.float16(2))
    assert Directory.of(stored, WIDTH).id != first.id


def test_weights_nearly_tell_the_mean_of_the_samples_to_who_tries(rng):
    """What docs/adr/0018 warns of: no vector is sent, and yet what the user is like on the whole can be fitted."""
    known, weights, means = directory(rng, 40), [], []
    for taste in unit(rng, 400):
        mine = taste + 0.5 * rng.normal(size=(30, WIDTH))
        mine = (mine / np.linalg.norm(mine, axis=1, keepdims=True)).astype(np.float32)
        weights.append(known.weights(mine, 12.0) / 255)
        means.append(mine.mean(0) / np.linalg.norm(mine.mean(0)))
    seen, told = np.array(weights), np.array(means)
    fit = np.linalg.lstsq(seen[:200], told[:200], rcond=None)[0]
    guess = seen[200:] @ fit
    cosine = (guess * told[200:]).sum(1) / np.linalg.norm(guess, axis=1)
    assert np.median(cosine) > 0.95


@pytest.mark.parametrize("samples", [np.zeros((0, WIDTH), np.float32), np.full((2, WIDTH), np.nan, np.float32)])
def test_without_finite_samples_there_is_nothing_to_say(rng, samples):
    with pytest.raises(InputError, match="needs local samples, and finite embeddings"):
        directory(rng, 3).weights(samples, 12.0)


@pytest.mark.parametrize(
    "stored",
    [np.zeros((0, WIDTH)), np.zeros((3, WIDTH + 1)), np.zeros(WIDTH), np.zeros((MOST + 1, WIDTH))],
    ids=["none", "wide", "flat", "many"],
)
def test_what_is_no_directory_is_refused(stored):
    with pytest.raises(WireError, match=f"expected|1 to {MOST}"):
        Directory.of(stored.astype(np.float16), WIDTH)
    with pytest.raises(WireError, match="float32"):
        Directory.of(np.zeros((3, WIDTH), np.float32), WIDTH)
    with pytest.raises(WireError, match="not finite"):
        Directory.of(np.full((3, WIDTH), np.inf, np.float16), WIDTH)
