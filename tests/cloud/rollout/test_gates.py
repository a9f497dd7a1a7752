"""Gates: what stops a release, what makes it wait, and that looking often does not make them cry wolf."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cloud.rollout import LADDER, Evidence, Gate, Reports, Watched, judge, summed
from cloud.rollout.evidence import MOST_QUALITY, Arm
from cloud.rollout.gates import difference, e_value, radius, rate
from device_runtime.errors import InputError

ONE_PERCENT = LADDER[2]
DAY = 86_400.0


def reports(rng, n, *, failing=0.01, quality=0.0, slower=1.0, spread=0.1) -> Reports:
    cpu = 0.4 * slower * np.exp(rng.normal(0, 0.4, n))
    return Reports(rng.random(n) < failing, rng.normal(quality, spread, n), {"cpu_s": cpu})


BOUNDS = {"cpu_s": 0.4 * math.exp(1.645 * 0.4)}


def found(rng, n=8000, stood_s=2 * DAY, **treated):
    return judge(summed(reports(rng, n, **treated), reports(rng, n), BOUNDS), ONE_PERCENT, Gate(), stood_s=stood_s)


def test_a_release_with_nothing_wrong_climbs_once_its_time_has_come(rng):
    assert found(rng).verdict == "promote"
    early = found(rng, stood_s=3600)
    assert early.verdict == "wait" and early.why == ("1.0 of 24 hours have passed",)
    few = found(rng, n=20)
    assert few.verdict == "wait" and "20 of 50 devices have reported" in few.why


@pytest.mark.parametrize(
    ("harm", "named"),
    [({"failing": 0.05}, "failures"), ({"slower": 1.2}, "cpu_s"), ({"quality": -0.01}, "quality")],
)
def test_each_harm_stops_it_and_is_named_with_its_evidence(rng, harm, named):
    stopped = found(rng, **harm)
    assert stopped.verdict == "stop"
    assert [line.split(":")[0] for line in stopped.why] == [named]


def test_a_better_and_cheaper_release_is_not_stopped(rng):
    assert found(rng, failing=0.001, quality=0.02, slower=0.7).verdict == "promote"


def test_many_failures_stop_a_release_even_if_the_control_fails_as_well(rng):
    both = summed(reports(rng, 40, failing=0.5), reports(rng, 40, failing=0.5), BOUNDS)
    told = judge(both, ONE_PERCENT, Gate(), stood_s=0.0)
    assert told.verdict == "stop" and told.why[0].startswith("failures: ")


def test_a_group_that_reports_more_often_does_not_seem_to_fail_more_often(rng):
    uneven = summed(reports(rng, 9000, failing=0.05), reports(rng, 300, failing=0.05), BOUNDS)
    assert uneven.pairs == 300 and uneven.treatment.devices == 9000
    assert uneven.events["failures"][0] < 40


@pytest.mark.parametrize(("treated", "control", "factor"), [(0, 0, 1.0), (3, 1, 1.0), (12, 4, 1.2), (40, 60, 1.2)])
def test_the_bet_is_the_integral_that_it_claims_to_be(treated, control, factor):
    null, events = factor / (1 + factor), treated + control
    # an incomplete beta function by the binomial's sum
    tail = sum(math.comb(events + 1, k) * null**k * (1 - null) ** (events + 1 - k) for k in range(treated + 1))
    exact = tail / ((events + 1) * math.comb(events, treated)) / (null**treated * (1 - null) ** control * (1 - null))
    assert e_value(treated, control, factor) == pytest.approx(exact, rel=1e-3)


def test_looking_after_every_event_hardly_ever_cries_wolf(rng):
    alpha, runs, cried = 0.05, 400, 0
    for _ in range(runs):
        mine = rng.random(300) < 0.5
        treated = np.cumsum(mine)
        cried += any(e_value(int(t), i + 1 - int(t)) >= 1 / alpha for i, t in enumerate(treated) if i % 3 == 0)
    # at the bound, more than 32 of 400 would be seen once in 300 times
    assert cried <= 32


def test_the_interval_covers_the_truth_at_all_looks_together(rng):
    alpha, runs, missed, ever_fixed = 0.05, 400, 0, 0
    looks = np.arange(20, 2000, 10)
    for _ in range(runs):
        mean = np.cumsum(rng.normal(0, 1, 2000))[looks - 1] / looks
        missed += bool((np.abs(mean) > [radius(float(n), alpha, 0.04) for n in looks]).any())
        ever_fixed += bool((np.abs(mean) > 1.96 / np.sqrt(looks)).any())
    assert missed <= 32 < ever_fixed  # a test of fixed size, looked at as often, errs several times as often


def test_a_reference_sharpens_the_quality_and_nothing_else(rng):
    treated, control = reports(rng, 3000, quality=-0.01), reports(rng, 3000)
    alone = summed(treated, control, BOUNDS)
    wide = summed(treated, control, BOUNDS, reference=rng.normal(0, 0.1, 12_000))
    assert wide.events == alone.events and wide.pairs == alone.pairs and wide.control == alone.control
    found = [judge(evidence, ONE_PERCENT, Gate(), stood_s=0.0).quality for evidence in (alone, wide)]
    assert found[1][2] - found[1][1] < 0.85 * (found[0][2] - found[0][1])


def test_looking_often_at_groups_of_unequal_size_hardly_ever_cries_wolf(rng):
    alpha, runs, cried = 0.05, 400, 0
    for _ in range(runs):
        treated, control = np.cumsum(rng.normal(0, 0.1, 2000)), np.cumsum(rng.normal(0, 0.1, 10_000))
        for n in range(50, 2001, 25):
            arms = [Arm(rated=m, quality=s[m - 1], squares=0.01 * m) for m, s in ((n, treated), (5 * n, control))]
            low, high = difference(*arms, Gate(), alpha)[1:]
            if not low <= 0 <= high:
                cried += 1
                break
    assert cried <= 32


def test_devices_that_are_not_heard_of_again_stop_a_release(rng):
    both = [reports(rng, 3000, spread=0.05) for _ in range(2)]
    for dying, verdict in ((0.05, "stop"), (0.0, "promote")):
        silent = [Watched(rng.random(3000) < 0.06 + more) for more in (dying, 0.0)]
        evidence = summed(*both, BOUNDS, watched=(silent[0], silent[1]))
        told = judge(evidence, ONE_PERCENT, Gate(), stood_s=2 * DAY)
        assert told.verdict == verdict
        assert (evidence.treatment.watched, evidence.treatment.silent) == (3000, int(silent[0].silent.sum()))
    assert set(told.evidence) == {"failures", "cpu_s", "silent"}


def test_a_release_does_not_climb_before_silence_could_have_been_noticed(rng):
    both = [reports(rng, 3000, spread=0.05) for _ in range(2)]
    few = tuple(Watched(np.zeros(n, bool)) for n in (1000, 1400))
    told = judge(summed(*both, BOUNDS, watched=few), ONE_PERCENT, Gate(), stood_s=2 * DAY)
    assert told.why == ("1000 of 1500 devices have been watched for 48 hours",)


def test_failures_that_are_not_excluded_keep_a_release_from_climbing(rng):
    treated, control = reports(rng, 60, failing=0.0, spread=0.01), reports(rng, 60, failing=0.0, spread=0.01)
    told = judge(summed(treated, control, BOUNDS), ONE_PERCENT, Gate(), stood_s=2 * DAY)
    assert told.verdict == "wait" and told.failures[:2] == (0.0, 0.0)
    assert told.why == (f"failures: 0.0%, but {told.failures[2]:.1%} is not excluded",)


def test_the_bound_of_a_rate_holds_at_all_looks_together(rng):
    alpha, runs, missed = 0.05, 300, 0
    for _ in range(runs):
        events = np.cumsum(rng.random(600) < 0.1)
        bounds = (rate(int(events[n - 1]), n, alpha) for n in range(10, 601, 10))
        missed += any(not low <= 0.1 <= high for _, low, high in bounds)
    # at the bound, more than 26 of 300 would be seen once in 300 times
    assert missed <= 26
    assert rate(0, 20, alpha)[1] == 0.0 and rate(20, 20, alpha)[2] == 1.0


def test_what_cannot_be_is_counted_and_not_used_and_what_is_forged_is_bounded(rng):
    honest = reports(rng, 200)
    forged = Reports(
        np.r_[honest.failed, True, True, True],
        np.r_[honest.quality, -1.0, np.inf, 7.0],
        {"cpu_s": np.r_[honest.costs["cpu_s"], 1e300, -1.0, np.inf]},
    )
    told, plain = (summed(group, honest, BOUNDS).treatment for group in (forged, honest))
    assert told.absurd == 4 and told.rated == 201
    assert told.quality == pytest.approx(plain.quality - MOST_QUALITY)


def test_one_forger_in_a_thousand_does_not_stop_a_harmless_release(rng):
    treated = reports(rng, 10_000)
    treated.quality[::1000], treated.costs["cpu_s"][::1000], treated.failed[::1000] = -1.0, 1e12, True
    told = judge(summed(treated, reports(rng, 10_000), BOUNDS), ONE_PERCENT, Gate(), stood_s=2 * DAY)
    assert told.verdict != "stop"


def test_without_reports_a_gate_waits():
    assert judge(Evidence(), ONE_PERCENT, Gate(), stood_s=0.0).verdict == "wait"


@pytest.mark.parametrize(
    "fields",
    [
        {"alpha": 0.0},
        {"quality_margin": 0.0},
        {"failure_share": 0.0},
        {"sizes": 1},
        {"events_factor": 0.5},
        {"failure_bound": 2.0},
        {"silence_s": 60.0},
    ],
)
def test_a_gate_that_cannot_judge_is_refused(fields):
    with pytest.raises(InputError, match="a gate"):
        Gate(**fields)
