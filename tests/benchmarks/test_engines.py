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
from device_runtime.errors import InputError

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
    assert len(two["ms"]) == 20 and min(two["ms"]) > 0
    assert two["loss"] < one["loss"] < first["loss"]
    assert installed["install_mib"] > 50
    assert two["peak_mib"] <= MOST_MIB[engine]


def test_the_floor_counts_the_products_and_the_bytes(prepared: Path) -> None:
    chosen = subject("DIN", 50)
    found = floor((prepared / "step.onnx").read_bytes(), engines._inputs(chosen))
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
    assert engines._numbers(arguments().history, "--history") == [20, 50, 100]
    with pytest.raises(InputError, match="--threads takes whole numbers"):
        engines._numbers("a", "--threads")
    with pytest.raises(InputError, match="at least 1, not 0"):
        engines._numbers("1,0", "--threads")


def test_the_plot_leaves_out_what_did_not_run() -> None:
    row = {"model": "DIN", "engine": "onnx", "threads": 1, "history": 50, "ms_per_step": 0.5, "ratio_to_eager": 4.0}
    picture = plot([row, {**row, "engine": "mnn", "ratio_to_eager": None}])
    assert picture.startswith("<svg xmlns=") and "onnx" in picture and "mnn" not in picture


LIAR = """
import json, sys
import numpy as np

print(json.dumps({"first_step_ms": 1.0, "loss": 0.5, "peak_mib": 1.0}), flush=True)
for line in sys.stdin:
    word, _, folder = line.strip().partition(" ")
    if word == "weights":
        for name, array in np.load(sys.argv[1]).items():
            np.save(f"{folder}/{name}.npy", array)
    print(json.dumps({"ms": [1.0], "cpu_ms": 1.0, "peak_mib": 1.0, "loss": float(sys.argv[2])}), flush=True)
"""


@pytest.mark.parametrize(
    ("loss", "change", "reason"),
    [
        (0.25, 1.0, None),
        (0.2502, 1.0, r"its losses are \[0.5, 0.2502\], PyTorch eager's \[0.5, 0.25\]"),
        (0.25, 0.99, "'out.bias' is off by 1.0e-02 of how far it moves"),
        (0.25, None, "it has no weight 'out.bias'"),
    ],
)
def test_a_worker_that_does_other_work_is_not_timed(
    tmp_path: Path, loss: float, change: float | None, reason: str | None
) -> None:
    """Each weight moves by 1 in PyTorch; the worker moves one of them by a little less, or has another loss."""
    chosen = subject("classifier", 50)
    reference = tmp_path / f"weights-{engines.EAGER}"
    reference.mkdir()
    (reference / "losses.json").write_text("[0.5, 0.25]")
    moved = {name: chosen.plan.examples[name].numpy() + 1 for name in chosen.step.trained}
    for name, array in moved.items():
        np.save(reference / f"{name}.npy", array)
    if change is None:
        del moved["out.bias"]
    else:
        moved["out.bias"] = moved["out.bias"] - 1 + change
    np.savez(tmp_path / "given.npz", **moved)
    command = [sys.executable, "-c", LIAR, str(tmp_path / "given.npz"), str(loss)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    worker = engines.Worker("peer", process)
    try:
        worker.first = worker.ask("")
        if reason is None:
            engines._compare(worker, chosen, tmp_path)
            assert worker.off_by == 0
        else:
            with pytest.raises(InputError, match=f"peer does other work: {reason}"):
                engines._compare(worker, chosen, tmp_path)
    finally:
        worker.close()


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
    chosen = subject("DIN", 50)
    for engine, command in engines._commands(
        "DIN", 50, 1, prepared, arguments(), {"pytorch-compile", *NOT_HERE}
    ).items():
        if engine in (engines.EAGER, "executorch-training"):
            pipe = subprocess.PIPE
            worker = engines.Worker(engine, subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
            try:
                worker.first = worker.ask("")
                engines._compare(worker, chosen, prepared)
            finally:
                worker.close()
    assert 0 < worker.off_by < engines.WEIGHTS_WITHIN
