"""Rollouts in a catalog, over SQLite and over PostgreSQL alike: what is kept, what is refused, and who wins a race."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import pytest

from cloud.catalog import AuditLine, Voice
from cloud.rollout import LADDER, Course, Gate, Rollout, Rule, planned
from cloud.rollout.course import Judgement
from cloud.rollout.evidence import Evidence
from cloud.rollout.gates import Finding
from device_runtime.errors import InputError
from device_runtime.messages import BundleRef, Profile
from tests.cloud.catalog.test_contract import KEY, report

NAMED = frozenset({"a", "b", "c"})


def line(action="create", subject="next", **more):
    return AuditLine(
        **{"at": 1.0, "who": "me", "subject": subject, "action": action, "rung": "", "state": "", "why": "w"} | more
    )


def course(name="next", bundle=3, **rule):
    return Course(
        rollout=Rollout(name=name, bundle=bundle, previous=0, salt="s" * 16, named=NAMED),
        rule=Rule(name=name, release=name, **rule),
        gate=Gate(alpha=0.02),
        automatic=True,
        created=1.0,
    )


def add(catalog, made):
    return catalog.rollouts.add(lambda policy: planned(policy, made), line(subject=made.name))


def act(catalog, name, action):
    def acted(before):
        after = before.rollout.acted(action, at=2.0, who="me", why="because")
        return msgspec.structs.replace(before, rollout=after), line(action, name)

    return catalog.rollouts.change(name, acted)


@pytest.fixture
def stocked(catalog):
    """Bundle 2 is everyone's, 3 and 4 are staged."""
    for version in (2, 3, 4):
        ref = BundleRef(version=version, manifest="00" * 32, size=1, key="k", signature="s")
        catalog.release(f"bundle {version}", ref, now=float(version), staged=version > 2)
    return catalog


def test_a_staged_bundle_is_nobodys_until_it_is_rolled_out(stocked):
    assert stocked.current().version == 2
    assert [found.staged for found in stocked.releases()] == [True, True, False]
    assert stocked.bundle(3).version == 3 and stocked.bundle(9) is None


def test_a_course_is_kept_whole(stocked):
    added = add(stocked, course(os=frozenset({"android"}), app_from="2.0"))
    assert added.rollout.previous == 2 and added.rollout.ladder == LADDER
    assert stocked.rollouts.course("next") == added == stocked.rollouts.policy().courses["next"]
    finding = Finding(verdict="wait", why=("few",), quality=(0.1, 0.0, 0.2), evidence={"failures": 1.0})
    stocked.rollouts.note_judgement("next", Judgement(finding=finding, evidence=Evidence()), at=7.0)
    kept = stocked.rollouts.course("next")
    assert kept.judgement.finding == finding and kept.judged == 7.0
    assert stocked.rollouts.course("other") is None


def test_every_change_is_in_the_audit_log_newest_first(stocked):
    add(stocked, course())
    act(stocked, "next", "promote")
    act(stocked, "next", "pause")
    stocked.rollouts.pin("d", 2, line("pin", "device d"))
    assert [(found.subject, found.action) for found in stocked.rollouts.audit()] == [
        ("device d", "pin"), ("next", "pause"), ("next", "promote"), ("next", "create"),
    ]  # fmt: skip
    assert [found.action for found in stocked.rollouts.audit("next", limit=1)] == ["pause"]


def test_what_is_refused_changes_nothing(stocked):
    add(stocked, course())
    with pytest.raises(InputError, match="to resume it is not possible"):
        act(stocked, "next", "resume")
    with pytest.raises(InputError, match="means the same devices"):
        add(stocked, course("other", bundle=4))
    with pytest.raises(InputError, match="no release 'nothing'"):
        act(stocked, "nothing", "pause")
    with pytest.raises(InputError, match="names are not used twice"):
        add(stocked, course(bundle=4, os=frozenset({"linux"})))
    assert len(stocked.rollouts.audit()) == 1 and len(stocked.rollouts.courses()) == 1


