"""`coda device …`: everything a device does, from enrolment to ranking.

Each verb's module is imported when the verb is called: recording an event must not cost what a round costs, and the
idle agent must stay small.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

DESCRIPTION = """\
What runs on a device: it keeps the user's events, runs rounds against a server, and ranks. Everything it stores is
under --home.

example:
  coda device run --home phone --server http://127.0.0.1:8470 --trust runs/bundle-1/release.pub --import history.csv
  coda device rank --home phone --top 5
  coda device status --home phone
"""


class Command:
    help = "run rounds on this device, rank, and see what it holds"

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        parser.description = DESCRIPTION
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

        def verb(name: str, function: str, summary: str) -> argparse.ArgumentParser:
            """function: module:name below `device_runtime.commands`."""
            sub = verbs.add_parser(name, help=summary, description=summary)
            sub.add_argument("--home", type=Path, required=True, metavar="DIR", help="the device's folder")
            sub.set_defaults(verb_run=function)
            return sub

        sub = verb("enrol", "rounds:enrol", "make this device's key and announce it to a server; harmless if repeated")
        _add_server(sub, required=True)
        verb("rotate-key", "rounds:rotate_key", "replace this device's key by a new one; it stays the same device")
        sub = verb(
            "import",
            "data:import_history",
            "take in a user's history: CSV or JSON lines of item_id, timestamp, label or rating",
        )
        sub.add_argument("file", type=Path, metavar="FILE")
        _configure_event(verb("event", "data:event", "append one event, or those of a file or of standard input"))
        sub = verb("run", "rounds:run", "run rounds: pull, match, filter, fine-tune, judge, activate or keep, report")
        _add_server(sub, required=False)
        _add_engine(sub)
        sub.add_argument("--import", dest="history", type=Path, metavar="FILE", help="import this history first")
        sub.add_argument("--rounds", type=int, default=1, metavar="N")
        sub.add_argument("--seed", type=int, default=0, metavar="N")
        sub.add_argument("--no-match", action="store_true", help="train on local samples alone; nothing is asked")
        sub.add_argument("--contribute", action="store_true", help="hand this user's samples to the pool: your choice")
        sub.add_argument("--no-evaluate", action="store_true", help="decline to compare configurations for the cloud")
        sub.add_argument("--scheduled", action="store_true", help="within the policy's budgets; give way to the app")
        _add_cost(sub)
        sub.add_argument("--power-csv", type=Path, metavar="FILE", help="a power meter's log: time_s,watts")
        _add_json(sub)
        sub = verb("rank", "rounds:rank", "the best items for this user, by the weights that serve")
        _add_engine(sub)
        sub.add_argument("--items", metavar="K1,K2,…", help="rank only these; default: all with rows on the device")
        sub.add_argument("--items-file", type=Path, metavar="FILE", help="the same, one key a line")
        sub.add_argument("--top", type=int, default=10, metavar="N")
        sub.add_argument("--weights", choices=("active", "base"), default="active")
        _add_json(sub)
        sub = verb("status", "rounds:status", "what this device holds and did")
        _add_cost(sub)
        _add_json(sub)
        sub = verb("evaluate", "rounds:evaluate", "how well later events are ranked: cloud, local-only, active weights")
        _add_engine(sub)
        sub.add_argument("--held-out", type=Path, required=True, metavar="FILE", help="later events, as for import")
        sub.add_argument("--seed", type=int, default=0, metavar="N", help="of the local-only tuning")
        _add_json(sub)
        sub = verb("agent", "scheduled:agent", "run rounds by themselves, when the device has nothing else to do")
        sub.add_argument("--look-every", type=float, default=60.0, metavar="S", help="seconds between two looks")
        sub.add_argument("--once", action="store_true", help="look once, say what was found, and end")
        sub = verb("conditions", "scheduled:show", "what the platform tells, and whether a round might run now")
        _add_json(sub)
        sub = verb("export", "data:export", "write everything this device holds about the user, in plain files")
        sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder that does not exist yet")
        verb("repair", "data:mend", "find what is damaged, save what can be saved, and say what is lost")
        sub = verb("erase", "data:erase", "delete everything this device holds, its identity included")
        sub.add_argument("--yes", action="store_true", help="really")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        module, _, name = args.verb_run.partition(":")
        function = getattr(importlib.import_module(f"device_runtime.commands.{module}"), name)
        return int(function(args))


def _configure_event(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--item", metavar="KEY")
    sub.add_argument("--label", type=float, metavar="X", help="0 to 1: whether the user liked it")
    sub.add_argument("--rating", type=float, metavar="X")
    sub.add_argument("--timestamp", type=int, metavar="SECONDS", help="default: now")
    sub.add_argument(
        "--kind",
        metavar="KIND",
        help="what the app saw: exposure, click, rating, page_enter, page_exit; triggers make samples of them",
    )
    sub.add_argument("--page", default="", metavar="NAME", help="with --kind: where")
    sub.add_argument(
        "--from",
        dest="file",
        type=Path,
        metavar="FILE",
        help="JSON lines of kind, at_ms, item, page, value; - is stdin",
    )


def _add_server(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument("--server", required=required, metavar="URL")
    parser.add_argument(
        "--trust",
        required=required,
        metavar="KEY",
        help="release key: 64 hex digits, a file with them, or a root",
    )


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", metavar="NAME", help="onnx, executorch or reference; default: the first that works")
    parser.add_argument("--threads", type=int, default=1, metavar="N")


def _add_cost(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prometheus", type=Path, metavar="FILE", help="the last round's cost as Prometheus text")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="the same as a picture (SVG)")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the result to this file")
