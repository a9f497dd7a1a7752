"""What a catalog promises, over SQLite and over PostgreSQL alike."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from cloud.catalog import device_class
from device_runtime.errors import InputError, TrustError
from device_runtime.identity import device_id
from device_runtime.messages import BundleRef, PhaseOverhead, RoundReport, Verdict

KEY, NEW, OTHER = "ab" * 32, "cd" * 32, "ef" * 32
DAY = 86_400.0


def report(name, bundle=1, **changes):
    plain = {
        "round": name,
        "bundle": bundle,
        "engine": "onnx",
        "outcome": "kept",
        "local": 9,
        "candidates": 5,
        "kept": 1,
        "verdict": None,
        "phases": [],
    }
    return RoundReport(**plain | changes)


def test_enrolling_twice_is_one_device_and_revoking_it_lasts(catalog):
    first = catalog.enrol(KEY, {"cores": 4}, now=1.0)
    assert first == catalog.enrol(KEY, {"cores": 8}, now=2.0) == device_id(KEY)
    assert catalog.device(first).revoked is False
    assert catalog.revoke(first) and not catalog.revoke("0" * 32)
    catalog.enrol(KEY, {}, now=3.0)
    assert catalog.device(first).revoked is True
    assert catalog.device("0" * 32) is None


def test_devices_come_in_pages_with_what_is_known_of_them(catalog):
    keys = [f"{number:02x}" * 32 for number in range(5)]
    ids = sorted(
        catalog.enrol(key, {"machine": "aarch64", "memory_mib": 512}, now=float(i)) for i, key in enumerate(keys)
    )
    first = catalog.devices(limit=3)
    assert [device.id for device in first + catalog.devices(after=first[-1].id, limit=3)] == ids
    assert {device.device_class for device in first} == {"arm64, up to 1 GiB"}
    assert (catalog.count_devices(), catalog.count_devices(seen_since=3.0)) == (5, 2)


def test_a_device_of_rotated_key_keeps_its_id_and_its_old_key_is_no_good(catalog):
    device = catalog.enrol(KEY, {}, now=1.0)
    assert catalog.ask_for_rotation(device) == 1 and catalog.device(device).rotation_due
    assert catalog.rotate(device, KEY, NEW, now=2.0)
    found = catalog.device(device)
    assert (found.public_key, found.previous_key, found.rotation_due) == (NEW, KEY, False)
    assert catalog.rotate(device, KEY, NEW, now=3.0), "the answer was lost: once more"
    assert not catalog.rotate(device, KEY, OTHER, now=3.0), "who has only the old key cannot choose another"
    assert catalog.renew(device, NEW, {"cores": 2}, now=4.0)
    with pytest.raises(TrustError, match="replaced by a newer one"):
        catalog.enrol(KEY, {}, now=5.0)
    assert catalog.device(device).public_key == NEW


def test_every_device_that_is_not_revoked_can_be_asked_for_a_new_key(catalog):
    ids = [catalog.enrol(key, {}, now=1.0) for key in (KEY, NEW, OTHER)]
    catalog.revoke(ids[0])
    assert catalog.ask_for_rotation(None) == 2
    assert [catalog.device(device).rotation_due for device in ids] == [False, True, True]


def test_a_nonce_is_good_once_within_its_window(catalog):
    assert catalog.use_nonce("d", "n", now=100, window_s=10)
    assert not catalog.use_nonce("d", "n", now=105, window_s=10)
    assert catalog.use_nonce("other", "n", now=105, window_s=10)
    assert catalog.use_nonce("d", "n", now=120, window_s=10), "forgotten once the clock check refuses it anyway"


def test_a_device_is_seen_at_most_once_a_minute(catalog):
    device = catalog.enrol(KEY, {}, now=100.0)
    for at, expected in [(120.0, 100.0), (161.0, 161.0), (170.0, 161.0)]:
        assert catalog.use_nonce(device, f"n{at}", at, 10, seen=catalog.device(device).seen)
        assert catalog.device(device).seen == expected


def test_processes_share_devices_and_nonces(open_catalog):
    both = open_catalog(), open_catalog()
    with ThreadPoolExecutor(8) as threads:
        enrolled = [threads.submit(both[i % 2].enrol, KEY, {}, float(i)) for i in range(40)]
        assert {job.result() for job in enrolled} == {device_id(KEY)}
        used = [threads.submit(both[i % 2].use_nonce, "d", f"n{i // 4}", 1.0, 10.0) for i in range(40)]
        assert sum(job.result() for job in used) == 10, "each nonce was good for one of its four requests"


def test_the_newest_release_is_current_and_a_version_is_released_once(catalog):
    assert catalog.current() is None
    for version in (1, 2):
        ref = BundleRef(version=version, manifest="00" * 32, size=1, key="k", signature="s")
        catalog.release(f"release {version}", ref, now=float(version))
    assert catalog.current().version == 2
    with pytest.raises(InputError, match="version 2 is out already"):
        catalog.release("again", ref, now=3.0)
    assert [release.name for release in catalog.releases()] == ["release 2", "release 1"]


def test_a_report_counts_once_and_the_newest_come_first(catalog):
    assert catalog.report("d", report("r1"), now=1.0)
    assert not catalog.report("d", report("r1", bundle=9), now=2.0)
    assert catalog.report("other", report("r1"), now=3.0)
    assert [(device, kept.bundle) for device, kept in catalog.reports()] == [("d", 1), ("other", 1)]
    assert [(row.device, row.received) for row in catalog.rounds(limit=9)] == [("other", 3.0), ("d", 1.0)]
    assert len(catalog.rounds(limit=1)) == 1


def test_a_report_in_a_line_says_what_the_round_cost_and_brought(catalog):
    device = catalog.enrol(KEY, {"machine": "x86_64", "memory_mib": 8192}, now=1.0)
    cost = {"cpu_system_s": 0.5, "wall_s": 3.0, "peak_source": "phase", "bytes_stored": 1}
    phases = [
        PhaseOverhead(phase="pull", cpu_user_s=1.0, peak_mib=50.0, bytes_up=10, bytes_down=100, **cost),
        PhaseOverhead(phase="tune", cpu_user_s=2.0, peak_mib=80.0, bytes_up=1 << 62, bytes_down=0, **cost),
    ]
    verdict = Verdict(activate=True, reason="", samples=5, loss_before=1, loss_after=0.5, auc_before=0.6, auc_after=0.7)
    sent = report("r", outcome="a word of tomorrow", candidates=1 << 40, verdict=verdict, phases=phases)
    assert catalog.report(device, sent, now=2.0)
    row = catalog.rounds(limit=1)[0]
    assert (row.cpu_s, row.peak_mib, row.bytes_down, row.device_class) == (4.0, 80.0, 100, "x86-64, more than 4 GiB")
    assert (row.auc_before, row.auc_after, row.outcome) == (0.6, 0.7, "other")
    assert row.bytes_up == 1 << 62 and row.candidates == (1 << 31) - 1, "absurd figures are cut, not refused"
    assert catalog.reports()[0][1] == sent


def test_quotas_hold_per_device_and_in_total_and_begin_anew_each_day(catalog):
    take = lambda device, samples, now=0.0: catalog.take_quota(device, samples, now, per_device=100, total=150)  # noqa: E731
    assert take("a", 90) == ""
    assert take("a", 20) == "device"
    assert take("b", 70) == "total"
    assert take("a", 10) == "" and take("b", 50) == "", "what was refused was not counted"
    assert catalog.contributors_today(now=0.0) == (2, 150, 100)
    catalog.return_quota("b", 50, now=0.0)
    assert take("c", 50) == ""
    assert take("a", 90, now=DAY) == ""
    assert catalog.contributors_today(now=DAY) == (1, 90, 90)


def test_a_flood_from_many_processes_gets_no_more_than_the_quota(open_catalog):
    both = open_catalog(), open_catalog()
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(both[i % 2].take_quota, f"d{i % 3}", 10, 0.0, 60, 100) for i in range(40)]
        assert sum(job.result() == "" for job in asked) == 10
    assert both[0].contributors_today(0.0)[1] == 100


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ({"machine": "aarch64", "memory_mib": 1024}, "arm64, up to 1 GiB"),
        ({"machine": "AMD64", "memory_mib": 4000}, "x86-64, up to 4 GiB"),
        ({"machine": "riscv64", "memory_mib": 0}, "other, unknown"),
        ({"machine": 7, "memory_mib": "much"}, "other, unknown"),
        ({}, "other, unknown"),
    ],
)
def test_devices_fall_into_classes(capability, expected):
    assert device_class(capability) == expected
