"""`coda train`: the cloud model."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import msgspec

from device_runtime.bundle import write_atomically

DESCRIPTION = """\
Train the cloud model on a prepared data set (`coda data prepare`). The newest events are held out for validation;
training stops when they stop getting better, and the best epoch is kept. A run that was stopped goes on from its last
checkpoint when it is started again with the same arguments. Data prepared with `--stream` is read from disk in blocks,
and may be larger than memory.

Under `torchrun` its processes train together, on one machine or on many: each on its share of the data, all to the same
weights. --batch is of one process. All machines need the data; the first process writes --out.

example:
  coda train --data runs/data --out runs/model --seed 1
  torchrun --nproc-per-node 8 --no-python coda train --data runs/data --out runs/model
  torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29400 --no-python coda train …
"""


class Command:
    help = "train the cloud model (DIN by default) and its sample encoder"

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        parser.description = DESCRIPTION
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="what `coda data prepare` wrote")
        parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="checkpoint folder")
        parser.add_argument("--model", default="DIN", metavar="NAME", help="a model's name or package.module:Class")
        parser.add_argument("--history", type=int, default=50, metavar="N", help="items in a history (%(default)s)")
        parser.add_argument("--epochs", type=int, metavar="N", help="at most")
        parser.add_argument("--batch", type=int, metavar="N", help="samples in a step of a process")
        parser.add_argument("--rate", type=float, metavar="X", help="learning rate")
        parser.add_argument("--validation", type=float, metavar="SHARE", help="share of the newest events held out")
        parser.add_argument("--seed", type=int, default=0, metavar="N")
        parser.add_argument(
            "--threads", type=int, default=0, metavar="N", help="of a process; default: all cores, divided"
        )
        parser.add_argument(
            "--save-every", type=float, metavar="SECONDS", help="between checkpoints within an epoch (300)"
        )
        parser.add_argument("--json", type=Path, metavar="OUT", help="write the metrics of every epoch as JSON")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        import torch
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        from cloud.datasets import Dataset, StreamedDataset
        from cloud.distributed import team
        from cloud.training import SAVE_EVERY, train
        from export.checkpoint import TrainSettings

        names = ("model", "history", "epochs", "batch", "rate", "validation", "seed", "threads")
        settings = TrainSettings(**{n: getattr(args, n) for n in names if getattr(args, n) is not None})
        dataset = StreamedDataset.open(args.data) if StreamedDataset.is_in(args.data) else Dataset.load(args.data)
        save_every = SAVE_EVERY if args.save_every is None else args.save_every
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[loss]}"),
        )
        with team() as together, Progress(*columns, disable=not together.leads) as bar:
            task = bar.add_task("epoch 1", total=1000, loss="")

            stepping: dict[int, tuple[float, float]] = {}  # epoch: when its first and its last step were done

            def show(epoch: int, thousandths: int, loss: float) -> None:
                now = time.monotonic()
                stepping[epoch] = (stepping.get(epoch, (now, now))[0], now)
                bar.update(task, description=f"epoch {epoch}", completed=thousandths, loss=f"loss {loss:.4f}")

            trained = train(dataset, args.out, settings, show, team=together, save_every=save_every)
        if not together.leads:
            return 0
        threads = torch.get_num_threads()
        print(f"processes: {together.share.of}, threads in each: {threads}, epochs: {len(trained.state.history)}")
        for m in trained.state.history:
            kept = "  <- kept" if m.epoch == trained.state.best else ""
            print(f"epoch {m.epoch}: loss {m.loss:.4f}  AUC {m.auc:.4f}  mean user AUC {m.user_auc:.4f}{kept}")
        if args.json:
            result = {
                "command": "train",
                "dataset": dataset.name,
                "model": settings.model,
                "processes": together.share.of,
                "threads": threads,
                "step_seconds": sum(last - first for first, last in stepping.values()),
                "rows": trained.state.history,
            }
            write_atomically(args.json, msgspec.json.format(msgspec.json.encode(result)))
        return 0
