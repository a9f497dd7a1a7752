"""`coda nightly`: from the day's events to a proposed release."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from device_runtime.bundle import write_atomically

DESCRIPTION = """\
The job of a night, in one command: read the interactions in bounded memory, train (from the released model where the
vocabularies permit), compare with the released model on the newest events, which neither has seen, export with parity
checks, sign, and propose. A model that does worse is not proposed: exit status 8, and the reason in words and in JSON.

A job that was killed goes on where it was when the same command is given again. WORK has a folder for each night, with
`run.json`, the model, the bundle and `proposal.json`. Nothing reaches a device unless --publish is given: with --plan
the server has the bundle, and its release waits on the first rung of its ladder; without, the commands that do so are
printed. The key must be there; the server's folder may be in use.

example:
  coda nightly --home runs/server --interactions /data/events --items items.parquet --work runs/nightly \\
      --key runs/release.key --plan --json tonight.json
"""


class Command:
    help = "train, compare with the released model, export, sign and propose: the job of a night"

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        parser.description = DESCRIPTION
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.add_argument("--home", type=Path, required=True, metavar="DIR", help="the server's folder")
        parser.add_argument("--interactions", required=True, metavar="F", help="table, folder of tables, or fsspec URL")
        parser.add_argument("--items", type=Path, metavar="F", help="items table")
        parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="where nights have their folders")
        parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="release key that devices trust")
        parser.add_argument("--positive-at", type=float, metavar="X", help="least rating that counts as a like")
        parser.add_argument(
            "--negatives", type=int, default=1, metavar="N", help="per positive, if there are no labels"
        )
        parser.add_argument("--name", default="nightly", metavar="NAME", help="of the data set (%(default)s)")
        parser.add_argument(
            "--held-out", type=float, default=0.05, metavar="SHARE", help="of the newest events, to compare on (0.05)"
        )
        parser.add_argument(
            "--margin", type=float, default=0.005, metavar="X", help="mean user AUC that may be lost (%(default)s)"
        )
        parser.add_argument("--engines", default="onnx,executorch", metavar="LIST", help="default: %(default)s")
        parser.add_argument("--processes", type=int, default=1, metavar="N", help="that train together on this machine")
        then = parser.add_mutually_exclusive_group()
        then.add_argument(
            "--plan", action="store_const", dest="then", const="plan", default="leave",
            help="have the server take in an accepted model, and plan its release; whoever releases advances it",
        )  # fmt: skip
        then.add_argument(
            "--publish",
            action="store_const",
            dest="then",
            const="publish",
            help="to everyone at once, without a ladder",
        )
        parser.add_argument(
            "--named",
            action="append",
            default=[],
            metavar="DEVICE",
            help="who tries it before any share of all devices",
        )
        training = parser.add_argument_group("training (as `coda train` has them)")
        training.add_argument("--model", metavar="NAME")
        training.add_argument("--history", type=int, metavar="N")
        training.add_argument("--epochs", type=int, metavar="N")
        training.add_argument("--batch", type=int, metavar="N")
        training.add_argument("--rate", type=float, metavar="X")
        training.add_argument("--validation", type=float, metavar="SHARE")
        training.add_argument("--seed", type=int, metavar="N")
        training.add_argument("--threads", type=int, metavar="N")
        parser.add_argument("--json", type=Path, metavar="OUT", help="write what was done: stages, seconds, figures")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        from rich.console import Console

        from cloud.nightly import Declined, NightlySettings, nightly
        from device_runtime import __version__
        from export.checkpoint import TrainSettings

        names = ("model", "history", "epochs", "batch", "rate", "validation", "seed", "threads")
        chosen = {"validation": 0.05} | {n: getattr(args, n) for n in names if getattr(args, n) is not None}
        given = ("positive_at", "negatives", "name", "held_out", "margin", "processes", "then")
        settings = NightlySettings(
            home=str(args.home.resolve()),
            interactions=args.interactions if "://" in args.interactions else str(Path(args.interactions).resolve()),
            key=str(args.key.resolve()),
            items=None if args.items is None else str(args.items.resolve()),
            engines=tuple(word.strip() for word in args.engines.split(",") if word.strip()),
            named=tuple(args.named),
            train=TrainSettings(**chosen),
            **{n: getattr(args, n) for n in given},
        )
        with Console(file=sys.stderr).status("prepare") as status:
            record = nightly(settings, args.work, lambda stage, what: status.update(f"{stage}: {what}"))
        if args.json:
            result = {"command": "nightly", "version": __version__, **msgspec.to_builtins(record)}
            write_atomically(args.json, msgspec.json.format(msgspec.json.encode(result)))
        for stage in record.stages:
            print(f"{stage.name:9}{stage.seconds:8.1f} s")
        if record.outcome == "declined":
            raise Declined(f"the model of {record.run} is not proposed: {record.reason}")
        print(f"{record.run}: {record.outcome}. {record.reason or record.facts('evaluate')['told']}")
        if commands := record.facts("propose").get("commands"):
            print("to release it:", *commands, sep="\n  ")
        return 0
