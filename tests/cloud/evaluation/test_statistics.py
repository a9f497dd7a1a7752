"""The statistics against cases whose answer is known."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.evaluation.device import Spent
from cloud.evaluation.running import UserResult, score
from cloud.evaluation.statistics import bootstrap, calibration, judge_errors, shares, summarize, user_aucs

NAMES = {"cloud": ("", False), "local": ("", False), "coda": ("", False)}


def user(number: int, test: int = 10, **aucs: float) -> UserResult:
    bins = [(0, 0.0, 0.0)] * 9 + [(test, 0.95 * test, 0.5 * test)]
    template = score(np.array([0, 1], np.float32), np.array([0, 1], np.float32), Spent())
    scores = {
        name: type(template)(
            auc=value, log_loss=1 - value, bins=bins, spent=Spent(cpu_s=value, peak_mib=number, kept=4)
        )
        for name, value in aucs.items()
    }
    return UserResult(number, 30, test, 0.5, 0, scores)


def test_the_interval_of_a_normal_mean_is_that_of_the_formula(rng: np.random.Generator) -> None:
    differences = rng.normal(0.02, 0.1, 400)
    found = bootstrap(differences)
    assert found.ci95 is not None
    half = 1.96 * differences.std() / np.sqrt(len(differences))
    assert found.mean == pytest.approx(differences.mean())
    assert found.ci95[0] == pytest.approx(differences.mean() - half, abs=0.001)
    assert found.ci95[1] == pytest.approx(differences.mean() + half, abs=0.001)


def test_intervals_cover_the_truth_about_as_often_as_they_say(rng: np.random.Generator) -> None:
    covered = 0
    for _ in range(60):
        low, high = bootstrap(rng.normal(0.5, 1.0, 80)).ci95 or (0.0, 0.0)
        covered += low <= 0.5 <= high
    assert covered >= 51  # 57 expected; fewer than 51 happens once in a hundred


def test_one_user_has_no_interval() -> None:
    assert bootstrap(np.array([0.1])).ci95 is None


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=30), st.floats(0, 0.1))
def test_shares_add_up_and_the_interval_holds_the_mean(values: list[float], beyond: float) -> None:
    differences = np.array(values)
    found = shares(differences, beyond)
    assert found.better + found.same + found.worse == pytest.approx(1)
    assert found.better == np.mean([v > beyond for v in values])
    low, high = bootstrap(differences).ci95 or (0.0, 0.0)
    assert min(values) - 1e-12 <= low <= high <= max(values) + 1e-12


def test_seeds_are_averaged_within_a_user_before_users_are_counted() -> None:
    # +0.03 under one seed and -0.03 under the other is no change for this user, not one better and one worse
    results = {
        0: [user(0, cloud=0.5, local=0.5, coda=0.53), user(1, cloud=0.5, local=0.6, coda=0.7)],
        1: [user(0, cloud=0.5, local=0.5, coda=0.47), user(1, cloud=0.5, local=0.6, coda=0.7)],
    }
    coda = summarize(results, NAMES)[2]
    assert (coda.better, coda.same, coda.worse) == (0.5, 0.5, 0)
    assert coda.vs_cloud.mean == pytest.approx(0.1)
    assert coda.vs_local.mean == pytest.approx(0.05)
    assert coda.mean_user_auc == pytest.approx(0.6)


def test_a_gain_beyond_noise_differs_from_a_raw_gain() -> None:
    results = {0: [user(n, cloud=0.5, local=0.5, coda=0.5 + d) for n, d in enumerate((0.005, -0.005, 0.02, -0.02))]}
    coda = summarize(results, NAMES)[2]
    assert (coda.better, coda.same, coda.worse) == (0.25, 0.5, 0.25)
    assert (coda.raw.better, coda.raw.same, coda.raw.worse) == (0.5, 0, 0.5)
    assert coda.p5 == pytest.approx(np.quantile([0.005, -0.005, 0.02, -0.02], 0.05))


def test_gauc_weighs_users_by_their_test_rows() -> None:
    results = {0: [user(0, test=30, cloud=0.8, local=0, coda=0), user(1, test=10, cloud=0.4, local=0, coda=0)]}
    cloud = summarize(results, NAMES)[0]
    assert cloud.mean_user_auc == pytest.approx(0.6)
    assert cloud.gauc == pytest.approx(0.7)
    assert cloud.log_loss == pytest.approx(0.3)


def test_calibration_compares_predicted_with_observed_shares() -> None:
    labels = np.array([1, 0] * 50, np.float32)
    right = score(labels, np.zeros(100, np.float32), Spent())
    assert calibration([right]) == (pytest.approx(0), pytest.approx(1))
    sure = score(labels, np.full(100, 30, np.float32), Spent())
    assert calibration([sure]) == (pytest.approx(0.5), pytest.approx(2))


def test_strata_part_users_by_their_local_samples() -> None:
    results = {
        0: [
            UserResult(n, local, 10, 0.5, 0, user(n, cloud=0.5, local=0.5, coda=0.5 + gain).scores)
            for n, (local, gain) in enumerate([(10, 0.1), (11, 0.2), (20, 0.4), (900, 0.0)])
        ]
    }
    strata = summarize(results, NAMES)[2].strata
    assert [(s.local, s.users) for s in strata] == [("1-10", 1), ("11-20", 2), (">200", 1)]
    assert [s.vs_cloud.mean for s in strata] == [pytest.approx(g) for g in (0.1, 0.3, 0.0)]


def test_costs_are_means_and_the_highest_peak() -> None:
    cost = summarize({0: [user(3, cloud=0.2, local=0, coda=0), user(9, cloud=0.4, local=0, coda=0)]}, NAMES)[0].cost
    assert (cost.cpu_s, cost.peak_mib, cost.kept) == (pytest.approx(0.3), 9, 4)


def test_seeds_with_other_users_are_refused() -> None:
    with pytest.raises(ValueError, match="same users"):
        user_aucs({0: [user(0, cloud=0.5)], 1: [user(1, cloud=0.5)]}, "cloud")


def test_the_judge_is_measured_by_the_test_rows() -> None:
    def judged(number: int, after: float, *, share: float) -> UserResult:
        found = user(number, **{"cloud": 0.6, "coda": after if share else 0.6, "coda-no-judge": after})
        scores = dict(found.scores)
        scores["coda"] = msgspec.structs.replace(scores["coda"], share=share)
        return msgspec.structs.replace(found, scores=scores)

    users = [
        judged(1, 0.7, share=1.0),
        judged(2, 0.7, share=0.0),
        judged(3, 0.5, share=0.5),
        judged(4, 0.6, share=1.0),
    ]
    found = judge_errors({0: users, 1: users})
    assert found is not None
    assert (found.updates, found.kept, found.harmful, found.helpful) == (8, 0.75, 0.25, 0.5)
    assert (found.harmful_kept, found.helpful_refused) == (1.0, 0.5)
    assert (found.partly, found.harmful_partly, found.helpful_partly) == (0.25, 1.0, 0.0)
    mild = judge_errors({0: users[3:]})
    assert mild is not None and mild.harmful_kept is None and mild.helpful_refused is None
    assert judge_errors({0: [user(1, cloud=0.5, coda=0.6)]}) is None
