"""How long a training step takes: each engine beside PyTorch eager and the other engines that train on devices.

Each engine trains in a fresh process of its own; the processes take turns, some steps at a time, so that a busy
machine is busy for all of them. ms_per_step is the median of all steps after the first turn, cpu_ms_per_step the median
over the turns of the CPU time (a busy machine does not blur it), ratio_to_eager PyTorch eager's time divided by this
one's, above 1 where this one is faster, ratio_cpu the same by CPU time. peak_mib is the process's, install_mib what its
packages take on disk, graph_bytes the step graph after zstd (of a peer what it ships instead; ExecuTorch's training
extension has the weights in it), first_step_ms from before the engine is imported to the first loss. CoDA's
engines take as many steps in a call as the product does (steps_per_call; ADR 0006 and 0007); a step's time is that of a
call divided by them.

All do the same work, and that is checked before anything is timed: after five steps each worker's loss and weights are
compared with PyTorch eager's. off_by is the largest difference, relative to how far the tensor moved (off_in). Who is
further off than 1e-3, or has another loss by 1e-4, is not timed and listed with the reason.

Peers with other packages live in environments of their own: benchmarks/peers/ort_training.sh FOLDER, then
--ort-training FOLDER; benchmarks/peers/mnn.sh FOLDER, then --mnn FOLDER. A peer that does not run is listed with the
reason and with what makes it run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard

from benchmarks import result
from benchmarks.engines_plot import plot
from benchmarks.floor import floor
from benchmarks.peers import prepare
from benchmarks.subjects import Subject, subject
from benchmarks.workers import Worker, race
from device_runtime.bundle import write_atomically
from device_runtime.errors import InputError
from export.graphs import TRAIN_BATCH
from export.lowering import to_onnx, trace

DESCRIPTION = __doc__ or ""
EAGER = "pytorch-eager"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", default="DIN,classifier", metavar="LIST", help="default: %(default)s")
    parser.add_argument("--history", default="20,50,100", metavar="LIST", help="default: %(default)s; 50 with --quick")
    parser.add_argument("--threads", default="1,2", metavar="LIST", help="default: %(default)s; 1 with --quick")
    parser.add_argument("--turns", type=int, default=12, metavar="N", help="of each process; default: %(default)s")
    parser.add_argument("--steps", type=int, default=40, metavar="N", help="in a turn; default: %(default)s")
    parser.add_argument(
        "--ort-training", type=Path, metavar="FOLDER", help="what benchmarks/peers/ort_training.sh made"
    )
    parser.add_argument("--mnn", type=Path, metavar="FOLDER", help="what benchmarks/peers/mnn.sh made")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well: needs a compiler and a minute")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the ratios as an SVG picture")


def run(args: argparse.Namespace) -> int:
    turns, steps = (4, 20) if args.quick else (args.turns, args.steps)
    histories = [50] if args.quick else _numbers(args.history, "--history")
    threads = [1] if args.quick else _numbers(args.threads, "--threads")
    torch.set_num_threads(1)
    started, rows, floors = result.now(), [], {}
    for name in (n.strip() for n in args.models.split(",")):
        for history in histories:
            chosen = subject(name, history)
            if not chosen.takes_history and history != histories[0]:
                continue
            with tempfile.TemporaryDirectory(prefix="coda-bench-") as folder:
                sizes, missing = _prepare(chosen, Path(folder), args)
                for count in threads:
                    commands = _commands(name, history, count, Path(folder), args, missing)
                    environment = {
                        **{"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": str(count)},
                        "TORCHINDUCTOR_CACHE_DIR": str(Path(folder) / "inductor"),  # a first step is to be one
                    }
                    workers, failed = race(commands, chosen.start, turns, steps, environment)
                    rows += _rows(chosen, (name, history, count), workers, missing | failed, sizes)
                step = chosen.plan.joined.plan if chosen.plan.joined else chosen.plan  # what onnx runs in its loop
                limit = floor(to_onnx(trace(step)), _arrays(step.examples))
                floors[f"{name} {history}" if chosen.takes_history else name] = asdict(limit)
    columns = {
        "model": "",
        "engine": "",
        "steps_per_call": "d",
        "threads": "d",
        "history": "d",
        "ms_per_step": ".3f",
        "cpu_ms_per_step": ".3f",
    }
    columns |= {"ratio_to_eager": ".2f", "ratio_cpu": ".2f", "peak_mib": ".1f", "install_mib": ".0f", "off_by": ".0e"}
    print(result.table(rows, columns | {"graph_bytes": "d", "first_step_ms": ".0f", "reason": ""}))
    for engine, reason in {str(r["engine"]): r["reason"] for r in rows if r["reason"]}.items():
        print(f"NOT RUN: {engine}: {reason}", file=sys.stderr)
    for what, limit_of in floors.items():
        _tell(what, limit_of, rows)
    result.write(args.json, "bench engines", started, rows, floors=floors)
    if args.plot:
        write_atomically(args.plot, plot(rows).encode())
    return 0


def _numbers(text: str, option: str) -> list[int]:
    """Raises: InputError."""
    try:
        found = [int(n) for n in text.split(",")]
    except ValueError:
        raise InputError(f"{option} takes whole numbers, separated by commas, not {text!r}") from None
    if min(found) < 1:
        raise InputError(f"{option} takes numbers of at least 1, not {min(found)}")
    return found


def _arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    return {name: value.numpy() for name, value in tensors.items()}


Sizes = dict[str, int]
"""Engine -> bytes."""


def _prepare(chosen: Subject, folder: Path, args: argparse.Namespace) -> tuple[Sizes, dict[str, str]]:
    """Write graphs and inputs: (engine -> bytes of its graph after zstd, peer -> why it cannot run)."""
    prepare.device(chosen, folder, ("onnx", "executorch"))
    sizes = {name: _zstd_bytes(folder / f"step.{name}") for name in ("onnx", "executorch")}
    absent = {
        "pytorch-compile": "" if args.compile else "not asked for: --compile, which takes a minute for each",
        "executorch-training": prepare.executorch_training(chosen, folder),
        "onnxruntime-training": prepare.ort_training(chosen, folder, args.ort_training)
        if args.ort_training
        else "not installed: benchmarks/peers/ort_training.sh FOLDER, then --ort-training FOLDER",
        "mnn": prepare.mnn(chosen, folder)
        if args.mnn
        else "not installed: benchmarks/peers/mnn.sh FOLDER, then --mnn FOLDER",
    }
    if not absent["executorch-training"]:
        sizes["executorch-training"] = _zstd_bytes(folder / "training.pte")
    if not absent["onnxruntime-training"]:
        made = folder / "artifacts"
        sizes["onnxruntime-training"] = sum(_zstd_bytes(made / f"{n}_model.onnx") for n in ("training", "optimizer"))
    return sizes, {peer: reason for peer, reason in absent.items() if reason}


def _zstd_bytes(path: Path) -> int:
    return len(zstandard.compress(path.read_bytes(), 19))


def _commands(
    name: str, history: int, threads: int, folder: Path, args: argparse.Namespace, missing: Collection[str]
) -> dict[str, list[str]]:
    """engine -> how to start its worker."""
    words = [str(threads), str(folder)]
    eager = [sys.executable, "-m", "benchmarks.peers.eager"]
    found = {EAGER: [*eager, "eager", str(threads), name, str(history)]}
    if "pytorch-compile" not in missing:
        found["pytorch-compile"] = [*eager, "compile", str(threads), name, str(history)]
    for engine in ("onnx", "executorch"):
        found[engine] = [sys.executable, "-m", "benchmarks.peers.device", engine, *words]
    if "executorch-training" not in missing:
        found["executorch-training"] = [sys.executable, "-m", "benchmarks.peers.executorch_training", *words]
    for peer, environment, file in (
        ("onnxruntime-training", args.ort_training, "ort_training.py"),
        ("mnn", args.mnn, "mnn.py"),
    ):
        if peer not in missing:
            found[peer] = [str(environment / "bin" / "python"), str(prepare.HERE / file), *words]
    return found


def _rows(
    chosen: Subject, work: tuple[str, int, int], workers: Sequence[Worker], absent: Mapping[str, str], sizes: Sizes
) -> list[dict[str, object]]:
    name, history, threads = work
    wall = {w.engine: statistics.median(w.ms) for w in workers}
    cpu = {w.engine: statistics.median(w.cpu_ms) for w in workers}
    taken = history if chosen.takes_history else None
    base = {"model": name, "threads": threads, "history": taken, "batch": TRAIN_BATCH}
    rows: list[dict[str, object]] = [
        {
            **base,
            "engine": w.engine,
            "ms_per_step": wall[w.engine],
            "cpu_ms_per_step": cpu[w.engine],
            "ratio_to_eager": wall[EAGER] / wall[w.engine],
            "ratio_cpu": cpu[EAGER] / cpu[w.engine],
            "peak_mib": w.peak_mib,
            "install_mib": w.install_mib,
            "graph_bytes": sizes.get(w.engine),
            "steps_per_call": w.steps_per_call,
            "first_step_ms": w.first_step_ms,
            "checked": True,
            "off_by": w.off_by,
            "off_in": w.off_in,
            "reason": "",
        }
        for w in workers
    ]
    return rows + [{**base, "engine": engine, "reason": reason} for engine, reason in absent.items()]


def _tell(what: str, limit: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """How far onnx in one thread is from the floor, and what takes its time."""
    model, _, history = what.partition(" ")
    key = (model, "onnx", 1, history)
    row = next((r for r in rows if (r["model"], r["engine"], r["threads"], str(r["history"] or "")) == key), None)
    if row is None:
        return
    dominant = ", ".join(f"{kind} {share:.0%}" for kind, share in limit["dominant"].items())
    print(
        f"{what}: {limit['multiply_adds']:,} multiply-adds at {limit['gemm_rate']:.3g}/s and {limit['bytes']:,} bytes "
        f"at {limit['copy_rate']:.3g}/s take {limit['floor_ms']:.3f} ms; onnx takes "
        f"{row['cpu_ms_per_step'] / limit['floor_ms']:.1f} times that. Its time goes to: {dominant}"
    )
