"""Releases at work, on a catalog of their own: who gets what, what reports come to, and who may not do what."""

from __future__ import annotations

import shutil
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from cloud.catalog import Catalog
from cloud.releases import Releases
from cloud.rollout import LADDER, Gate, Rule
from device_runtime.errors import InputError
from device_runtime.messages import Profile
from tests.cloud.releases import LENIENT, QUICK, Clock, Fleet, enrolled, ref, stocked, told
from tests.conftest import SEED

ME = {"who": "me", "why": "because"}


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A catalog whose devices have each reported a round with the bundle that everyone has."""
    path = tmp_path_factory.mktemp("releases") / "catalog.db"
    catalog = Catalog(f"sqlite:///{path}")
    stocked(catalog)
    enrolled(catalog, 240)
    Fleet(catalog, np.random.default_rng(SEED), Clock(900_000.0)).round()
    catalog.close()
    return path


@pytest.fixture
def catalog(reported, tmp_path):
    shutil.copy(reported, tmp_path / "catalog.db")
    made = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    yield made
    made.close()


@pytest.fixture
def fleet(catalog, clock, rng):
    return Fleet(catalog, rng, clock)


def create(fleet, name="next", bundle=3, **more):
    return fleet.releases.create(name, bundle, **ME | {"ladder": QUICK, "gate": LENIENT} | more)


def begin(fleet, **more):
    """A release on its first rung with a share."""
    create(fleet, **more)
    return fleet.releases.act("next", "promote", **ME)


def test_a_quarter_tries_a_release_and_as_many_are_its_control(fleet):
    begin(fleet)
    runs = np.array(fleet.runs())
    assert set(runs) == {2, 3} and 40 <= (runs == 3).sum() <= 80
    groups, exact = fleet.releases.sizes()
    assert exact and groups["next"]["treatment"] == (runs == 3).sum() and 40 <= groups["next"]["control"] <= 80


def test_a_good_release_climbs_by_itself_to_everyone(fleet, clock):
    begin(fleet, automatic=True)
    fleet.round()
    assert fleet.releases.judge_all() == [], "it has not stood there long enough"
    clock.now += 700
    assert [line.action for line in fleet.releases.judge_all()] == ["promote"]
    assert [line.state for line in fleet.releases.judge_all()] == ["complete"]
    assert set(fleet.runs()) == {3} and fleet.catalog.current().version == 3


def test_one_that_is_not_automatic_waits_for_an_operator(fleet, clock):
    begin(fleet)
    fleet.round()
    with pytest.raises(InputError, match=r"not climb yet: 0\.0 of 0\.167 hours"):
        fleet.releases.act("next", "promote", **ME)
    clock.now += 700
    assert fleet.releases.judge_all() == []
    assert fleet.releases.act("next", "promote", **ME).rollout.standing.share == 1


def test_an_override_climbs_past_a_wait_and_says_so_but_never_past_a_no(fleet):
    begin(fleet)
    fleet.failing[3] = 0.9
    assert fleet.releases.act("next", "promote", **ME, override=True).rollout.standing.share == 1
    assert "the gate would wait" in fleet.catalog.rollouts.audit("next")[0].why
    fleet.round()
    with pytest.raises(InputError, match="the gate speaks against next"):
        fleet.releases.act("next", "promote", **ME, override=True)


@pytest.mark.parametrize(
    ("harm", "words"),
    [({"failing": {3: 0.5}}, "failures"), ({"cpu_s": {3: 1.2}}, "cpu_s"), ({"auc": {3: 0.5}}, "quality")],
)
def test_a_bad_release_is_stopped_and_rolled_back_and_the_log_says_why(fleet, harm, words):
    begin(fleet)
    for name, value in harm.items():
        setattr(fleet, name, value)
    fleet.round()
    [line] = fleet.releases.judge_all()
    assert (line.who, line.action, line.state) == ("gate", "stop", "stopped") and words in line.why
    assert set(fleet.runs()) == {2}
    assert fleet.releases.judge_all() == [], "once"


def test_devices_that_die_silently_stop_a_release(fleet, clock):
    begin(fleet, gate=msgspec.structs.replace(LENIENT, silence_s=86_400.0))
    dead = []
    for hours in range(0, 48, 4):  # sessions, in each of which a device makes a signed request
        for number, one in enumerate(fleet.ids):
            if one not in dead:
                device = fleet.catalog.device(one)
                bundle = fleet.releases.meet(fleet.releases.facts(device, 2)).bundle
                fleet.catalog.use_nonce(one, f"{hours:016x}", clock(), 60.0)
                if bundle == 3 and number % 2:
                    dead.append(one)
        clock.now += 4 * 3600
    [line] = fleet.releases.judge_all()
    assert line.action == "stop" and line.why.startswith("silent: ")
    shown = fleet.releases.shown(fleet.releases.course("next"))["judgement"]["evidence"]
    assert shown["control"]["silent"] == 0 < shown["treatment"]["silent"] <= shown["treatment"]["watched"]


def test_of_several_workers_one_stops_it(fleet, clock):
    begin(fleet)
    fleet.failing[3] = 0.9
    fleet.round()
    workers = [Releases(fleet.catalog, clock) for _ in range(3)]
    courses = [worker.policy().courses["next"] for worker in workers]
    assert all(course.live for course in courses), "each has seen it running"
    assert sum(len(worker.judge_all()) for worker in workers) == 1
    assert [line.action for line in fleet.catalog.rollouts.audit("next")] == ["stop", "promote", "create"]


def test_a_gate_that_another_worker_has_just_asked_is_not_asked_again(fleet, clock):
    begin(fleet)
    fleet.releases.judge_all()
    before = fleet.catalog.rollouts.course("next").judged
    clock.now += 1
    Releases(fleet.catalog, clock).judge_all(every_s=2.5)
    assert fleet.catalog.rollouts.course("next").judged == before
    clock.now += 2
    Releases(fleet.catalog, clock).judge_all(every_s=2.5)
    assert fleet.catalog.rollouts.course("next").judged > before


def test_what_a_new_bundle_costs_once_is_not_held_against_it(fleet):
    course = begin(fleet)
    assert 0.4 < course.bounds["cpu_s"] < 0.8, "pull and self-test took 18 s"
    assert course.bounds["bytes"] == 2600


def test_without_reports_of_the_previous_bundle_costs_are_not_compared(tmp_path, clock, rng):
    catalog = Catalog(f"sqlite:///{tmp_path / 'silent.db'}")
    stocked(catalog)
    fleet = Fleet(catalog, rng, clock)
    create(fleet)
    assert fleet.releases.act("next", "promote", **ME).bounds == {}
    catalog.close()


def voice_of(fleet, device, report):
    return fleet.releases.voice(fleet.catalog.device(device), report, fleet.clock())


def of_group(fleet, group):
    for one in fleet.ids:
        if fleet.releases.decide(fleet.catalog.device(one), 0).group == group:
            return one
    raise AssertionError(group)


def test_a_report_speaks_for_the_bundle_that_its_device_was_to_run(fleet):
    begin(fleet)
    treated, control, rest = (of_group(fleet, group) for group in ("treatment", "control", "rest"))
    assert voice_of(fleet, treated, told("r", 3)).arm == "treatment"
    assert voice_of(fleet, treated, told("r", 2)) is None, "a round before it pulled"
    assert voice_of(fleet, control, told("r", 2)).arm == "control"
    assert voice_of(fleet, control, told("r", 3)) is None, "somebody who forges"
    assert voice_of(fleet, rest, told("r", 2)) is None
    failed = voice_of(fleet, treated, told("r", 0, "failed"))
    assert failed.arm == "treatment" and failed.failed, "it could not even open the bundle"


def test_reports_of_rounds_before_the_release_and_after_its_end_are_late(fleet, clock):
    begin(fleet)
    treated, control = (of_group(fleet, group) for group in ("treatment", "control"))
    clock.now += 100
    assert not voice_of(fleet, control, told("r", 2, age_s=50)).late
    assert voice_of(fleet, control, told("r", 2, age_s=1000)).late, "it lay in the outbox of a device that was offline"
    fleet.releases.act("next", "stop", **ME)
    after = voice_of(fleet, treated, told("r", 3))
    assert after.late and after.arm == "treatment"


def test_quality_is_paired_with_what_served_the_same_device_before(fleet):
    begin(fleet)
    treated = of_group(fleet, "treatment")
    fleet.catalog.report(treated, told("before", 2, auc=0.7), now=fleet.clock() + 1)
    assert voice_of(fleet, treated, told("r", 3, auc=0.65)).quality == pytest.approx(-0.05)
    assert voice_of(fleet, treated, told("r", 3, "failed")).quality is None
    same_rows = told("r", 3, auc=0.65, auc_previous=0.6)
    assert voice_of(fleet, treated, same_rows).quality == pytest.approx(0.05), "on the same held-out samples: better"


def test_one_loud_device_cannot_stop_a_release(fleet):
    begin(fleet)
    fleet.round()
    loud = of_group(fleet, "treatment")
    device = fleet.catalog.device(loud)
    for number in range(200):
        report = told(f"forged {number}", 3, "failed", cpu_s=1e9, age_s=-1e9)
        now = fleet.clock()
        fleet.catalog.report(loud, report, now, fleet.releases.voice(device, report, now))
    assert fleet.releases.judge_all() == []
    assert fleet.catalog.rollouts.heard("next")["treatment"].further == 200


def test_a_pause_reaches_nobody_new_and_the_gate_still_watches(fleet, clock):
    begin(fleet, automatic=True)
    fleet.failing[3] = 0.9
    fleet.round()
    fleet.releases.act("next", "pause", **ME)
    treated = fleet.catalog.device(of_group(fleet, "control"))
    assert fleet.releases.decide(treated, 2).bundle == 2
    assert [line.action for line in fleet.releases.judge_all()] == ["stop"]


# -- rules --------------------------------------------------------------------------------------------------------


def test_the_most_specific_rule_decides_and_explain_says_which(fleet, catalog):
    device = fleet.ids[0]
    create(fleet, "android", 3, rule=Rule(name="x", release="x", os=frozenset({"android"})))
    create(fleet, "beta", 4, rule=Rule(name="x", release="x", cohorts=frozenset({"beta"})), ladder=QUICK[2:])
    found = fleet.releases.explain(device)
    assert found.decision.bundle == 2 and found.facts.os == "linux"
    assert "the device is in none of the cohorts beta" in " ".join(found.decision.why)
    catalog.rollouts.set_cohort([device], "beta", True)
    found = fleet.releases.explain(device)
    assert (found.decision.bundle, found.decision.rule) == (4, "beta")
    fleet.releases.pin(device, 2, **ME)
    assert (fleet.releases.explain(device).decision.bundle, fleet.releases.explain(device).decision.group) == (
        2,
        "pinned",
    )
    fleet.releases.pin(device, 0, **ME)
    assert fleet.releases.explain(device).decision.bundle == 4
    assert [line.action for line in catalog.rollouts.audit(f"device {device}")] == ["unpin", "pin to 2"]


def test_what_a_device_tells_of_itself_decides_too(fleet, catalog):
    create(fleet, rule=Rule(name="x", release="x", app_from="2.0", locale=frozenset({"de"})), ladder=QUICK[2:])
    device = replace(catalog.device(fleet.ids[0]), profile=Profile(app_version="2.1", locale="de-AT"))
    assert fleet.releases.decide(device, 2).bundle == 3
    assert fleet.releases.decide(replace(device, profile=Profile(app_version="1.9", locale="de-AT")), 2).bundle == 2


def test_what_contradicts_is_refused_with_the_names_of_both(fleet):
    create(fleet, "linux", 3, rule=Rule(name="x", release="x", os=frozenset({"linux"})))
    with pytest.raises(InputError, match="rules 'linux' and 'onnx' are equally specific"):
        create(fleet, "onnx", 4, rule=Rule(name="x", release="x", engine=frozenset({"onnx"})))
    with pytest.raises(InputError, match="release linux is running and means the same devices"):
        create(fleet, "again", 4, rule=Rule(name="x", release="x", os=frozenset({"linux"})))
    assert create(
        fleet, "both", 4, rule=Rule(name="x", release="x", os=frozenset({"linux"}), engine=frozenset({"onnx"}))
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bundle": 9}, "bundle 9 was not taken in"),
        ({"bundle": 2}, "its devices have 2"),
        ({"name": "a/b"}, "no slash"),
        ({"name": ""}, "1 to 100"),
        ({"named": ["f" * 32]}, "no device"),
        ({"why": " "}, "say why"),
        ({"ladder": None}, "wants 3 devices"),
    ],
)
def test_a_release_that_cannot_be_is_refused(fleet, changes, words):
    if changes.get("ladder", 0) is None:
        changes = {"ladder": LADDER}
    with pytest.raises(InputError, match=words):
        create(fleet, **changes)
    assert fleet.catalog.rollouts.audit() == []


def test_a_ladder_is_not_edited_while_it_is_climbed(fleet):
    create(fleet)
    with pytest.raises(InputError, match="means the same devices"):
        create(fleet, "next", 3, ladder=QUICK[1:])
    with pytest.raises(InputError, match="means the same devices"):
        create(fleet, "shortcut", 4, ladder=QUICK[2:])
    assert fleet.releases.course("next").rollout.ladder == QUICK


def test_the_next_release_for_the_same_devices_starts_from_what_they_have(fleet, catalog):
    linux = {"rule": Rule(name="x", release="x", os=frozenset({"linux"})), "ladder": QUICK[2:]}
    create(fleet, "first", 3, **linux)
    fleet.releases.act("first", "promote", **ME)
    assert set(fleet.runs()) == {3} and catalog.current().version == 2, "only these devices have it"
    second = create(fleet, "second", 4, **linux)
    assert second.rollout.previous == 3
    fleet.releases.act("second", "stop", **ME)
    assert set(fleet.runs()) == {3}


def test_a_device_that_was_away_for_weeks_is_told_what_it_should_have_now(fleet, catalog):
    for name, bundle in (("first", 3), ("second", 4)):
        create(fleet, name, bundle, ladder=QUICK[2:])
        fleet.releases.act(name, "promote", **ME)
    assert fleet.releases.decide(catalog.device(fleet.ids[0]), 2).bundle == 4


def test_bundles_that_devices_may_get_are_known(fleet):
    fleet.releases.pin(fleet.ids[0], 4, **ME)
    create(fleet)
    assert fleet.releases.policy().bundles() == {2, 3, 4}


def test_a_catalog_without_a_release_has_the_one_that_the_server_came_up_with(tmp_path, clock):
    catalog = Catalog(f"sqlite:///{tmp_path / 'empty.db'}")
    releases = Releases(catalog, clock, base=7)
    assert releases.policy().base == 7
    catalog.release("later", ref(8), now=1.0)
    clock.now += 2
    assert releases.policy().base == releases.base == 8
    catalog.close()


def test_a_gate_of_ones_own_is_kept(fleet):
    create(fleet, gate=Gate(alpha=0.05))
    assert fleet.releases.course("next").gate.alpha == 0.05
