"""Training at scale: how fast and in how much memory events go from a Parquet table to a data set on disk, from there
into batches, and into a model; and what a second process or a second thread gives.

The table is made up by seed: a user for a hundred events, items of Zipf's popularity, likes by a taste of each user.
Each stage is a process of its own; peak_mib is the kernel's for it (of several processes, the largest), interpreter
and libraries included; cpu_s is of the whole process too, while seconds and events_per_s of `read` and `train` are of
their steps alone. `prepare` and `read` go through all events, as `train` does for one epoch of the model named;
`disk` is what the columns take, in bytes. Layouts (processes x threads in each) are compared on fewer events, with the
same samples in a step, in turns; `gain` is the median over the turns of the first layout's seconds by this one's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import result
from benchmarks.process import ProcessCost, coda_command, measured
from device_runtime.errors import InputError

DESCRIPTION = __doc__ or ""
_CHUNK = 250_000
_ITEMS, _GROUPS = 50_000, 20
_READ = """
import json, sys, time
from pathlib import Path
import numpy as np
from cloud.datasets import StreamedDataset
from cloud.training import new_model
from cloud.training_sets import OnDisk, Share
from export.checkpoint import TrainSettings
data = StreamedDataset.open(Path(sys.argv[1]))
settings = TrainSettings()
source = OnDisk(data, new_model(data, settings).schema, settings)
begun = time.perf_counter()
events = sum(len(batch) for batch in source.epoch(np.random.default_rng(0), 1024, Share()).batches(0))
print(json.dumps([events, time.perf_counter() - begun]))
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--events", type=int, default=10_000_000, metavar="N", help="default: %(default)s")
    parser.add_argument("--model", default="LR", metavar="NAME", help="trained on all of them (%(default)s)")
    parser.add_argument("--compared", type=int, default=1_000_000, metavar="N", help="events of the comparison")
    parser.add_argument("--compared-models", default="LR,DIN", metavar="LIST", help="default: %(default)s")
    parser.add_argument("--layouts", default="1x1,1x2,2x1", metavar="LIST", help="processes x threads (%(default)s)")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="of the comparison (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep what is made here; default: made anew")


def run(args: argparse.Namespace) -> int:
    events, compared = (200_000, 50_000) if args.quick else (args.events, args.compared)
    layouts = [_layout(word) for word in args.layouts.split(",")]
    started = result.now()
    rows: list[result.Row] = []
    with tempfile.TemporaryDirectory(prefix="coda-bench-") as made:
        work = args.work or Path(made)
        work.mkdir(parents=True, exist_ok=True)
        table, data, log = work / "table.parquet", work / "data", work / "log"
        write_table(table, events, args.seed)
        prepare = coda_command("data", "prepare", "--stream", "--interactions", table, "--out", data)
        cost = measured(prepare, log)
        rows.append(_row("prepare", "", events, cost.wall_s, cost, table=table.stat().st_size, disk=_size(data)))
        cost = measured([sys.executable, "-c", _READ, str(data)], work / "read")
        read, seconds = json.loads((work / "read").read_text().splitlines()[-1])
        rows.append(_row("read", "", read, seconds, cost))
        rows.append(_trained(args.model, data, events, (1, 1), 4096, work))
        small = work / "compared"
        write_table(work / "compared.parquet", compared, args.seed)
        prepare = coda_command("data", "prepare", "--stream", "--interactions", work / "compared.parquet")
        measured([*prepare, "--out", str(small)], log)
        for model in args.compared_models.split(","):
            rows += _compared(model, small, compared, layouts, 1 if args.quick else args.turns, work)
    columns = {"stage": "", "model": "", "events": "d", "processes": "d", "threads": "d", "turn": "d"}
    columns |= {
        "seconds": ".1f",
        "gain": ".2f",
        "events_per_s": ".0f",
        "cpu_s": ".1f",
        "events_per_cpu_s": ".0f",
        "peak_mib": ".0f",
        "disk": "d",
        "loss": ".4f",
        "auc": ".4f",
    }
    print(result.table(rows, columns))
    result.write(args.json, "bench training", started, rows)
    return 0


