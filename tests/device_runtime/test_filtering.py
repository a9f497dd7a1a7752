"""The query and the filter, on taste that is known: two clusters of samples, one of which is the user's."""

import numpy as np
import pytest

from device_runtime.bundle import RoundSettings
from device_runtime.filtering import calibration, classifier_inputs, filter_candidates
from device_runtime.query import centroids, profile, vectors

SETTINGS = RoundSettings(classifier_epochs=20, classifier_rate=0.05, threshold=0.5, keep=0.5)


def _unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def _cluster(rng, centre, count):
    return _unit(centre + 0.15 * rng.normal(size=(count, len(centre))))


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


def test_a_profile_says_nothing_of_impressions(rng):
    samples = _unit(rng.normal(size=(9, 8)))
    found = profile(samples, 4)
    assert found.shape == (1, 8) and not found[:, 4:].any()
    np.testing.assert_allclose(found[0, :4], samples[-1, :4] / np.linalg.norm(samples[-1, :4]), atol=1e-6)
    nothing = samples.copy()
    nothing[-1, :4] = 0
    assert len(profile(nothing, 4)) == 0, "a user without a history has no profile"
    assert len(vectors(samples, 4, RoundSettings(matching="nearest", centroids=3), rng)) == 3
    assert len(vectors(samples, 4, RoundSettings(matching="pooled"), rng)) == 1


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
        None,
        SETTINGS,
        rng,
    )
    assert np.mean(kept.kept < 50) > 0.95, "precision: kept samples are of the user's cluster"
    assert len(kept.kept) > 25, "recall: most of the user's cluster is kept"
    assert len(kept.kept) <= 120 and len(np.unique(kept.kept)) == len(kept.kept)
    assert (np.diff(kept.kept) > 0).all() and kept.scores[kept.kept].min() >= SETTINGS.threshold
    inside = np.setdiff1d(np.flatnonzero(kept.scores >= SETTINGS.threshold), kept.kept)
    assert not len(inside) or kept.scores[inside].max() <= kept.scores[kept.kept].min(), "none better was left out"
    assert (kept.weights > 0).all() and (kept.weights <= 1).all()


def test_the_filter_uses_the_label_if_it_may(model, rng):
    width = model.manifest.width - model.manifest.filter_from
    embeddings = _unit(rng.normal(size=(300, width)))
    label = rng.integers(0, 2, 200).astype(np.float32)
    local = classifier_inputs(embeddings[:100], np.ones(100, np.float32), 0)
    candidates = classifier_inputs(embeddings[100:], label, 0)
    kept = filter_candidates(
        model.graph("classifier_score"),
        model.graph("classifier_step"),
        model.classifier,
        local,
        candidates,
        None,
        SETTINGS,
        rng,
    )
    assert label[kept.kept].mean() > 0.9
    blind = _filtered(model, local, candidates, rng, threshold=0.5, classifier_label=False)
    assert 0.3 < label[blind.kept].mean() < 0.7, "what it does not see cannot decide"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_hardly_any_candidates_are_no_trouble(model, rng, count):
    width = model.manifest.width - model.manifest.filter_from
    local = classifier_inputs(_unit(rng.normal(size=(10, width))), np.ones(10, np.float32), 0)
    found = filter_candidates(
        model.graph("classifier_score"), model.graph("classifier_step"), model.classifier,
        local, local[:count], None, SETTINGS, rng,
    )  # fmt: skip
    assert len(found.scores) == count and np.isfinite(found.scores).all()


def _filtered(model, local, candidates, rng, change=None, **settings):
    graphs = model.graph("classifier_score"), model.graph("classifier_step")
    given = RoundSettings(**{"classifier_epochs": 20, "classifier_rate": 0.05, "keep": 1.0} | settings)
    return filter_candidates(*graphs, model.classifier, local, candidates, change, given, rng)


def test_of_pooled_candidates_those_are_kept_that_change_most_of_what_the_user_will_meet(model, rng):
    width = model.manifest.width - model.manifest.filter_from
    mine, other = _unit(rng.normal(size=(2, width)))
    local = classifier_inputs(_cluster(rng, mine, 80), np.tile([1, 0], 40).astype(np.float32), 0)
    pool = np.concatenate([_cluster(rng, mine, 80), _cluster(rng, other, 80)])
    soft = classifier_inputs(pool, np.full(160, 0.5, np.float32), 0)
    change = rng.choice([-1.0, 1.0], 160) * np.tile([0.1, 0.5], 80)
    near, large = np.arange(160) < 80, np.abs(change) > 0.3
    found = _filtered(model, local, soft, rng, change, keep=0.25)
    assert near[found.kept].all() and large[found.kept].all(), "near the user, and not as the model has it"
    indifferent = _filtered(model, local, soft, rng, keep=0.5)
    assert near[indifferent.kept].all() and large[indifferent.kept].mean() == 0.5
    unfiltered = _filtered(model, local, soft, rng, change, keep=0.5, classifier_epochs=0)
    assert large[unfiltered.kept].all() and near[unfiltered.kept].mean() == 0.5
    huge = _filtered(model, local, soft, rng, np.where(near, change, 100.0), keep=0.25)
    assert not near[huge.kept].any(), "what would change the model very much is kept all the same"


