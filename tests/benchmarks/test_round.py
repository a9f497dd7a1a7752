"""`coda bench round`: the process's cost is the kernel's and the child's alone, the bytes are the socket's."""

from __future__ import annotations

import sys
from xml.etree import ElementTree

import pytest

from benchmarks import plot
from benchmarks.process import measured
from benchmarks.round import _median, one_round
from device_runtime.errors import CodaError


def test_a_child_does_not_inherit_its_parents_peak(tmp_path):
    held = bytearray(300 << 20)
    small = measured([sys.executable, "-I", "-S", "-c", "pass"], tmp_path / "log")
    assert small.peak_mib < 100 < len(held) / (1 << 20)
    large = measured([sys.executable, "-I", "-S", "-c", "held = b'x' * (120 << 20)"], tmp_path / "log")
    assert 120 < large.peak_mib < 220


def test_cpu_is_that_of_the_child(tmp_path):
    idle = measured([sys.executable, "-I", "-S", "-c", "pass"], tmp_path / "log")
    busy = measured([sys.executable, "-I", "-S", "-c", "sum(range(10_000_000))"], tmp_path / "log")
    assert busy.cpu_s > idle.cpu_s


def test_a_command_that_fails_says_why(tmp_path):
    with pytest.raises(CodaError, match="ended with status 3: out of luck"):
        measured([sys.executable, "-I", "-S", "-c", "print('out of luck'); raise SystemExit(3)"], tmp_path / "log")


def test_rounds_of_a_real_device_process(serving, published, tmp_path):
    with serving() as (url, _):
        trust = published.bundle / "release.pub"
        words = ["--server", url, "--trust", trust, "--import", published.history]
        first, later = one_round(tmp_path, "onnx", words), one_round(tmp_path, "onnx")
    assert first["bytes_down"] > later["bytes_down"] > 0 and later["bytes_up"] > 0
    for found in (first, later):
        inside = [phase["cpu_user_s"] + phase["cpu_system_s"] for phase in found["phases"]]
        assert found["cpu_s"] > sum(inside) > 0, "the whole process costs more than its phases"
        assert found["peak_mib"] >= max(phase["peak_mib"] for phase in found["phases"]) * 0.99
        # what the phases do not see: enrolment before them, the report after them
        assert found["bytes_up"] > sum(phase["bytes_up"] for phase in found["phases"])
    row = _median("onnx", 60, False, [later, later, later])
    assert row["cpu_s"] == later["cpu_s"] and row["bytes_down"] == later["bytes_down"]
    assert set(row["phases"]) == {phase["phase"] for phase in later["phases"]}


def test_the_plot_is_a_picture_of_its_own(tmp_path):
    cost = {"cpu_s": 0.25, "wall_s": 1.0, "peak_mib": 60.0, "bytes_down": 1, "bytes_up": 1}
    row = {"engine": "onnx", "local": 100, "candidates": 500, "first": True, "cpu_s": 1.0, "phases": {"tune": cost}}
    plot.write(tmp_path / "plot.svg", plot.phases([row]))
    drawn = "".join(ElementTree.parse(tmp_path / "plot.svg").getroot().itertext())
    assert "start and end: 0.750 s" in drawn and "tune: 0.250 s" in drawn
