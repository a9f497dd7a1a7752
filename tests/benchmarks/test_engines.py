"""The engines benchmark: fresh processes that train stay small, and what cannot be measured is said."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import engines
from benchmarks.engines_plot import plot
from benchmarks.floor import floor
from benchmarks.peers import prepare
from benchmarks.subjects import subject
from benchmarks.workers import WEIGHTS_WITHIN, race
from device_runtime.errors import InputError
from export.lowering import to_onnx, trace

NOT_HERE = ("onnxruntime-training", "mnn")
"""Peers that live in environments of their own."""
MOST_MIB = {"onnx": 68, "executorch": 64}
"""Resident memory of a fresh process that trains a DIN. The goal is 64 for both (59 and 45 seen); onnxruntime's own
libraries vary by a few between machines and allocators."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    sizes, missing = engines._prepare(subject("DIN", 50), folder, arguments())
    assert sizes["onnx"] + sizes["executorch"] < 30_000
    assert set(missing) == {"pytorch-compile", "mnn", "onnxruntime-training"}
    assert "mnn.sh FOLDER, then --mnn FOLDER" in missing["mnn"]
    assert "ort_training.sh FOLDER, then --ort-training FOLDER" in missing["onnxruntime-training"]
    return folder


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    engines.configure(parser)
    return parser.parse_args(words)


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
    assert first["steps_per_call"] == 16 and len(two["ms"]) == 2 and min(two["ms"]) > 0
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


def test_numbers_are_checked() -> None:
    assert engines._numbers(arguments().history, "--history") == [20, 50, 100]
    with pytest.raises(InputError, match="--threads takes whole numbers"):
        engines._numbers("a", "--threads")
    with pytest.raises(InputError, match="at least 1, not 0"):
        engines._numbers("1,0", "--threads")


def test_the_plot_leaves_out_what_did_not_run() -> None:
    row = {"model": "DIN", "engine": "onnx", "threads": 1, "history": 50, "ms_per_step": 0.5, "ratio_to_eager": 4.0}
    picture = plot([row, {**row, "engine": "mnn", "ratio_to_eager": None}])
    assert picture.startswith("<svg xmlns=") and "onnx" in picture and "mnn" not in picture


def test_peers_are_given_every_weight_by_its_name() -> None:
    """An exporter that folds weights into constants leaves onnxruntime-training nothing to train."""
    chosen = subject("DIN", 20)
    graph = onnx.load_from_string(prepare.loss_graph(chosen)).graph
    held = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    for name in chosen.step.trained:
        np.testing.assert_array_equal(held[name], chosen.plan.examples[name].numpy())
    assert [i.name for i in graph.input] == ["item", "history", "label", "sample_weight"]
    assert [o.name for o in graph.output] == ["loss"]


def test_executorchs_own_training_knows_sgd_only(tmp_path: Path) -> None:
    assert "SGD only" in prepare.executorch_training(subject("classifier", 50), tmp_path)
    assert not list(tmp_path.iterdir())


def test_executorchs_own_training_does_the_same_work(prepared: Path) -> None:
    """In a process of its own, as in the benchmark; PyTorch eager beside it."""
    commands = engines._commands("DIN", 50, 1, prepared, arguments(), {"pytorch-compile", *NOT_HERE})
    commands = {name: commands[name] for name in (engines.EAGER, "executorch-training")}
    workers, absent = race(commands, subject("DIN", 50).start, 1, 2, {})
    assert absent == {} and [w.engine for w in workers] == list(commands)
    assert workers[0].off_by == 0 < workers[1].off_by < WEIGHTS_WITHIN
    assert min(workers[1].ms) > 0 and workers[1].peak_mib > 100
