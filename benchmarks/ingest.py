"""How many samples a second join a pool, durable, and what preparing them for matching takes after that.

The table is made up by seed: films of the example data by Zipf's popularity, a user for 150 rows. `pool` is the first
lap of `coda data ingest --interactions` as it tells it itself, after its imports and the opening of the home: reading
the Parquet table, pseudonyms, sorting, histories, the released encoder on one thread, and segments synced to disk.
`prepared` is the second, when all of these can be found already: merging segments, and what the release's matching
needs beside them (pooled: predictions and profiles; nearest: indexes). `process` is the whole command. In turns, each
into a pool of its own that is empty before. `http`: devices that hand in samples over loopback while the server answers
nothing else, each contribution durable before it is acknowledged; CPU is the server's, with what it does in the
background.
"""

from __future__ import annotations

import argparse
import base64
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from nacl.signing import SigningKey

from benchmarks import result
from benchmarks.load import Plan
from benchmarks.prepared import Prepared, engines_here, prepared
from benchmarks.process import coda_command, measured
from benchmarks.serve import ask, cpu_s, server, set_limits
from cloud.home import ServerHome
from device_runtime.errors import CodaError, InputError
from device_runtime.wire import encode_contribution

DESCRIPTION = __doc__ or ""
_EACH = 150
_DEVICES = 4
_COLUMNS = {
    "stage": "", "samples": "d", "turn": "d", "seconds": ".1f", "per_s": ",.0f", "cpu_s": ".1f", "per_cpu_s": ",.0f",
    "peak_mib": ".0f",
}  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, metavar="N", help="rows of the table (1000000; quick: 50000)")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="of the table (%(default)s; quick: 1)")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="over HTTP (%(default)s; quick: 1)")
    parser.add_argument("--contribution", type=int, default=1000, metavar="N", help="samples handed in at once")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the table")


def run(args: argparse.Namespace) -> int:
    samples = args.samples or (50_000 if args.quick else 1_000_000)
    turns, seconds = (1, 1.0) if args.quick else (args.turns, args.seconds)
    if min(samples, args.contribution) < 1000 or turns < 1 or seconds <= 0:
        raise InputError("--samples and --contribution are at least 1000, --turns at least 1, --seconds above 0")
    started, rows = result.now(), []
    with TemporaryDirectory(prefix="coda-bench-") as temporary:
        work = Path(temporary)
        with prepared(work / "prepared", engines_here(["onnx"], _say), _say) as made:
            write_table(work / "table.parquet", made.dataset.items[1:], samples, args.seed)
            for turn in range(1, turns + 1):
                rows += from_table(emptied(made.home, work / "home"), work, turn)
            for name in ("pool", "prepared", "process"):
                mine = sorted((row for row in rows if row["stage"] == name), key=lambda row: _of(row, "seconds"))
                rows.append(mine[len(mine) // 2] | {"turn": None})
            rows.append(_over_http(emptied(made.home, work / "home"), work, made, args.contribution, seconds))
    print(result.table(rows, _COLUMNS))
    result.write(args.json, "bench ingest", started, rows)
    return 0


def write_table(path: Path, items: Sequence[str], rows: int, seed: int) -> None:
    """A Parquet table of so many rows, in the order of time."""
    rng = np.random.default_rng(seed)
    weight = 1 / np.arange(1, len(items) + 1)
    pick = rng.permutation(len(items))[rng.choice(len(items), rows, p=weight / weight.sum())]
    columns = {
        "user_id": pa.array(rng.integers(0, max(rows // _EACH, 1), rows)),
        "item_id": pa.DictionaryArray.from_arrays(pa.array(pick, pa.int32()), pa.array(items)).cast(pa.string()),
        "timestamp": pa.array(1_600_000_000 + np.arange(rows)),
        "label": pa.array((rng.random(rows) < 0.5).astype(np.float32)),
    }
    pq.write_table(pa.table(columns), path)


def emptied(source: Path, home: Path) -> Path:
    """A server's home with a release and an empty pool."""
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(source, home, ignore=shutil.ignore_patterns("pool", "port", ".lock"))
    return home


def from_table(home: Path, work: Path, turn: int) -> list[dict[str, object]]:
    """A row a stage of ingesting `work`'s table. Raises: CodaError: it failed."""
    told = work / "told.json"
    words = ["data", "ingest", "--home", home, "--interactions", work / "table.parquet", "--json", told]
    cost = measured(coda_command(*words), work / "log")
    found = json.loads(told.read_text())
    added = found["added"]
    return [
        *(_row(name, added, found[name]["seconds"], found[name]["cpu_s"], turn) for name in ("pool", "prepared")),
        _row("process", added, cost.wall_s, cost.cpu_s, turn) | {"peak_mib": cost.peak_mib},
    ]


def _over_http(home: Path, work: Path, made: Prepared, each: int, seconds: float) -> dict[str, object]:
    set_limits(home)
    with ServerHome(made.home) as source:
        pool = source.pool(source.release()[1])
        segment = max(pool.segments, key=len)
        starts = np.linspace(0, len(segment) - each, 8).astype(np.int64)
        bodies = [encode_contribution(pool.gather(np.arange(at, at + each) + segment.base)) for at in starts]
    keys = [SigningKey.generate().encode().hex() for _ in range(_DEVICES)]
    with server(home, 1, work / "server.log") as (url, process):
        given = [base64.b64encode(body).decode() for body in bodies]
        before = cpu_s(process.pid)
        outcome = ask(Plan(url, "/v1/contributions", given, keys, _DEVICES, seconds, 0.0, enrol=True))
        used = cpu_s(process.pid) - before
    if refused := {status: n for status, n in outcome.statuses.items() if status != "204"}:
        raise CodaError(f"contributions were refused: {refused}")
    count = each * len(outcome.latencies_ms)
    with ServerHome(home) as opened:
        held = len(opened.pool(opened.release()[1]))
    if held != count:
        raise CodaError(f"{count} samples were acknowledged, and {held} are in the pool")
    return _row("http", count, outcome.seconds, used, None)


def _row(stage: str, samples: int, seconds: float, used: float, turn: int | None) -> dict[str, object]:
    return {
        "stage": stage,
        "samples": samples,
        "turn": turn,
        "seconds": seconds,
        "per_s": samples / seconds,
        "cpu_s": used,
        "per_cpu_s": samples / used,
        "peak_mib": None,
    }


def _of(row: dict[str, object], name: str) -> float:
    value = row[name]
    assert isinstance(value, (int, float))
    return float(value)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
