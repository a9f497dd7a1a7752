"""Gates: what stops a release, what makes it wait, and that looking often does not make them cry wolf."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cloud.rollout import LADDER, Evidence, Gate, Reports, judge, summed
from cloud.rollout.evidence import MOST_QUALITY
from cloud.rollout.gates import e_value, radius
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
    [{"alpha": 0.0}, {"quality_margin": 0.0}, {"failure_share": 0.0}, {"sizes": 1}, {"events_factor": 0.5}],
)
def test_a_gate_that_cannot_judge_is_refused(fields):
    with pytest.raises(InputError, match="a gate"):
        Gate(**fields)