def test_what_is_complete_for_everyone_is_the_current_release_until_it_is_rolled_back(stocked):
    add(stocked, course())
    for _ in LADDER:
        act(stocked, "next", "promote")
    assert stocked.rollouts.course("next").rollout.state == "complete" and stocked.current().version == 3
    act(stocked, "next", "stop")
    assert stocked.current().version == 2
    later = add(stocked, course("later", bundle=4))
    assert later.rollout.previous == 2, "not the one that was rolled back"
    assert set(stocked.rollouts.policy().courses) == {"later"}, "the ended one has made room"
    assert stocked.rollouts.course("next").retired


def test_of_many_that_act_at_once_one_does(stocked, open_catalog):
    add(stocked, course())
    others = [open_catalog() for _ in range(4)]

    def stop(catalog):
        def once(before):
            if before.rollout.state != "running":
                return None
            after = before.rollout.acted("stop", at=2.0, who="gate", why="it crashes")
            return msgspec.structs.replace(before, rollout=after), line("stop", who="gate")

        return catalog.rollouts.change("next", once)

    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(stop, others))
    assert sum(one is not None for one in done) == 1
    assert [found.action for found in stocked.rollouts.audit("next")] == ["stop", "create"]


def test_of_two_that_add_contradicting_releases_at_once_one_is_told(stocked, open_catalog):
    others = [open_catalog() for _ in range(4)]

    def try_to(number):
        try:
            return bool(add(others[number], course(f"r{number}", os=frozenset({"android"}))))
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(4) as threads:
        told = list(threads.map(try_to, range(4)))
    assert told.count(True) == 1
    assert all("means the same devices" in words for words in told if words is not True)


def test_pins_and_cohorts_are_of_single_devices(stocked):
    stocked.rollouts.pin("d", 2, line("pin", "device d"))
    stocked.rollouts.pin("d", 3, line("pin", "device d"))
    assert stocked.rollouts.policy().pins == {"d": 3}
    stocked.rollouts.pin("d", 0, line("unpin", "device d"))
    assert stocked.rollouts.policy().pins == {}
    stocked.rollouts.set_cohort(["d", "e"], "beta", True)
    stocked.rollouts.set_cohort(["d"], "beta", True)
    stocked.rollouts.set_cohort(["e"], "beta", False)
    assert stocked.rollouts.cohorts_of("d") == {"beta"} and stocked.rollouts.cohorts() == {"beta": 1}


def voice(device, number, arm="treatment", late=False, **more):
    plain = {"received": float(number), "failed": False, "quality": None, "costs": {"cpu_s": float(number)}}
    return Voice(rollout="next", device=device, round=f"r{number}", arm=arm, late=late, **plain | more)


def test_a_device_has_one_voice_however_much_it_sends(stocked):
    for number in range(1, 8):
        stocked.report("loud", report(f"r{number}"), float(number), voice("loud", number, failed=number > 1))
    stocked.report("quiet", report("r9"), 9.0, voice("quiet", 9, arm="control", quality=0.25))
    treatment, control, _ = stocked.rollouts.evidence("next")
    assert treatment.failed.tolist() == [False] and treatment.costs["cpu_s"].tolist() == [1.0]
    assert np.isnan(treatment.quality).all() and control.quality.tolist() == [0.25]
    assert np.isnan(control.costs["bytes"]).all()
    heard = stocked.rollouts.heard("next")
    assert (heard["treatment"].devices, heard["treatment"].further) == (1, 6)


def test_one_of_the_reference_speaks_once_more_when_it_is_the_controls_but_its_quality_stays(stocked):
    stocked.report("wide", report("r1"), 1.0, voice("wide", 1, arm="reference", quality=0.25))
    stocked.report("wide", report("r2"), 2.0, voice("wide", 2, arm="reference", failed=True, quality=0.5))
    assert stocked.rollouts.evidence("next")[2].quality.tolist() == [0.25]
    stocked.report("wide", report("r3"), 3.0, voice("wide", 3, arm="control", failed=True, quality=0.75))
    stocked.report("wide", report("r4"), 4.0, voice("wide", 4, arm="control"))
    _, control, reference = stocked.rollouts.evidence("next")
    assert len(reference) == 0 and control.failed.tolist() == [True] and control.quality.tolist() == [0.25]
    assert stocked.rollouts.heard("next")["control"].further == 2


