"""What a round takes on a Raspberry Pi, as far as an emulated one can tell: bytes, and instructions.

Builds (or finds again in --work) an arm64 Debian user space, installs CoDA's wheel and arm64 wheels of its dependencies
there, runs the ground floor's unit tests, and then whole rounds against a real server on this machine. A plugin of our
own counts the instructions that the emulated Cortex-A72 retires, for the process and for each phase. The count hardly
varies, so it also shows whether a change made a round dearer. It is no time: how long an instruction takes on a board,
its memory and its energy are not measured here, and nothing is said of them. 64-bit only: neither ONNX Runtime nor
NumPy has wheels for a 32-bit Raspberry Pi OS.

  --gate      count a round on this machine's own architecture instead, and compare each phase with the baseline in
              benchmarks/emulation/baseline.json; exit status 1 if one grew by more than its tolerance
  --update    the same, and write the baseline
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np

from benchmarks import result
from benchmarks.prepared import Prepared, engines_here, prepared
from benchmarks.process import coda_command, measured
from device_runtime.bundle import read_tensors, write_atomically
from device_runtime.engines.shim import FLAGS, SOURCE, cache_folder
from device_runtime.errors import CodaError, InputError
from device_runtime.samples import Float32

DESCRIPTION = __doc__ or ""
LOCAL, CANDIDATES = 100, 500
TOLERANCE = 0.05
"""By how much a phase may grow: the engines' memory addresses alone move small phases by a per cent."""
REPEATS = 3
AGREEMENT = 1e-3
"""How far weights may be from those that another architecture's kernels come to, relative to the largest."""
SMALL = 2_000_000
"""Phases of fewer instructions are compared with this much slack: a retry of a lock would show in them."""
_HERE = Path(__file__).parent / "emulation"
_BASELINE = _HERE / "baseline.json"
_CPU = {"aarch64": "cortex-a72", "x86_64": "max"}
_TESTS = (
    *("packing", "wire", "samples", "tables", "stream", "identity", "metrics", "history"),
    *("store", "journal", "repair", "transport", "blob_transfers", "schedule", "sensors", "meter"),
)
"""Of the ground floor: those that need neither torch nor a server of the cloud's."""
_START_PYTHON = (
    "test_what_the_agent_imports_is_small",
    "test_a_kill_at_any_moment_loses_nothing_that_was_acknowledged",
    "test_what_the_system_refuses_to_write_is_said_and_costs_nothing_that_was_stored",
    "test_cpu_of_finished_child_processes_counts",
)
"""Tests among them that start another Python, which the kernel of another architecture cannot execute."""
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
_COLUMNS = {
    "engine": "",
    "first": "",
    "outcome": "",
    "instructions": ",d",
    "spread": ".1e",
    "range": ".1e",
    "differs": ".1e",
    "bytes_down": "d",
    "bytes_up": "d",
    "bytes_stored": "d",
}


@dataclass(frozen=True)
class Machine:
    """Runs Python as a guest. words: of the emulator and the interpreter. plugin: words that make it count."""

    words: tuple[str, ...]
    plugin: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path

    def run(self, *words: object, count: Path | None = None) -> None:
        """count: where the plugin writes. Raises: CodaError: it failed, with the last line that it said."""
        emulator, *rest = self.words
        command = [emulator, *(self.plugin if count else ()), *rest, *map(str, words)]
        more = {"ICOUNT_OUT": str(count)} if count else {}
        measured(command, self.log, {**self.environment, **more})


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", action="append", choices=("onnx", "executorch"), help="default: both")
    parser.add_argument("--work", type=Path, metavar="DIR", help="default: emulated-pi in the user's cache of CoDA")
    parser.add_argument("--gate", action="store_true")
    parser.add_argument("--update", action="store_true")


