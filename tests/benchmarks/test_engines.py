"""The engines benchmark: fresh processes that train stay small, and what cannot be measured is said."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import engines
from benchmarks.engines_plot import plot
from benchmarks.floor import floor
from benchmarks.subjects import subject
from device_runtime.errors import InputError
from export.lowering import to_onnx, trace

MOST_MIB = {"onnx": 68, "executorch": 64}
"""Resident memory of a fresh process that trains a DIN. The goal is 64 for both (59 and 45 seen); onnxruntime's own
libraries vary by a few between machines and allocators."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    sizes, missing = engines._prepare(subject("DIN", 50), folder, None)
    assert sizes["onnx"] + sizes["executorch"] < 30_000
    assert set(missing) == {"executorch-training", "mnn", "onnxruntime-training"} and all(missing.values())
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc")
@pytest.mark.parametrize("engine", MOST_MIB)
def test_a_fresh_process_that_trains_is_small(prepared: Path, engine: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers.device", engine, "1", str(prepared)],
        input="20\n20\ninstall\n",
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    first, one, two, installed = map(json.loads, done.stdout.splitlines())
    assert len(two["ms"]) == 20 and min(two["ms"]) > 0
    assert two["loss"] < one["loss"] < first["loss"]
    assert installed["install_mib"] > 50
    assert two["peak_mib"] <= MOST_MIB[engine]


def test_the_floor_counts_the_products_and_the_bytes() -> None:
    plan = subject("DIN", 50).plan
    found = floor(to_onnx(trace(plan)), engines._arrays(plan.examples))
    attention = 3 * 32 * 50 * 32 * 36  # forward, and backward to both sides
    assert attention < found.multiply_adds < 1.5 * attention
    assert found.bytes > 4 * 3 * 32 * 50 * 36 and found.floor_ms > 0
    assert len(found.dominant) == 5 and 0 < sum(found.dominant.values()) <= 1


def test_a_worker_that_dies_says_why() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such engine here')"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    worker = engines.Worker("x", process)
    with pytest.raises(InputError, match="x does not run here: no such engine here"):
        worker.ask("")
    worker.close()


def test_numbers_are_checked() -> None:
    parser = argparse.ArgumentParser()
    engines.configure(parser)
    assert engines._numbers(parser.parse_args([]).history, "--history") == [20, 50, 100]
    with pytest.raises(InputError, match="--threads takes whole numbers"):
        engines._numbers("a", "--threads")
    with pytest.raises(InputError, match="at least 1, not 0"):
        engines._numbers("1,0", "--threads")


def test_the_plot_leaves_out_what_did_not_run() -> None:
    row = {"model": "DIN", "engine": "onnx", "threads": 1, "history": 50, "ms_per_step": 0.5, "ratio_to_eager": 4.0}
    picture = plot([row, {**row, "engine": "mnn", "ratio_to_eager": None}])
    assert picture.startswith("<svg xmlns=") and "onnx" in picture and "mnn" not in picture
