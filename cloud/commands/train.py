"""`coda train`: the cloud model."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from device_runtime.bundle import write_atomically

DESCRIPTION = """\
Train the cloud model on a prepared data set (`coda data prepare`). The newest events are held out for validation;
training stops when they stop getting better, and the best epoch is kept. A run that was stopped goes on from its last
epoch when it is started again with the same arguments.

example:
  coda train --data runs/data --out runs/model --seed 1
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
        parser.add_argument("--batch", type=int, metavar="N", help="samples in a step")
        parser.add_argument("--rate", type=float, metavar="X", help="learning rate")
        parser.add_argument("--validation", type=float, metavar="SHARE", help="share of the newest events held out")
        parser.add_argument("--seed", type=int, default=0, metavar="N")
        parser.add_argument("--threads", type=int, default=0, metavar="N", help="default: all cores")
        parser.add_argument("--json", type=Path, metavar="OUT", help="write the metrics of every epoch as JSON")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        from cloud.datasets import Dataset
        from cloud.training import train
        from export.checkpoint import TrainSettings

        names = ("model", "history", "epochs", "batch", "rate", "validation", "seed", "threads")
        settings = TrainSettings(**{n: getattr(args, n) for n in names if getattr(args, n) is not None})
        dataset = Dataset.load(args.data)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[loss]}"),
        )
        with Progress(*columns) as bar:
            task = bar.add_task("epoch 1", total=1000, loss="")

            def show(epoch: int, thousandths: int, loss: float) -> None:
                bar.update(task, description=f"epoch {epoch}", completed=thousandths, loss=f"loss {loss:.4f}")

            trained = train(dataset, args.out, settings, show)
        for m in trained.state.history:
            kept = "  <- kept" if m.epoch == trained.state.best else ""
            print(f"epoch {m.epoch}: loss {m.loss:.4f}  AUC {m.auc:.4f}  mean user AUC {m.user_auc:.4f}{kept}")
        if args.json:
            result = {
                "command": "train",
                "dataset": dataset.name,
                "model": settings.model,
                "rows": trained.state.history,
            }
            write_atomically(args.json, msgspec.json.format(msgspec.json.encode(result)))
        return 0
