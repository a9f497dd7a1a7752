"""When new weights may serve, by what held-out samples say; on numbers alone."""

import math

import numpy as np
import pytest

from device_runtime.bundle import RoundSettings
from device_runtime.personalize import consider, judge, students


@pytest.mark.parametrize(
    ("after", "activate", "why"),
    [
        ([2, -2, 2, -2], True, "no evidence of harm"),
        ([-3, 3, -3, 3], False, "log loss rose"),
        ([5.1, 4.9, 5.1, 4.9], True, "no evidence of harm"),
        ([np.nan, 0, 0, 0], False, "not finite"),
    ],
)
def test_the_judge_refuses_on_evidence_of_harm_alone(after, activate, why):
    labels = np.array([1, 0, 1, 0], np.float32)
    before = np.array([0.1, -0.1, 0.1, -0.1], np.float32)
    verdict = judge(labels, before, np.array(after, np.float32), RoundSettings())
    assert verdict.activate is activate and why in verdict.reason
    assert verdict.samples == 4


def test_doubt_decides_how_much_evidence_it_takes(rng):
    labels = np.tile([1, 0], 20).astype(np.float32)
    before = np.zeros(40, np.float32)
    after = (0.5 * rng.normal(size=40)).astype(np.float32)
    strict = judge(labels, before, after, RoundSettings(tolerance=0.0))
    assert not strict.activate and "standard error" in strict.reason, "noise costs some log loss"
    assert judge(labels, before, after, RoundSettings(tolerance=50.0)).activate
    assert judge(labels, before, -10 * labels, RoundSettings(judge=False)).reason == "the judge is off"


def test_the_judge_copes_with_one_class_and_one_sample():
    ones = np.ones(3, np.float32)
    verdict = judge(ones, np.zeros(3, np.float32), ones, RoundSettings())
    assert verdict.activate and verdict.auc_before is None
    for few in (1, 2):
        alone = judge(ones[:few], ones[:few], -9 * ones[:few], RoundSettings())
        assert alone.activate and "too few held-out samples" in alone.reason, "they show nothing of their own spread"


HARM, HALF, LABELS = [-6, 6, -6, 6], [0.2, -0.2, 0.2, -0.2], np.array([1, 0, 1, 0], np.float32)


@pytest.mark.parametrize(
    ("whole", "half", "partial", "share", "activate"),
    [
        (HALF, HARM, 0.5, 1.0, True),  # nobody asks for a part of what may serve
        (HARM, HALF, 0.5, 0.5, True),
        (HARM, HARM, 0.5, 1.0, False),
        (HARM, HALF, 0.0, 1.0, False),
        ([np.nan] * 4, [np.nan] * 4, 0.5, 1.0, False),
    ],
)
def test_where_the_whole_way_harms_a_part_of_it_may_serve(whole, half, partial, share, activate):
    asked = []

    def after(part):
        asked.append(part)
        return np.array(whole if part == 1 else half, np.float32)

    before = np.array([0.1, -0.1, 0.1, -0.1], np.float32)
    verdict = consider(LABELS, before, after, RoundSettings(partial=partial))
    assert (verdict.activate, verdict.share) == (activate, share)
    assert asked == [1.0, 0.5][: 1 + (whole is not HALF and partial > 0)]
    served = judge(LABELS, before, np.array(half if share < 1 else whole, np.float32), RoundSettings())
    assert verdict.loss_after == pytest.approx(served.loss_after, nan_ok=True)
    assert ("50% of the way, since of all of it held-out log loss rose" in verdict.reason) == (share < 1)


@pytest.mark.parametrize(("freedom", "exact"), [(2, 4.527), (3, 3.307), (4, 2.869), (9, 2.320), (30, 2.087)])
def test_few_samples_are_asked_for_more_evidence(freedom, exact):
    """Against the exact quantiles, which are as rare as 2 of the normal distribution."""
    assert students(2.0, freedom) == pytest.approx(exact, rel=0.05)
    assert students(2.0, 1) > 13.9 and students(0.0, freedom) == 0 and math.isfinite(students(50.0, 1))


@pytest.mark.parametrize("count", [3, 4, 8])
def test_a_handful_of_samples_hardly_ever_refuses_what_does_nothing(rng, count):
    before, refused = np.zeros(count, np.float32), []
    for _ in range(400):
        labels, noise = rng.integers(0, 2, count).astype(np.float32), 0.1 * rng.normal(size=count).astype(np.float32)
        refused.append(not judge(labels, before, noise, RoundSettings()).activate)
    assert np.mean(refused) < 0.1
