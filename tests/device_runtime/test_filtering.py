"""The query and the filter, on taste that is known: two clusters of samples, one of which is the user's."""

import numpy as np
import pytest

from device_runtime.bundle import BlobStore, RoundSettings
from device_runtime.engines import open_engine
from device_runtime.filtering import classifier_inputs, filter_candidates
from device_runtime.model import Model
from device_runtime.query import centroids
from tests.export.conftest import bundle, engines, small_din  # noqa: F401  (fixtures)


def _unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def _cluster(rng, centre, count):
    return _unit(centre + 0.15 * rng.normal(size=(count, len(centre))))


@pytest.fixture
def model(bundle):  # noqa: F811
    folder, manifest = bundle
    return Model.open(manifest, open_engine("onnx"), BlobStore(folder / "blobs"))


def test_centroids_find_the_clusters(rng):
    centres = _unit(rng.normal(size=(3, 8)))
    points = np.concatenate([_cluster(rng, c, 40) for c in centres])
    found = centroids(points, 3, rng)
    assert found.shape == (3, 8) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert (found @ centres.T).max(0).min() > 0.8


def test_few_distinct_samples_are_their_own_centroids(rng):
    points = np.repeat(_unit(rng.normal(size=(2, 8))), 5, axis=0)
    assert len(centroids(points, 8, rng)) == 2


def test_the_filter_keeps_what_is_like_the_user(model, rng):
    width = model.manifest.width - model.manifest.filter_from
    mine, other = _unit(rng.normal(size=(2, width)))
    local = classifier_inputs(_cluster(rng, mine, 60), rng.integers(0, 2, 60).astype(np.float32), 0)
    outside = np.concatenate([_cluster(rng, mine, 50), _cluster(rng, other, 150)])
    candidates = classifier_inputs(outside, rng.integers(0, 2, 200).astype(np.float32), 0)
    kept = filter_candidates(
        model.graph("classifier_score"),
        model.graph("classifier_step"),
        model.classifier,
        local,
        candidates,
        RoundSettings(),
        rng,
    )
    assert np.mean(kept.kept < 50) > 0.95, "precision: kept samples are of the user's cluster"
    assert len(kept.kept) > 25, "recall: most of the user's cluster is kept"
    assert len(kept.kept) <= 120 and len(np.unique(kept.kept)) == len(kept.kept)
    assert (np.diff(kept.scores[kept.kept]) <= 0).all(), "best first"
    assert (kept.weights > 0).all() and (kept.weights <= 1).all()


def test_the_filter_uses_the_label(model, rng):
    width = model.manifest.width - model.manifest.filter_from
    embeddings = _unit(rng.normal(size=(300, width)))
    label = rng.integers(0, 2, 200).astype(np.float32)
    local = classifier_inputs(embeddings[:100], np.ones(100, np.float32), 0)
    kept = filter_candidates(
        model.graph("classifier_score"),
        model.graph("classifier_step"),
        model.classifier,
        local,
        classifier_inputs(embeddings[100:], label, 0),
        RoundSettings(),
        rng,
    )
    assert label[kept.kept].mean() > 0.9


@pytest.mark.parametrize("count", [0, 1, 2])
def test_hardly_any_candidates_are_no_trouble(model, rng, count):
    width = model.manifest.width - model.manifest.filter_from
    local = classifier_inputs(_unit(rng.normal(size=(10, width))), np.ones(10, np.float32), 0)
    found = filter_candidates(
        model.graph("classifier_score"), model.graph("classifier_step"), model.classifier,
        local, local[:count], RoundSettings(), rng,
    )  # fmt: skip
    assert len(found.scores) == count and np.isfinite(found.scores).all()
