"""How long a DIN training step takes: PyTorch eager beside the exported graph on each engine.

One process, one thread, interleaved calls, median after a warm-up; differences under some ten per cent are noise on a
shared machine. Every engine runs the graph that the exporter would ship, and its parity is checked first.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks import result
from device_runtime.engines import open_engine
from export.graphs import EXAMPLE_ROWS, TRAIN_BATCH, logits_of, recommender_plans
from export.lowering import to_executorch, to_onnx, trace
from export.models.base import Catalogue
from export.models.din import DIN
from export.package import CLIP
from export.parity import Oracle, check
from export.step import SGD, Step, weighted_log_loss

WARM_UP = 20


DESCRIPTION = __doc__ or ""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--history", type=int, default=50, metavar="N")
    parser.add_argument("--calls", type=int, default=300, metavar="N")


def run(args: argparse.Namespace) -> int:
    calls = 40 if args.quick else args.calls
    torch.set_num_threads(1)
    torch.manual_seed(0)
    started = result.now()

    categories = torch.randint(1, 20, (EXAMPLE_ROWS, 4))
    model = DIN(Catalogue(EXAMPLE_ROWS, 20, categories), history=args.history)
    step = Step(logits_of(model), tuple(n for n, _ in model.named_parameters()), SGD(), CLIP)
    traced = trace(recommender_plans(model, step)[2])
    examples = traced.plan.examples
    inputs = {name: value.numpy() for name, value in examples.items()}

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    features = {f.name: examples[f.name] for f in model.schema.features}

    def eager() -> None:
        optimizer.zero_grad()
        loss = weighted_log_loss(model(**features), examples["label"], examples["sample_weight"])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()

    runs: dict[str, Callable[[], object]] = {"pytorch eager": eager}
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, lower in (("onnx", to_onnx), ("executorch", to_executorch)):
            path = Path(folder) / name
            path.write_bytes(lower(traced))
            engine = open_engine(name, threads=1)
            check(traced.plan, Oracle(model, step), engine, path)
            graph = engine.load(path, traced.plan.spec)
            sizes[name] = path.stat().st_size
            runs[name] = partial(graph, inputs)
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(WARM_UP + calls):
            for name, call in runs.items():
                begin = time.perf_counter()
                call()
                taken[name].append(1e3 * (time.perf_counter() - begin))

    medians = {name: statistics.median(ms[WARM_UP:]) for name, ms in taken.items()}
    rows = [
        {
            "model": "DIN",
            "engine": name,
            "threads": 1,
            "history": args.history,
            "batch": TRAIN_BATCH,
            "ms_per_step": ms,
            "ratio_to_eager": medians["pytorch eager"] / ms,
            "graph_bytes": sizes.get(name),
        }
        for name, ms in medians.items()
    ]
    print(f"DIN, history {args.history}, batch {TRAIN_BATCH}, one thread, median of {calls} interleaved steps")
    print(result.table(rows, {"engine": "", "ms_per_step": ".3f", "ratio_to_eager": ".2f", "graph_bytes": "d"}))
    result.write(args.json, "bench engines", started, rows)
    return 0
