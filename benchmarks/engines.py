"""How long a training step takes: each engine beside PyTorch eager and the other engines that train on devices.

Each engine trains in a fresh process of its own; the processes take turns, some steps at a time, so that a busy
machine is busy for all of them. ms_per_step is the median of all steps after the first turn, cpu_ms_per_step the median
over the turns of the CPU time (a busy machine does not blur it), ratio_to_eager PyTorch eager's time divided by this
one's, above 1 where this one is faster, ratio_cpu the same by CPU time. peak_mib is the process's, install_mib what its
packages take on disk, graph_bytes the step graph after zstd, first_step_ms from before the engine is imported to the
first loss. CoDA's engines take as many steps in a call as the product does (steps_per_call; ADR 0006 and 0007); their
times are those of a call divided by its steps.

onnxruntime-training 1.19.2 needs an environment of its own: benchmarks/peers/ort_training.sh FOLDER, then
--ort-training FOLDER. A peer that cannot run is listed with the reason.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from safetensors.numpy import save_file

from benchmarks import result
from benchmarks.engines_plot import plot
from benchmarks.floor import floor
from benchmarks.subjects import Subject, subject
from device_runtime.bundle import write_atomically
from device_runtime.engines import open_engine
from device_runtime.errors import InputError
from export.graphs import TRAIN_BATCH
from export.lowering import to_executorch, to_onnx, trace
from export.package import STEPS_IN_A_CALL
from export.parity import Oracle, check
from export.scan import scan_steps

DESCRIPTION = __doc__ or ""
PEERS = Path(__file__).parent / "peers"
EAGER = "pytorch-eager"
NOT_RUN = {
    "executorch-training": "no worker yet; its Python binding needs torch, and it knows SGD only",
    "mnn": "no worker yet; in an earlier trial the 3.6.1 wheel's optimizer returned False and moved no weight",
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", default="DIN,classifier", metavar="LIST", help="default: %(default)s")
    parser.add_argument("--history", default="20,50,100", metavar="LIST", help="default: %(default)s; 50 with --quick")
    parser.add_argument("--threads", default="1,2", metavar="LIST", help="default: %(default)s; 1 with --quick")
    parser.add_argument("--turns", type=int, default=12, metavar="N", help="of each process; default: %(default)s")
    parser.add_argument("--steps", type=int, default=40, metavar="N", help="in a turn; default: %(default)s")
    parser.add_argument(
        "--ort-training", type=Path, metavar="FOLDER", help="what benchmarks/peers/ort_training.sh made"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile as well: needs a compiler and a minute")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the ratios as an SVG picture")


@dataclass
class Worker:
    """A process that trains on one engine, `per_call` steps at a time."""

    engine: str
    process: subprocess.Popen[str]
    per_call: int = 1
    ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    first: Mapping[str, Any] = field(default_factory=dict)
    install_mib: float = 0.0
    peak_mib: float = 0.0

    def ask(self, line: str) -> Mapping[str, Any]:
        """Raises: InputError: the worker is gone; the message is the last line that it wrote."""
        assert self.process.stdin is not None and self.process.stdout is not None and self.process.stderr is not None
        if line:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            told = self.process.stderr.read().strip().splitlines() or ["it said nothing"]
            raise InputError(f"{self.engine} does not run here: {told[-1][:200]}")
        found: Mapping[str, Any] = json.loads(answer)
        return found

    def turn(self, steps: int, count: bool) -> None:
        found = self.ask(str(math.ceil(steps / self.per_call)))
        self.peak_mib = found["peak_mib"]
        if count:
            self.ms += [ms / self.per_call for ms in found["ms"]]
            self.cpu_ms.append(found["cpu_ms"] / self.per_call)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


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
                sizes, missing = _prepare(chosen, Path(folder), args.ort_training)
                for count in threads:
                    commands = _commands(name, history, count, Path(folder), args, missing)
                    calls = dict.fromkeys(sizes, STEPS_IN_A_CALL[chosen.plan.name])
                    case = (name, history, count, chosen.takes_history)
                    rows += _race(commands, missing, turns, steps, sizes, calls, case)
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
    columns |= {"ratio_to_eager": ".2f", "ratio_cpu": ".2f", "peak_mib": ".1f", "install_mib": ".0f"}
    print(result.table(rows, columns | {"graph_bytes": "d", "first_step_ms": ".0f", "reason": ""}))
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


def _prepare(chosen: Subject, folder: Path, ort_training: Path | None) -> tuple[dict[str, int], dict[str, str]]:
    """Write graphs and inputs: (engine -> bytes of its graph after zstd, peer -> why it cannot run)."""
    import msgspec

    traced = trace(chosen.plan)
    sizes, missing = {}, dict(NOT_RUN)
    steps = STEPS_IN_A_CALL[chosen.plan.name]
    for name, lower in (("onnx", scan_steps), ("executorch", to_executorch)):
        path = folder / f"step.{name}"
        path.write_bytes(lower(traced))
        check(traced.plan, Oracle(chosen.module, chosen.step), open_engine(name), path, steps)
        sizes[name] = len(zstandard.compress(path.read_bytes(), 19))
    (folder / "spec.json").write_bytes(msgspec.json.encode(traced.plan.spec.stacked(steps)))
    inputs = {n: a for n, a in _arrays(chosen.plan.examples).items() if n in {t.name for t in traced.plan.spec.inputs}}
    save_file({n: np.ascontiguousarray(a).reshape(a.shape) for n, a in inputs.items()}, folder / "inputs")
    if ort_training is None:
        missing["onnxruntime-training"] = "no --ort-training FOLDER; benchmarks/peers/ort_training.sh makes one"
    elif reason := _prepare_ort_training(chosen, folder, ort_training):
        missing["onnxruntime-training"] = reason
    return sizes, missing


def _prepare_ort_training(chosen: Subject, folder: Path, environment: Path) -> str:
    """Export the forward pass and let onnxruntime-training add the backward pass: why that failed, or nothing."""
    from export.lowering import quiet

    examples = chosen.plan.examples
    names = [t.name for t in chosen.plan.spec.of("feature")]
    given = tuple(examples[n] for n in names)
    with quiet():
        torch.onnx.export(
            _Forward(chosen), given, folder / "forward.onnx", input_names=names, output_names=["logit"],
            dynamo=True, opset_version=18, verbose=False, external_data=False,
        )  # fmt: skip
    arrays = {n: examples[n].numpy() for n in names}
    np.savez(folder / "inputs.npz", **arrays, target=examples["label"].numpy()[:, None])  # type: ignore[arg-type]
    trained = ",".join(f"module.{n}" for n in chosen.step.trained)
    kind = "adamw" if chosen.step.optimizer.slots else "sgd"
    command = [environment / "bin" / "python", PEERS / "ort_training.py", "prepare", folder, trained, kind]
    try:
        done = subprocess.run([str(w) for w in command], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{environment} is no environment: {error.strerror}"
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:200]


class _Forward(torch.nn.Module):
    """Logits [B, 1] of features by position."""

    def __init__(self, chosen: Subject) -> None:
        super().__init__()
        self.module = chosen.module
        self.names = [t.name for t in chosen.plan.spec.of("feature")] if chosen.takes_history else []

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = (
            self.module(**dict(zip(self.names, given, strict=True))) if self.names else self.module(*given)
        )
        return output.unsqueeze(-1)


def _commands(
    name: str, history: int, threads: int, folder: Path, args: argparse.Namespace, missing: Mapping[str, str]
) -> dict[str, list[str]]:
    """engine -> how to start its worker."""
    words = [str(threads), str(folder)]
    eager = [sys.executable, "-m", "benchmarks.peers.eager"]
    found = {EAGER: [*eager, "eager", str(threads), name, str(history)]}
    if args.compile:
        found["pytorch-compile"] = [*eager, "compile", str(threads), name, str(history)]
    for engine in ("onnx", "executorch"):
        found[engine] = [sys.executable, "-m", "benchmarks.peers.device", engine, *words]
    if "onnxruntime-training" not in missing:
        python = args.ort_training / "bin" / "python"
        found["onnxruntime-training"] = [str(python), str(PEERS / "ort_training.py"), *words]
    return found


def _race(
    commands: Mapping[str, Sequence[str]],
    missing: Mapping[str, str],
    turns: int,
    steps: int,
    sizes: Mapping[str, int],
    calls: Mapping[str, int],
    what: tuple[str, int, int, bool],
) -> list[dict[str, object]]:
    """Let the workers take turns, of at least so many steps. The first turn warms up. calls: steps in one of theirs."""
    name, history, threads, takes_history = what
    absent, workers = dict(missing), []
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": str(threads)}
    for engine, command in commands.items():
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
        worker = Worker(engine, process, calls.get(engine, 1))
        try:
            worker.first = worker.ask("")
            workers.append(worker)
        except InputError as reason:
            absent[engine] = str(reason)
            worker.close()
    try:
        for number in range(turns + 1):
            for worker in workers:
                worker.turn(steps, count=number > 0)
        for worker in workers:  # last: walking over files takes memory
            worker.install_mib = worker.ask("install")["install_mib"]
    finally:
        for worker in workers:
            worker.close()
    wall = {w.engine: statistics.median(w.ms) for w in workers}
    cpu = {w.engine: statistics.median(w.cpu_ms) for w in workers}
    base = {"model": name, "threads": threads, "history": history if takes_history else None, "batch": TRAIN_BATCH}
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
            "steps_per_call": calls.get(w.engine, 1),
            "first_step_ms": w.first["first_step_ms"],
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