def run(args: argparse.Namespace) -> int:
    started = result.now()
    work = (args.work or cache_folder() / "emulated-pi").absolute()
    work.mkdir(parents=True, exist_ok=True)
    engines = engines_here(args.engine or ("onnx", "executorch"), _say)
    names = [engine.name for engine in engines]
    if args.gate or args.update:
        return _gate(args, work, started)
    machine = _arm64(work, names)
    if not args.quick:
        _say("the ground floor's unit tests, emulated: this takes some minutes")
        _unit_tests(machine, work)
    with prepared(work / "served", engines, _say) as made:
        rows = _rounds(made, machine, names, host=True)
    print("Rounds on an emulated Cortex-A72: instructions and bytes. No time, memory or energy is measured by this.")
    print(f"{LOCAL} local samples, {CANDIDATES} candidates; later: the middle one of {REPEATS}")
    print(
        "spread, range: of repeating it on copies of the device; differs: its weights, or its loss where the old ones "
        "stayed, from what this machine comes to"
    )
    print(result.table(rows, _COLUMNS))
    for row in rows:
        print(f"{row['engine']}, {'first' if row['first'] else 'later'}: {_phases(row)}")
    result.write(args.json, "bench emulated-pi", started, rows, emulated="aarch64 cortex-a72")
    return 0


# -- machines -------------------------------------------------------------------------------------------------------


def _arm64(work: Path, engines: Sequence[str]) -> Machine:
    repository = _HERE.parents[1]
    if not (repository / "pyproject.toml").exists():
        raise InputError("the emulated Pi builds CoDA's wheel, so it runs from a checkout of the repository only")
    with TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
        _do([*pip, "--wheel-dir", folder, str(repository)])
        [wheel] = Path(folder).glob("coda_loop-*.whl")
        build = ["bash", str(_HERE / "build.sh"), str(work), str(wheel), str(SOURCE)]
        _do(build, {"SHIM_FLAGS": " ".join(FLAGS)})
    environment = {**_ENVIRONMENT, "PYTHONPATH": str(work / "site"), "CODA_CACHE": str(work / "cache")}
    guest = [word for name, value in environment.items() for word in ("-E", f"{name}={value}")]
    words = ("qemu-aarch64", "-cpu", _CPU["aarch64"], "-L", str(work / "root"), *guest)
    machine = Machine((*words, str(work / "root/usr/bin/python3.11")), _plugin(work), {}, work / "log")
    (work / "log").unlink(missing_ok=True)
    if "executorch" in engines:
        machine.run(_HERE / "guest.py", "--shim", work / "shim.so", work / "cache")
    return machine


