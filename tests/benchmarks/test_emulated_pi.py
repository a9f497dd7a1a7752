"""`coda bench emulated-pi`: what the plugin counts, and what the gate lets through. The emulated rounds themselves take
minutes: `make pi` runs them."""

from __future__ import annotations

import json
import platform
import shutil

import numpy as np
import pytest

from benchmarks import emulated_pi
from benchmarks.emulated_pi import Came, compare, disagreement, read_counts, summary
from device_runtime.errors import CodaError

EMULATOR = f"qemu-{platform.machine()}"


def test_marks_become_phases_and_those_of_one_name_are_added_up():
    text = "mark 0 100\nmark 1 150\nmark 2 160\nmark 3 400\nmark 4 410\nmark 5 415\ntotal 1000\n"
    assert read_counts(text, ["pull", "tune", "pull"]) == (1000, {"pull": 55, "tune": 240})
    with pytest.raises(CodaError, match="1 phases were run"):
        read_counts("total 1000\n", ["pull"])


def test_the_gate_lets_noise_through_and_growth_not():
    before = {"total": 3_000_000_000, "phases": {"tune": 500_000_000, "activate": 50_000}}
    noise = {"total": 3_001_000_000, "phases": {"tune": 501_000_000, "activate": 80_000}}
    assert compare(before, noise) == []
    dearer = {"total": 3_100_000_000, "phases": {"tune": 600_000_000, "activate": 50_000}}
    assert compare(before, dearer) == ["tune: 500,000,000 instructions became 600,000,000"]
    other = {"total": 3_000_000_000, "phases": {"tune": 500_000_000, "judge": 1}}
    assert [line.split(":")[0] for line in compare(before, other)] == ["activate", "judge"]


def test_the_baseline_is_one_that_the_gate_can_read():
    found = json.loads(emulated_pi._BASELINE.read_text())
    assert set(found) == {"versions", "total", "phases"} and set(found["versions"]) == set(emulated_pi._versions())
    assert sum(found["phases"].values()) < found["total"]
    assert {"encode", "match", "filter", "tune", "judge"} <= set(found["phases"])


def test_of_repeated_counts_the_middle_one_is_told_and_how_far_the_others_are():
    told = summary([{"instructions": n, "phases": {"tune": n // 2}} for n in (1_000_500, 1_000_000, 1_000_010)])
    assert told["instructions"] == 1_000_010 and told["phases"] == {"tune": 500_005}
    assert told["spread"] == pytest.approx(1e-5, rel=0.01) and told["range"] == pytest.approx(5e-4, rel=0.01)


def test_two_machines_agree_on_a_round_or_it_is_an_error():
    here = Came("kept", 20, 0.5, {"head": np.float32([1, -4])})
    there = Came("kept", 20, 0.5, {"head": np.float32([1, -4.0004])})
    assert disagreement(here, there) == pytest.approx(1e-4, rel=0.01)
    with pytest.raises(CodaError, match=r"differs by 2\.5e-01"):
        disagreement(here, Came("kept", 20, 0.5, {"head": np.float32([2, -4])}))
    with pytest.raises(CodaError, match="ended otherwise"):
        disagreement(here, Came("kept", 21, 0.5, here.tensors))
    refused = Came("refused", 20, 0.5, {})
    assert disagreement(refused, Came("refused", 20, 0.5001, {})) == pytest.approx(2e-4, rel=0.01)


@pytest.mark.skipif(
    not (shutil.which(EMULATOR) and shutil.which("gcc")), reason=f"needs gcc and {EMULATOR} (apt install qemu-user)"
)
def test_the_plugin_counts_what_is_done_and_counts_it_again(tmp_path):
    machine = emulated_pi._native(tmp_path)
    script = tmp_path / "script.py"
    script.write_text(
        "import ctypes, sys\n"
        "kernel = ctypes.CDLL(None)\n"
        "for number, turns in enumerate((1000, 2000)):\n"
        "    kernel.syscall(7777, 2 * number)\n"
        "    for _ in range(turns * int(sys.argv[1])): pass\n"
        "    kernel.syscall(7777, 2 * number + 1)\n"
    )
    counted = []
    for times in (10, 10, 40):
        machine.run("-S", script, times, count=tmp_path / "count")
        counted.append(read_counts((tmp_path / "count").read_text(), ["short", "long"]))
    (total, once), (again, same), (_, more) = counted
    assert abs(total - again) < 1e-3 * total
    assert abs(once["long"] - same["long"]) < 1e-3 * once["long"]
    assert once["long"] == pytest.approx(2 * once["short"], rel=0.05)
    assert more["long"] == pytest.approx(4 * once["long"], rel=0.05)