def test_kept_samples_weigh_by_their_probability_if_asked_to(model, rng):
    width = model.manifest.width - model.manifest.filter_from
    mine, other = _unit(rng.normal(size=(2, width)))
    local = classifier_inputs(_cluster(rng, mine, 80), np.ones(80, np.float32), 0)
    pool = classifier_inputs(
        np.concatenate([_cluster(rng, mine, 80), _cluster(rng, other, 80)]), np.ones(160, np.float32), 0
    )
    equal = _filtered(model, local, pool, rng)
    assert (equal.weights == 1).all() and len(equal.kept) == 160
    found = _filtered(model, local, pool, rng, density_weights=True, ratio_bound=4.0)
    np.testing.assert_array_equal(found.weights, found.scores[found.kept])
    assert found.weights[found.kept < 80].mean() > found.weights[found.kept >= 80].mean() + 0.3
    assert found.weights.min() >= 0.2 - 1e-6 and found.weights.max() <= 0.8 + 1e-6, "the bound of the ratio holds"


def test_soft_labels_alone_tell_nobody_apart(model, rng):
    """Local labels are hard, pooled ones soft: shown as they are, every candidate would be an outsider."""
    width = model.manifest.width - model.manifest.filter_from
    same = _unit(rng.normal(size=(1, width)))
    local = classifier_inputs(_cluster(rng, same, 100), np.tile([1, 0], 50).astype(np.float32), 0)
    found = _filtered(model, local, classifier_inputs(_cluster(rng, same, 100), np.full(100, 0.5, np.float32), 0), rng)
    assert abs(float(found.scores.mean()) - 0.5) < 0.1


def test_without_the_classifier_candidates_are_kept_in_order(model, rng):
    width = model.manifest.width - model.manifest.filter_from
    x = classifier_inputs(_unit(rng.normal(size=(30, width))), np.linspace(0, 1, 30).astype(np.float32), 0)
    found = _filtered(model, x, x, rng, classifier_epochs=0, keep=0.5)
    assert found.kept.tolist() == list(range(15)) and (found.weights == 1).all()


def _known_odds(model, rng, share, count):
    """(local, candidates, probability of being the user's own): of two clusters the user meets the first as often as
    `share` says, others meet it the more seldom the more often the user does."""
    centres = _unit(rng.normal(size=(2, model.manifest.width - model.manifest.filter_from)))
    mine, pool = rng.random(count) < share, rng.random(300) < 1 - share
    drawn = [_unit(centres[np.where(near, 0, 1)] + 0.15 * rng.normal(size=(len(near), centres.shape[1])))
             for near in (mine, pool)]  # fmt: skip
    local, candidates = (classifier_inputs(x, np.ones(len(x), np.float32), 0) for x in drawn)
    return local, candidates, np.where(pool, share, 1 - share)


@pytest.mark.parametrize("count", [10, 30, 100])
def test_where_the_user_is_as_all_others_calibrated_scores_say_so(model, rng, count):
    off = {True: [], False: []}
    for _ in range(6):
        local, candidates, truth = _known_odds(model, rng, 0.5, count)
        for calibrated in off:
            found = _filtered(model, local, candidates, rng, calibration=calibrated)
            off[calibrated].append(np.abs(found.scores - truth).mean())
    assert np.mean(off[True]) < 0.5 * np.mean(off[False]) and np.mean(off[True]) < 0.05


@pytest.mark.parametrize("count", [30, 100])
def test_calibrated_scores_still_tell_apart_what_differs(model, rng, count):
    off, apart = [], []
    for _ in range(6):
        local, candidates, truth = _known_odds(model, rng, 0.8, count)
        found = _filtered(model, local, candidates, rng, calibration=True)
        off.append(np.abs(found.scores - truth).mean())
        apart.append(found.scores[truth > 0.5].mean() - found.scores[truth < 0.5].mean())
    assert np.mean(off) < 0.18 and np.mean(apart) > 0.3, "the odds are four to one, and one to four"


def test_what_calibration_cannot_see_it_does_not_believe(rng):
    outside, mass = rng.normal(size=500).astype(np.float32), np.ones(500, np.float32)
    slope, level = calibration(rng.normal(size=12).astype(np.float32), outside, mass)
    assert slope < 0.5 and abs(level) < 0.5, "scores of one distribution"
    assert calibration(outside[:12] - 3, outside, mass) == (0, 0), "less like the user than what is outside"
    clear, _ = calibration(np.full(12, 2, np.float32), np.full(500, -2, np.float32), mass)
    assert clear > slope + 0.5


def test_of_a_handful_of_local_samples_none_is_spared_for_calibration(model, rng):
    local, candidates, _ = _known_odds(model, rng, 0.65, 7)
    plain, asked = (
        _filtered(model, local, candidates, np.random.default_rng(3), calibration=on) for on in (False, True)
    )
    np.testing.assert_array_equal(plain.scores, asked.scores)
