"""`coda bench fleet`: the made-up devices behave as they are said to. The whole benchmark takes minutes."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import fleet_simulation as simulation
from benchmarks.fleet import curves, reached
from cloud.rollout import Gate

COSTS = simulation.Costs(profile=20, pull=1000, poll=400, push=100)


@pytest.fixture
def fleet(rng) -> simulation.Fleet:
    return simulation.fleet(20_000, "salt", rng)


def test_sessions_come_at_each_devices_own_rate_and_hardly_at_night(fleet, rng):
    counted = sum(fleet.online(hour * 3600.0, 3600.0, rng).astype(int) for hour in range(24 * 10))
    busy = fleet.rate > 4
    assert counted[busy].mean() / 10 < fleet.rate[busy].mean()  # two sessions within an hour are one here
    assert counted[busy].mean() > 4 * counted[fleet.rate < 1].mean()
    home = fleet.take(fleet.zone == 0)
    night, evening = (home.online(hour * 3600.0, 3600.0, rng).mean() for hour in (8.0, 20.0))
    assert evening > 5 * night


def test_riding_on_requests_covers_sooner_than_asking_and_for_fewer_requests(fleet, rng):
    told = simulation.coverage(fleet, COSTS, 3.0, 600.0, rng, lambda share: None)
    riding, polling, pushed = (told[name] for name in ("push-then-pull", "polling", "push"))
    assert riding["t50"] <= polling["t50"]
    assert riding["requests"] < polling["requests"] < pushed["requests"]
    assert riding["within_two_sessions"] > 0.99 and riding["covered"] > pushed["covered"]
    assert riding["curve"] == sorted(riding["curve"]) and 0 < riding["curve"][0] < riding["curve"][-1] < 1


def test_a_bad_release_is_stopped_early_and_a_harmless_one_reaches_everyone(rng):
    fleet = simulation.fleet(300_000, "salt", rng)
    bad = simulation.release(fleet, simulation.KINDS["crashing"], Gate(), rng)
    assert bad.state == "stopped" and bad.reached < 0.05 and "failures" in bad.why
    good = simulation.release(fleet, simulation.Kind(quality=0.01), Gate(), rng)
    assert good.state == "promoted to everyone" and good.rung == "100 %"
    told = simulation.summary([bad, good])
    assert told["stopped_share"] == 0.5 and told["reached_share_most"] == good.reached


def test_a_share_has_an_interval_even_where_nothing_was_seen():
    low, high = simulation.interval(0, 300)
    assert low == 0 and 0.005 < high < 0.02
    assert np.allclose(np.add(*simulation.interval(150, 300)), 1)


def test_a_release_that_kills_devices_silently_is_stopped_once_their_time_is_over(rng):
    fleet = simulation.fleet(300_000, "salt", rng)
    ran = simulation.release(fleet, simulation.Kind(dying=0.3), Gate(), rng)
    assert ran.state == "stopped" and ran.rung == "1 %" and ran.days >= 2 and ran.why.startswith("silent: ")


def test_who_was_of_the_reference_keeps_its_say_when_groups_grow(rng):
    fleet = simulation.fleet(20_000, "salt", rng)
    taken, gate = simulation._Taken(fleet, 0.05, simulation.Kind()), Gate()
    for hour in range(48):
        taken.sessions(hour * 3600.0, 3600.0, gate, rng)
    told = taken.evidence(48 * 3600.0, gate)
    more = taken.grown(fleet, 0.2, simulation.Kind())
    assert len(more.control.fleet) > 3 * len(taken.control.fleet) and len(more.treatment.fleet) > 3800
    assert more.control.rated.sum() > taken.control.rated.sum() > 0 == more.treatment.said[taken.treatment.stop :].sum()
    for hour in range(48, 96):
        more.sessions(hour * 3600.0, 3600.0, gate, rng)
    later = more.evidence(96 * 3600.0, gate)
    assert later.reference.rated >= told.reference.rated and later.control.devices > told.control.devices
    everyone = len(more.control.fleet) + len(more.reference.fleet)
    assert later.control.rated + later.reference.rated <= everyone, "each is counted once"


def test_the_pictures_have_a_line_a_strategy_and_two_bars_a_bad_release():
    bars = reached({"slower": {"reached_share_p95": 0.004, "reached_share_most": 0.005}})
    assert "slower, 95 % of runs" in bars and "0.50%" in bars
    drawn = curves({"a": [0.1, 0.5], "b": [0.2, 0.9]}, 2.0)
    assert drawn.count("<polyline") == 2 and ">a</text>" in drawn
