"""How fast, how exact and how large: our store beside others that search vectors, over the same ones."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from benchmarks import plot, result
from benchmarks.matching_data import CENTROIDS, make
from benchmarks.matching_plot import costs
from benchmarks.matching_stores import RECALL, STORES
from benchmarks.process import measured
from device_runtime.errors import CodaError, InputError

DESCRIPTION = """\
Search the same vectors by our store (`coda`: the pool on disk under FAISS), hnswlib, usearch, Milvus Lite and by
comparing with all. Vectors are clustered as embeddings are (benchmarks/matching_data.py says how); a device asks with 8
vectors at once for k neighbours each. Every store builds in one process and searches in a fresh one, on one thread:
memory_bytes is what that one's resident memory grows by, qps is vectors asked with per CPU second at the first setting
with a recall of 0.95 (for Milvus Lite: of its process), build_s CPU seconds. Stores that are not installed, or that are
left out because they would take hours, are named.

example:
  coda bench matching --samples 100000 1000000 --json matching.json
"""
_SLOW = {"hnswlib": 1_000_000, "usearch": 1_000_000, "usearch-i8": 1_000_000, "milvus-lite": 100_000}
"""Samples beyond which building takes more than an hour of one core, or does not end; see --all."""
_COLUMNS = {
    "store": "", "samples": ",", "build_s": ",.1f", "memory_bytes": ",", "bytes_per_sample": ".0f", "qps": ",.0f",
    "recall": ".3f", "setting": "", "open_s": ".2f", "append_per_s": ",.0f",
}  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, nargs="+", metavar="N", help="pool sizes (100000 1000000)")
    parser.add_argument("--dim", type=int, default=64, metavar="N", help="of the vectors (%(default)s)")
    parser.add_argument("-k", type=int, default=200, metavar="N", help="neighbours for each vector (%(default)s)")
    parser.add_argument("--devices", type=int, default=50, metavar="N", help="that ask (%(default)s)")
    parser.add_argument("--stores", nargs="+", choices=STORES, metavar="NAME", help=f"of {', '.join(STORES)}")
    parser.add_argument("--all", action="store_true", help="also what takes hours at these sizes")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the vectors")
    parser.add_argument("--plot", type=Path, metavar="OUT", help="draw costs by the number of samples, as SVG")


def run(args: argparse.Namespace) -> int:
    sizes = args.samples or ([20_000] if args.quick else [100_000, 1_000_000])
    if min(*sizes, 10**9) < 20 * args.k or args.dim < 2 or args.k < 1 or args.devices < 1:
        raise InputError(f"needs at least {20 * args.k} samples, two dimensions, one neighbour and one device")
    started, rows, missing = result.now(), [], []
    for samples in sizes:
        with TemporaryDirectory(prefix="coda-bench-") as name:
            folder = Path(name)
            make(folder, samples, args.dim, 10 if args.quick else args.devices, args.k, args.seed)
            for store in args.stores or STORES:
                if importlib.util.find_spec(STORES[store][1]) is None:
                    missing.append(f"{store} IS NOT INSTALLED: it is not compared")
                elif samples > _SLOW.get(store, samples) and not args.all:
                    missing.append(f"{store} IS LEFT OUT at {samples:,} samples: too slow to build; see --all")
                else:
                    try:
                        facts = _measure(store, folder, 0.1 if args.quick else 2.0)
                    except CodaError as error:
                        missing.append(f"{store} FAILED at {samples:,} samples: {error}")
                        continue
                    row = {"store": store, "samples": samples, "dim": args.dim, "k": args.k, **facts}
                    rows.append(row | {"bytes_per_sample": row["memory_bytes"] / samples})
                    print(result.table(rows[-1:], _COLUMNS), flush=True)
    print(f"\n{args.dim} dimensions, k = {args.k}, {CENTROIDS} vectors a device\n{result.table(rows, _COLUMNS)}")
    for line in [*dict.fromkeys(missing), *_verdicts(rows)]:
        print(line)
    result.write(args.json, "bench matching", started, rows, missing=missing)
    if args.plot and rows:
        plot.write(args.plot, costs(rows))
    return 0 if rows and not any("FAILED" in line for line in missing) else 1


def _measure(store: str, data: Path, seconds: float) -> dict[str, object]:
    folder = data / store
    folder.mkdir()
    facts: dict[str, object] = {}
    for step in ("build", "search"):
        out = data / f"{store}.json"
        words = [step, store, str(data), str(folder), str(out), str(seconds)]
        command = [sys.executable, "-m", "benchmarks.matching_stores", *words]
        measured(command, data / f"{store}.log", {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
        facts |= msgspec.json.decode(out.read_bytes(), type=dict[str, object])
    shutil.rmtree(folder)
    return facts


def _verdicts(rows: list[dict[str, object]]) -> list[str]:
    """Ours beside the fastest other that reaches the recall."""
    told = []
    for ours in (row for row in rows if row["store"] == "coda"):
        reached = [row for row in rows if row["samples"] == ours["samples"] and _of(row, "recall") >= RECALL]
        others = [row for row in reached if not str(row["store"]).startswith("coda")]
        if others:
            best = max(others, key=lambda row: _of(row, "qps"))
            speed, memory = (_of(ours, name) / _of(best, name) for name in ("qps", "memory_bytes"))
            told.append(
                f"{ours['samples']:,} samples: {speed:.2f} times the queries of {best['store']}, the fastest other, in "
                f"{memory:.2f} of its memory"
            )
    return told


def _of(row: dict[str, object], name: str) -> float:
    value = row[name]
    assert isinstance(value, (int, float))
    return float(value)