def _native(work: Path) -> Machine:
    """This machine's own architecture under the same emulator: needs no root and no other wheels."""
    emulator = f"qemu-{platform.machine()}"
    if platform.machine() not in _CPU or not shutil.which(emulator):
        raise InputError(f"the gate needs {emulator}: apt install qemu-user")
    source = _HERE / "icount.c"
    _do(["gcc", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-o", str(work / "libicount.so"), str(source)])
    words = (emulator, "-cpu", _CPU[platform.machine()], str(Path(sys.executable).resolve()))
    paths = os.pathsep.join([str(_HERE.parents[1]), *(path for path in sys.path if path)])
    environment = {**_ENVIRONMENT, "PYTHONPATH": paths, "CODA_CACHE": str(cache_folder())}
    return Machine(words, _plugin(work), environment, work / "log")


def _plugin(work: Path) -> tuple[str, ...]:
    return "-plugin", str(work / "libicount.so"), "-d", "plugin"


def _do(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Raises: CodaError: it failed; what it said is on stderr already."""
    done = subprocess.run(command, env=os.environ | dict(environment or {}), stdout=sys.stderr, check=False)
    if done.returncode:
        raise CodaError(f"`{' '.join(command[:3])} …` ended with status {done.returncode}; its words are above")


def _unit_tests(machine: Machine, work: Path) -> None:
    """Run them against the installed wheel. Raises: CodaError: one failed."""
    tests = work / "tests"
    shutil.rmtree(tests, ignore_errors=True)
    shutil.copytree(_HERE.parents[1] / "tests", tests / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    (tests / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    files = [tests / "tests" / "device_runtime" / f"test_{name}.py" for name in _TESTS]
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=ci", "--rootdir", tests]
    without = " and ".join(f"not {name}" for name in _START_PYTHON)
    machine.run(*words, "-c", tests / "pytest.ini", "-k", without, *files)
    _say(machine.log.read_text().strip().splitlines()[-1])


# -- rounds ---------------------------------------------------------------------------------------------------------


def _rounds(made: Prepared, machine: Machine, engines: Sequence[str], host: bool = False) -> list[dict[str, Any]]:
    """A first and a later round on each engine. host: also do the later one on this machine, and compare what it
    comes to.

    Raises:
        CodaError: a round failed, or the machines do not agree.
    """
    rows = []
    with made.serving(CANDIDATES) as url, TemporaryDirectory(prefix="coda-pi-") as folder:
        history = Path(folder) / "history.csv"
        made.write_history(LOCAL, history)
        start = ["--server", url, "--trust", made.trust, "--import", history]
        for engine in engines:
            _say(f"rounds on {engine}")
            home = Path(folder) / engine
            rows.append(_round(machine, home, engine, start) | {"first": True})
            saved = home.with_suffix(".saved")
            home.rename(saved)
            repeats = []
            for _ in range(REPEATS):
                _restore(saved, home)
                repeats.append(_round(machine, home, engine))
            rows.append(summary(repeats) | {"first": False})
            if host:
                emulated = _came_to(home)
                _restore(saved, home)
                _coda_run(home, engine, lambda words: measured(coda_command(*words), machine.log))
                rows[-1]["differs"] = disagreement(emulated, _came_to(home))
    return rows


def _restore(saved: Path, home: Path) -> None:
    """To the same path: a longer one is copied more slowly, and everything after it lies elsewhere in memory."""
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(saved, home)


def summary(repeats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The middle one of several counts of the same round, with their median absolute deviation (spread) and the
    distance of the extremes (range), both relative to it. Now and then a round finds memory laid out otherwise, since
    an answer was a byte longer and the heap grew elsewhere; the middle one is no such outlier."""
    ordered = sorted(repeats, key=lambda row: row["instructions"])
    counts = [row["instructions"] for row in ordered]
    middle = counts[len(counts) // 2]
    deviation = sorted(abs(count - middle) for count in counts)[len(counts) // 2]
    return ordered[len(counts) // 2] | {"spread": deviation / middle, "range": (counts[-1] - counts[0]) / middle}


@dataclass(frozen=True)
class Came:
    """What a round came to. tensors: of the personal weights, if they were kept."""

    outcome: str
    kept: int
    loss: float
    tensors: Mapping[str, Float32]


def _came_to(home: Path) -> Came:
    [record] = json.loads((home / "out.json").read_text())["rows"]
    files = (home / "phone" / "weights").glob("*.safetensors")
    read = [read_tensors(path.read_bytes(), path.name) for path in files]
    tensors = {name: value.astype(np.float32) for found in read for name, value in found.items()}
    return Came(record["outcome"], record["kept"], record["verdict"]["loss_after"], tensors)


def disagreement(one: Came, other: Came) -> float:
    """The largest difference between the weights (or, where none were kept, the losses) of a round done twice, relative
    to the largest of them.

    Raises:
        CodaError: they kept other samples, came to another verdict, or differ by more than rounding explains.
    """
    if (one.outcome, one.kept, sorted(one.tensors)) != (other.outcome, other.kept, sorted(other.tensors)):
        raise CodaError(f"the same round ended otherwise here than emulated: {other} after {one}")
    pairs = [(one.tensors[name], other.tensors[name]) for name in one.tensors]
    pairs = pairs or [(np.array([one.loss], np.float32), np.array([other.loss], np.float32))]
    largest = max(float(np.abs(a).max()) for a, _ in pairs)
    differs = max(float(np.abs(a - b).max()) for a, b in pairs) / max(largest, 1e-12)
    if not differs < AGREEMENT:
        raise CodaError(f"emulated, a round's result differs by {differs:.1e} from this machine's own: not by rounding")
    return differs


def _coda_run(
    home: Path, engine: str, execute: Callable[[Sequence[object]], object], words: Sequence[object] = ()
) -> Any:
    """One round of the device in a folder; its record."""
    out = home / "out.json"
    execute(["device", "run", "--home", home / "phone", "--engine", engine, "--json", out, *words])
    [record] = json.loads(out.read_text())["rows"]
    return record


def _round(machine: Machine, home: Path, engine: str, words: Sequence[object] = ()) -> dict[str, Any]:
    home.mkdir(exist_ok=True)
    phone, count, names = home / "phone", home / "count", home / "phases.json"
    before = _stored(phone)

    def counted(command: Sequence[object]) -> None:
        machine.run(_HERE / "guest.py", names, *command, count=count)

    record = _coda_run(home, engine, counted, words)
    traffic = record["bytes_by_message"].values()
    total, phases = read_counts(count.read_text(), json.loads(names.read_text()))
    return {
        "engine": engine,
        "outcome": record["outcome"],
        "local": record["local"],
        "candidates": record["candidates"],
        "instructions": total,
        "phases": phases,
        "bytes_down": sum(down for _, down in traffic),
        "bytes_up": sum(up for up, _ in traffic),
        "bytes_stored": _stored(phone) - before,
    }


def read_counts(text: str, names: Sequence[str]) -> tuple[int, dict[str, int]]:
    """The plugin's file: (instructions of the process, those of each phase; phases of one name are added up).

    Raises:
        CodaError: marks are missing: the plugin and the guest do not agree.
    """
    marks, total = {}, 0
    for line in text.splitlines():
        kind, *numbers = line.split()
        if kind == "mark":
            marks[int(numbers[0])] = int(numbers[1])
        else:
            total = int(numbers[0])
    if sorted(marks) != list(range(2 * len(names))):
        raise CodaError(f"{len(names)} phases were run, but the plugin saw the marks {sorted(marks)}")
    phases: dict[str, int] = {}
    for number, name in enumerate(names):
        phases[name] = phases.get(name, 0) + marks[2 * number + 1] - marks[2 * number]
    return total, phases


def _stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0


def _phases(row: Mapping[str, Any]) -> str:
    inside = sum(row["phases"].values())
    shares = {"start and end": row["instructions"] - inside} | row["phases"]
    return ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in shares.items())


# -- gate -----------------------------------------------------------------------------------------------------------


def _gate(args: argparse.Namespace, work: Path, started: str) -> int:
    machine = _native(work)
    engines = engines_here(("onnx",), _say)
    with prepared(work / "gate", engines, _say) as made:
        rows = _rounds(made, machine, ["onnx"])
    [later] = [row for row in rows if not row["first"]]
    found = {"versions": _versions(), "total": later["instructions"], "phases": later["phases"]}
    result.write(args.json, "bench emulated-pi --gate", started, rows, **found)
    print(_phases(later))
    if args.update:
        write_atomically(_BASELINE, msgspec.json.format(msgspec.json.encode(found)) + b"\n")
        print(f"{_BASELINE.name} is written")
        return 0
    try:
        baseline = json.loads(_BASELINE.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{_BASELINE} cannot be read ({error}); make it with --update") from None
    if baseline["versions"] != found["versions"]:
        raise InputError(
            f"the baseline was counted with {baseline['versions']}, here are {found['versions']}: counts of other "
            "libraries are not comparable. Make a new one with --update, on the code before the change"
        )
    grown = compare(baseline, found)
    for line in grown:
        print(line)
    return 1 if grown else 0


def compare(baseline: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What grew beyond its tolerance, in words; phases that are new or gone are told too."""
    said = []
    before, after = ({"total": counts["total"]} | counts["phases"] for counts in (baseline, found))
    for name in dict.fromkeys([*before, *after]):
        if name not in before or name not in after:
            said.append(f"{name}: {'a new phase' if name in after else 'the phase is gone'}; --update if that is meant")
        elif after[name] > before[name] * (1 + TOLERANCE) + (SMALL if before[name] < 10 * SMALL else 0):
            said.append(f"{name}: {before[name]:,} instructions became {after[name]:,}")
    return said


def _versions() -> dict[str, str]:
    versions = {name: metadata.version(name) for name in ("numpy", "onnxruntime", "msgspec", "zstandard")}
    return {"machine": platform.machine(), "python": platform.python_version(), **versions}


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
