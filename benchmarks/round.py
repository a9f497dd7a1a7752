"""What a whole round costs a device: real server, real device process, loopback, the example data.

CPU, wall time and peak memory are those of the device's whole process as the kernel accounts for it: interpreter,
imports, HTTP, SQLite and the engine included. `phases` is what the round's own meter says of its parts. Bytes are
counted at the device's socket, headers included, the delivery of the report too. `first` is a device that starts with
nothing but the ExecuTorch shim, which is built once and before: it enrols, imports the history and pulls the bundle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import plot, result
from benchmarks.prepared import engines_here, prepared
from benchmarks.process import coda_command, measured
from device_runtime.engines.shim import cache_folder
from device_runtime.errors import InputError

DESCRIPTION = __doc__ or ""
CASES = ((100, 500), (20, 500), (2000, 500), (100, 20), (100, 2000))
"""(local samples, candidates). The first is the one that the targets are stated for."""
_QUICK = CASES[:1]
Run = dict[str, Any]
"""A round's fields, as in the rows."""
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_COLUMNS = {
    "engine": "",
    "local": "d",
    "candidates": "d",
    "first": "",
    "cpu_s": ".2f",
    "wall_s": ".2f",
    "peak_mib": ".1f",
    "bytes_down": "d",
    "bytes_up": "d",
    "bytes_stored": "d",
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", action="append", choices=("onnx", "executorch"), help="default: both")
    parser.add_argument("--repeat", type=int, metavar="N", help="devices, and later rounds of each (3; quick: 1)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the prepared server here, and use it again")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the phases as SVG")


def run(args: argparse.Namespace) -> int:
    started = result.now()
    repeat = args.repeat if args.repeat is not None else 1 if args.quick else 3
    if repeat < 1:
        raise InputError("--repeat is at least 1")
    engines = engines_here(args.engine or ("onnx", "executorch"), _say)  # builds the shim in the user's cache
    rows: list[dict[str, object]] = []
    with prepared(args.work, engines, _say) as made, TemporaryDirectory(prefix="coda-round-") as folder:
        cases = _QUICK if args.quick else CASES
        for candidates in dict.fromkeys(candidates for _, candidates in cases):
            with made.serving(candidates) as url:
                for local in [local for local, many in cases if many == candidates]:
                    # engines take turns, so that what else the machine does falls on both
                    runs: dict[str, tuple[list[Run], list[Run]]] = {engine.name: ([], []) for engine in engines}
                    for number in range(repeat):
                        for engine in engines:
                            _say(f"{local} local samples, {candidates} candidates, {engine.name}")
                            home = Path(folder) / f"{engine.name}-{local}-{candidates}-{number}"
                            history = home / "history.csv"
                            home.mkdir()
                            made.write_history(local, history)
                            start = ["--server", url, "--trust", made.trust, "--import", history]
                            first = one_round(home, engine.name, start)
                            later = [one_round(home, engine.name) for _ in range(repeat)]
                            runs[engine.name][0].append(first)
                            runs[engine.name][1].extend(later)
                    for name, (firsts, laters) in runs.items():
                        rows += [_median(name, local, True, firsts), _median(name, local, False, laters)]
    print(f"Whole device process, median of {repeat} devices and {repeat * repeat} later rounds, one thread")
    print(result.table(rows, _COLUMNS))
    result.write(args.json, "bench round", started, rows)
    if args.plot:
        plot.write(args.plot, plot.phases(rows))
    return 0


def one_round(home: Path, engine: str, words: Sequence[object] = ()) -> Run:
    """Run a round in a process of its own; the fields of a row, of this round alone."""
    out, phone = home / "out.json", home / "phone"
    before = _stored(phone)
    command = coda_command("device", "run", "--home", phone, "--engine", engine, "--json", out, *words)
    cost = measured(command, home / "log", _ONE_THREAD | {"CODA_CACHE": str(cache_folder())})
    [record] = json.loads(out.read_text())["rows"]
    traffic = record["bytes_by_message"].values()
    return {
        "candidates": record["candidates"],
        "outcome": record["outcome"],
        "cpu_s": cost.cpu_s,
        "wall_s": cost.wall_s,
        "peak_mib": cost.peak_mib,
        "bytes_down": sum(down for _, down in traffic),
        "bytes_up": sum(up for up, _ in traffic),
        "bytes_stored": _stored(phone) - before,
        "phases": record["phases"],
        "bytes_by_message": record["bytes_by_message"],
    }


def _median(engine: str, local: int, first: bool, runs: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    def middle(values: Sequence[float]) -> float:
        return statistics.median(values)

    numbers = ("cpu_s", "wall_s", "peak_mib", "bytes_down", "bytes_up", "bytes_stored", "candidates")
    found = {name: middle([run[name] for run in runs]) for name in numbers}
    whole = {name: round(found[name]) for name in numbers if name.startswith("bytes") or name == "candidates"}
    names = list(dict.fromkeys(phase["phase"] for run in runs for phase in run["phases"]))
    phases = {}
    for name in names:
        each = [[p for p in run["phases"] if p["phase"] == name] for run in runs]
        phases[name] = {
            "cpu_s": middle([sum(p["cpu_user_s"] + p["cpu_system_s"] for p in run) for run in each]),
            "wall_s": middle([sum(p["wall_s"] for p in run) for run in each]),
            "peak_mib": middle([max((p["peak_mib"] for p in run), default=0.0) for run in each]),
            "bytes_down": round(middle([sum(p["bytes_down"] for p in run) for run in each])),
            "bytes_up": round(middle([sum(p["bytes_up"] for p in run) for run in each])),
        }
    messages = {
        label: [round(middle([run["bytes_by_message"].get(label, (0, 0))[side] for run in runs])) for side in (0, 1)]
        for label in dict.fromkeys(label for run in runs for label in run["bytes_by_message"])
    }
    return (
        {"engine": engine, "local": local, "first": first}
        | found
        | whole
        | {
            "phases": phases,
            "bytes_by_message": messages,
        }
    )


def _stored(folder: Path) -> int:
    """Bytes of the device's home."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
