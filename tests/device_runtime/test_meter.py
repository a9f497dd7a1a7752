"""The meter against what the operating system tells this test itself. No wall time is asserted."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from device_runtime import __version__, meter
from device_runtime.counting import ByteCounter, Traffic
from device_runtime.errors import InputError
from device_runtime.messages import Capability, PhaseOverhead, from_json, to_json
from device_runtime.meter import Meter, merge
from device_runtime.platform_info import capability

MIB = 1 << 20


def cpu_s(who: int = resource.RUSAGE_SELF) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def burn(seconds: float) -> None:
    """Use CPU for at least so long, by the CPU's clock."""
    until = cpu_s() + seconds
    while cpu_s() < until:
        sum(range(1000))


def record(phase: str = "match", peak_mib: float = 1.0, source: str = "phase") -> PhaseOverhead:
    return PhaseOverhead(
        phase=phase, cpu_user_s=1.0, cpu_system_s=0.5, wall_s=2.0, peak_mib=peak_mib, peak_source=source,
        bytes_stored=-3, bytes_up=5, bytes_down=7,
    )  # fmt: skip


def test_cpu_is_what_getrusage_tells_us_too(tmp_path: Path) -> None:
    measured = Meter(tmp_path, None)
    outside = cpu_s()
    with measured.phase("busy"):
        inside = cpu_s()
        burn(0.2)
        inside = cpu_s() - inside
    outside = cpu_s() - outside
    (found,) = measured.records
    # The phase lies between the two readings; all are of the same clock, so nothing here depends on the machine.
    assert inside <= found.cpu_user_s + found.cpu_system_s <= outside
    assert inside >= 0.2


def test_cpu_of_finished_child_processes_counts(tmp_path: Path) -> None:
    measured = Meter(tmp_path, None)
    before = cpu_s(resource.RUSAGE_CHILDREN)
    with measured.phase("child"):
        subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    children = cpu_s(resource.RUSAGE_CHILDREN) - before
    (found,) = measured.records
    assert 0 < children <= found.cpu_user_s + found.cpu_system_s


def test_each_phase_has_its_own_peak(tmp_path: Path) -> None:
    measured = Meter(tmp_path, None)
    with measured.phase("large"):
        block = bytearray(os.urandom(1)) * (64 * MIB)
        del block
    with measured.phase("small"):
        block = bytearray(os.urandom(1)) * (8 * MIB)
        del block
    large, small = measured.records
    if large.peak_source == "process":
        pytest.skip("this kernel does not let a process set back its high-water mark (/proc/self/clear_refs)")
    # The kernel counts resident pages in per-CPU batches, so a peak may be some MiB off.
    assert large.peak_mib - small.peak_mib == pytest.approx(56, abs=8)


def test_where_the_peak_cannot_be_set_back_it_is_the_processs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "_reset_peak", lambda: False)
    measured = Meter(tmp_path, None)
    for _ in range(2):
        with measured.phase("any"):
            pass
    unit = 1 if sys.platform == "darwin" else 1024
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB
    for found in (*measured.records, measured.total()):
        assert found.peak_source == "process"
        assert 1 < found.peak_mib <= now


def test_stored_bytes_are_the_growth_of_the_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    measured = Meter(home, None)
    with measured.phase("grow"):
        (home / "blobs").mkdir(parents=True)
        (home / "blobs" / "a").write_bytes(bytes(1000))
        (home / "b").write_bytes(bytes(30))
        (home / "elsewhere").symlink_to("/usr")
    with measured.phase("shrink"):
        (home / "blobs" / "a").unlink()
        (home / "b").write_bytes(bytes(50))
    assert [r.bytes_stored for r in measured.records] == [1030, -980]
    assert measured.total().bytes_stored == 50


def test_traffic_is_that_of_the_phase(tmp_path: Path) -> None:
    counter = ByteCounter()
    measured = Meter(tmp_path, counter)
    counter.add("enrol", Traffic(1000, 2000))
    with measured.phase("match"):
        counter.add("match", Traffic(10, 20))
        counter.add("blob", Traffic(1, 2))
    counter.add("enrol", Traffic(1000, 2000))
    (found,) = measured.records
    assert (found.bytes_up, found.bytes_down) == (11, 22)


def test_a_phase_that_fails_is_recorded_and_the_next_one_may_start(tmp_path: Path) -> None:
    measured = Meter(tmp_path, None)
    with pytest.raises(ZeroDivisionError), measured.phase("fails"):
        (tmp_path / "left").write_bytes(bytes(9))
        raise ZeroDivisionError
    with measured.phase("next"):
        pass
    assert [(r.phase, r.bytes_stored) for r in measured.records] == [("fails", 9), ("next", 0)]


def test_phases_do_not_nest(tmp_path: Path) -> None:
    measured = Meter(tmp_path, None)
    with (
        measured.phase("tune"),
        pytest.raises(InputError, match="phase 'judge' cannot start within phase 'tune'"),
        measured.phase("judge"),
    ):
        pytest.fail("the inner phase ran")
    assert [r.phase for r in measured.records] == ["tune"]


def test_the_meter_tells_its_own_cost_and_keeps_it_out_of_the_phases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_walk(_: Path) -> int:
        burn(0.1)
        return 0

    monkeypatch.setattr(meter, "_stored", slow_walk)
    measured = Meter(tmp_path, None)
    assert measured.cost_s == 0
    with measured.phase("empty"):
        pass
    (found,) = measured.records
    assert measured.cost_s >= 0.2  # one walk before, one after: a wall clock shows no less than the CPU's
    assert found.cpu_user_s + found.cpu_system_s < 0.1


def test_merged_records_are_sums_and_the_highest_peak(tmp_path: Path) -> None:
    expected = {"cpu_s": 3.0, "peak_mib": 9.0, "bytes_down": 14, "bytes_up": 10, "bytes_stored": -6}
    assert merge([record(peak_mib=9.0), record(peak_mib=4.0)]) == expected
    assert merge([]) == {"cpu_s": 0, "peak_mib": 0, "bytes_down": 0, "bytes_up": 0, "bytes_stored": 0}
    measured = Meter(tmp_path, None)
    measured.records += [record(peak_mib=9.0), record(peak_mib=4.0, source="process")]
    total = measured.total()
    assert (total.phase, total.wall_s, total.peak_source) == ("total", 4.0, "process")
    assert merge([total]) == expected


def test_a_device_describes_itself() -> None:
    found = capability({"onnx": "1.24"})
    assert from_json(to_json(found), Capability, "capability") == found
    assert (found.runtime, found.python, found.machine) == (__version__, platform.python_version(), platform.machine())
    assert platform.system() in found.system
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert found.engines == {"onnx": "1.24"}


def test_memory_is_what_the_kernel_lists() -> None:
    listed = Path("/proc/meminfo")
    if not listed.exists():
        pytest.skip("there is no /proc/meminfo to compare with")
    kib = int(listed.read_text().split("MemTotal:")[1].split()[0])
    assert capability({}).memory_mib == pytest.approx(kib / 1024, abs=1)