def test_a_device_that_is_not_heard_again_within_the_window_stays_silent(catalog):
    gate = Gate(silence_s=1000.0, silence_from_s=100.0)
    devices = [catalog.enrol(f"{number:064x}", {}, 1.0) for number in range(4)]
    for device, arm in zip(devices, ("treatment", "treatment", "control", "treatment"), strict=True):
        catalog.rollouts.watch("next", device, arm, 5000.0)
    catalog.rollouts.watch("next", devices[0], "treatment", 5900.0)  # it is watched already
    catalog.use_nonce(devices[0], "a" * 16, 5050.0, 60.0)  # still of the first session
    catalog.use_nonce(devices[1], "b" * 16, 5500.0, 60.0)
    assert [len(group) for group in catalog.rollouts.watched("next", 5999.0, gate)] == [0, 0]
    treatment, control = catalog.rollouts.watched("next", 6000.0, gate)
    assert sorted(treatment.silent.tolist()) == [False, True, True] and control.silent.tolist() == [True]
    catalog.use_nonce(devices[0], "c" * 16, 7000.0, 60.0)
    again = catalog.rollouts.watched("next", 8000.0, gate)[0]
    assert again.silent.tolist() == treatment.silent.tolist(), "what was found when its window ended stays"


def test_a_round_that_is_reported_twice_is_heard_once(stocked):
    assert stocked.report("d", report("r1"), 1.0, voice("d", 1))
    assert stocked.report("d", report("r1"), 2.0, voice("d", 1, failed=True)) is None
    heard = stocked.rollouts.heard("next")["treatment"]
    assert (heard.devices, heard.further, heard.late) == (1, 0, 0)


def test_late_reports_are_marked_and_keep_nobody_from_speaking_in_time(stocked):
    stocked.report("d", report("r1"), 1.0, voice("d", 1, late=True, failed=True))
    assert len(stocked.rollouts.evidence("next")[0]) == 0
    assert stocked.rollouts.heard("next")["treatment"].late_only == 1
    stocked.report("d", report("r2"), 2.0, voice("d", 2))
    stocked.report("d", report("r3"), 3.0, voice("d", 3, late=True, failed=True))
    assert stocked.rollouts.evidence("next")[0].failed.tolist() == [False]
    heard = stocked.rollouts.heard("next")["treatment"]
    assert (heard.devices, heard.late_only, heard.late) == (1, 0, 2)


def test_reports_that_come_at_once_are_one_voice(stocked, open_catalog):
    others = [open_catalog() for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        for job in [
            threads.submit(others[n % 4].report, "d", report(f"r{n}"), float(n), voice("d", n)) for n in range(20)
        ]:
            job.result()
    heard = stocked.rollouts.heard("next")["treatment"]
    assert (heard.devices, heard.further) == (1, 19)


def test_what_a_device_tells_of_itself_is_kept(catalog):
    device = catalog.enrol(KEY, {"system": "Linux 6.1"}, now=1.0)
    assert catalog.device(device).os == "linux" and catalog.device(device).profile == Profile()
    told = Profile(app_version="2.1", locale="de-AT", cohorts=("beta",))
    catalog.note_profile(device, told)
    assert catalog.device(device).profile == told


def test_what_served_a_device_before_is_looked_up(catalog):
    verdict = {"activate": True, "reason": "", "samples": 5, "loss_before": 1, "loss_after": 1}
    for number, (outcome, before, after) in enumerate([("activated", 0.5, 0.6), ("kept", 0.61, 0.4)]):
        made = report(f"r{number}", outcome=outcome, verdict=verdict | {"auc_before": before, "auc_after": after})
        catalog.report("d", msgspec.convert(msgspec.to_builtins(made), type(made)), float(number))
    catalog.report("d", report("r9"), 9.0)
    assert catalog.served_auc("d", 1) == 0.61 and catalog.served_auc("d", 2) is None
    assert [found.round for found in catalog.reports_of(1, before=9.0, limit=9)] == ["r1", "r0"]


def test_the_publishers_documents_are_kept_by_version(catalog):
    catalog.rollouts.add_document("root", 1, b"one", now=1.0)
    catalog.rollouts.add_document("root", 2, b"two", now=2.0)
    assert catalog.rollouts.documents("root") == {1: b"one", 2: b"two"} and catalog.rollouts.documents("bundles") == {}