def write_table(path: Path, events: int, seed: int) -> None:
    """A Parquet table of so many events, in the order of time, of one million rows a row group."""
    rng, users = np.random.default_rng(seed), max(events // 100, 2)
    weight = 1 / np.arange(1, _ITEMS + 1)
    share = np.cumsum(weight / weight.sum())
    schema = pa.schema(
        {"user_id": pa.int64(), "item_id": pa.int64(), "timestamp": pa.int64(), "label": pa.float32()}
    )  # fmt: skip
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, events, _CHUNK):
            count = min(_CHUNK, events - start)
            user = rng.integers(0, users, count)
            item = np.minimum(np.searchsorted(share, rng.random(count)), _ITEMS - 1)
            liked = rng.random(count) < np.where(user % _GROUPS == item % _GROUPS, 0.9, 0.35)
            time = 1_600_000_000 + start + np.arange(count)
            columns = [pa.array(values) for values in (user, item, time, liked.astype(np.float32))]
            writer.write_table(pa.table(columns, schema=schema))


def _layout(word: str) -> tuple[int, int]:
    """(processes, threads in each). Raises: InputError."""
    processes, cross, threads = word.partition("x")
    if not (cross and processes.isdecimal() and threads.isdecimal() and int(processes) and int(threads)):
        raise InputError(f"--layouts: {word!r} is not of the form 2x1, processes x threads in each")
    return int(processes), int(threads)


def _compared(
    model: str, data: Path, events: int, layouts: Sequence[tuple[int, int]], turns: int, work: Path
) -> list[result.Row]:
    """A row a turn and layout, and one a layout of medians."""
    rows = [
        {**_trained(model, data, events, layout, 1024 // layout[0], work), "turn": turn}
        for turn in range(1, turns + 1)
        for layout in layouts
    ]
    found: list[result.Row] = list(rows)
    first = rows[:: len(layouts)]
    for number in range(len(layouts)):
        mine = rows[number :: len(layouts)]
        middle = sorted(mine, key=lambda row: row["seconds"])[len(mine) // 2]
        gain = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(first, mine, strict=True))
        found.append({**middle, "stage": "compare", "turn": None, "gain": gain})
    return found


def _trained(model: str, data: Path, events: int, layout: tuple[int, int], batch: int, work: Path) -> dict[str, Any]:
    """batch: of a process."""
    processes, threads = layout
    out, told = work / "model", work / "told.json"
    shutil.rmtree(out, ignore_errors=True)  # or it would go on from there
    words = ["train", "--data", data, "--out", out, "--model", model, "--epochs", 1, "--batch", batch]
    command = coda_command(*words, "--threads", threads, "--json", told)
    if processes > 1:
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [command[0], *start, *command[1:]]
    cost = measured(command, work / "log")
    found = json.loads(told.read_text())
    (epoch,) = found["rows"]
    return _row(
        "train",
        model,
        events,
        found["step_seconds"],
        cost,
        processes=processes,
        threads=found["threads"],
        loss=epoch["loss"],
        auc=epoch["auc"],
    )


def _row(stage: str, model: str, events: int, seconds: float, cost: ProcessCost, **more: object) -> dict[str, Any]:
    """seconds: wall; of `read` and `train`, of the steps alone. cpu_s: of the whole process, its start included."""
    return {
        "stage": stage,
        "model": model,
        "events": events,
        "processes": 1,
        "threads": None,
        "turn": None,
        "seconds": seconds,
        "gain": None,
        "events_per_s": events / seconds,
        "cpu_s": cost.cpu_s,
        "events_per_cpu_s": events / cost.cpu_s,
        "peak_mib": cost.peak_mib,
        "disk": None,
        "loss": None,
        "auc": None,
        **more,
    }


def _size(data: Path) -> int:
    return sum(path.stat().st_size for path in (data / "events").iterdir())
