"""Which onnxruntime: CoDA's training step on one version beside the others, for speed, memory and telemetry.

Each version gets an environment of its own (FOLDER/VERSION, made by pip at first use) with what a device installs, and
trains the same step there by CoDA's own engine, in processes that take turns; that they do the same work is checked as
in `coda bench engines`. ratio is the CPU time of the version that is installed beside CoDA, which comes first, divided
by this one's: above 1 where this one is faster. telemetry says whether the wheel's library knows
ORT_DISABLE_TELEMETRY, which versions with a telemetry SDK ask for; CoDA sets it for all of them. written counts the
files that a version left in an empty home folder all the same.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch

from benchmarks import result
from benchmarks.peers import prepare
from benchmarks.peers.device import DEVICE
from benchmarks.subjects import Subject, subject
from benchmarks.workers import Worker, race
from device_runtime.errors import InputError
from export.graphs import TRAIN_BATCH

DESCRIPTION = __doc__ or ""
VERSIONS = "1.24.4,1.25.1,1.26.0,1.27.0,1.28.0,newest"
SWITCH = b"ORT_DISABLE_TELEMETRY"
ROOT = Path(__file__).parents[1]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--versions", default=VERSIONS, metavar="LIST", help="`newest` is pip's; default: %(default)s")
    parser.add_argument("--models", default="DIN,classifier", metavar="LIST", help="default: %(default)s")
    parser.add_argument("--history", type=int, default=50, metavar="N", help="default: %(default)s")
    parser.add_argument("--turns", type=int, default=20, metavar="N", help="of each process; default: %(default)s")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="in a turn; default: %(default)s")
    parser.add_argument(
        "--environments", type=Path, metavar="FOLDER", help="keep the environments here; default: made anew each time"
    )


def run(args: argparse.Namespace) -> int:
    turns, steps = (4, 40) if args.quick else (args.turns, args.steps)
    versions = versions_of(args.versions)
    torch.set_num_threads(1)
    started, rows = result.now(), []
    with tempfile.TemporaryDirectory(prefix="coda-bench-") as made:
        pythons, absent = environments(versions, (args.environments or Path(made)).absolute())
        for name in (n.strip() for n in args.models.split(",")):
            chosen = subject(name, args.history)
            folder = Path(made) / f"graph-{name}"
            folder.mkdir()
            prepare.device(chosen, folder, ("onnx",))
            workers, failed = _raced(chosen, folder, pythons, turns, steps)
            base = {"model": name, "history": args.history if chosen.takes_history else None, "batch": TRAIN_BATCH}
            rows += [base | _row(w, workers[0], pythons[w.engine], folder) for w in workers]
            rows += [base | {"version": v, "reason": reason} for v, reason in (absent | failed).items()]
    columns = {"model": "", "version": "", "ms_per_step": ".3f", "cpu_ms_per_step": ".3f", "ratio": ".2f"}
    columns |= {"peak_mib": ".1f", "install_mib": ".0f", "first_step_ms": ".0f", "off_by": ".0e"}
    print(result.table(rows, columns | {"telemetry": "", "written": "d", "reason": ""}))
    result.write(args.json, "bench ort-versions", started, rows)
    return 0


def versions_of(text: str) -> list[str]:
    """The pinned version first, then the others. Raises: InputError: not a list of versions."""
    pinned = metadata.version("onnxruntime")
    found = [pinned, *(word.strip() for word in text.split(",") if word.strip() != pinned)]
    for word in found:
        if not re.fullmatch(r"newest|\d+(\.\d+)+", word):
            raise InputError(
                f"--versions takes versions such as 1.28.0, or `newest`, separated by commas; not {word!r}"
            )
    return found


def environments(versions: Sequence[str], folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """(version -> Python, version -> why there is none); `newest` under the name of what pip chose.

    Raises:
        InputError: there is none for the pinned version, which the others are compared with.
    """
    pythons: dict[str, Path] = {}
    absent: dict[str, str] = {}
    for version in versions:
        python, reason = environment(folder / version, version)
        if reason:
            absent[version] = reason
        else:
            ask = "from importlib.metadata import version; print(version('onnxruntime'))"
            chosen = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
            pythons.setdefault(chosen, python)
    if versions[0] in absent:
        raise InputError(f"onnxruntime {versions[0]}, which CoDA uses here, has no environment: {absent[versions[0]]}")
    return pythons, absent


def environment(folder: Path, version: str) -> tuple[Path, str]:
    """An environment with what a device installs and that onnxruntime: (its Python, why it could not be made)."""
    python = folder / "bin" / "python"
    if (folder / "ready").exists():
        return python, ""
    wanted = "onnxruntime" if version == "newest" else f"onnxruntime=={version}"
    steps = (
        [sys.executable, "-m", "venv", folder],
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *DEVICE, wanted],
    )
    for step in steps:
        if reason := prepare.ran(step):
            return python, reason
    (folder / "ready").touch()
    return python, ""


def _raced(
    chosen: Subject, folder: Path, pythons: Mapping[str, Path], turns: int, steps: int
) -> tuple[list[Worker], dict[str, str]]:
    homes = {version: folder / "homes" / version for version in pythons}
    commands = {}
    for version, python in pythons.items():
        homes[version].mkdir(parents=True)
        own = [f"HOME={homes[version]}", f"XDG_CACHE_HOME={homes[version]}"]
        commands[version] = ["env", *own, str(python), "-m", "benchmarks.peers.device", "onnx", "1", str(folder)]
    shared = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return race(commands, chosen.start, turns, steps, shared)


def _row(worker: Worker, pinned: Worker, python: Path, folder: Path) -> dict[str, object]:
    cpu = statistics.median(worker.cpu_ms)
    return {
        "version": worker.engine,
        "ms_per_step": statistics.median(worker.ms),
        "cpu_ms_per_step": cpu,
        "ratio": statistics.median(pinned.cpu_ms) / cpu,
        "peak_mib": worker.peak_mib,
        "install_mib": worker.install_mib,
        "first_step_ms": worker.first_step_ms,
        "checked": True,
        "off_by": worker.off_by,
        "telemetry": "yes" if has_switch(python.parents[1]) else "no",
        "written": sum(path.is_file() for path in (folder / "homes" / worker.engine).rglob("*")),
        "reason": "",
    }


def has_switch(environment: Path) -> bool:
    """Whether the native library of an environment's onnxruntime asks for `SWITCH`."""
    libraries = environment.glob("lib/python*/site-packages/onnxruntime/capi/*.so*")
    return any(SWITCH in path.read_bytes() for path in libraries)
