"""`coda evaluate`: does it help, for whom, and at what cost."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """\
Compare methods on your own table, without leaks: train a cloud model on the past, play a device for each examined user
by the device's own code, test on the user's later rows, and give paired differences with intervals over users.

protocols:
  paper      one split in time; the cloud model has seen the local rows
  fresh      the cloud model stops earlier; the local rows are newer than anything that it has seen
  cold       users who are new to the cloud, with at most 10, 20 or 50 local rows
  synthetic  made-up users of a known taste; the right answer is known

A run that was stopped goes on where it was when it is started again: what is finished lies in the work folder.

example:
  coda evaluate --interactions ratings.csv --items movies.csv --protocol fresh --methods all --users 300 --seeds 3 \\
                --json fresh.json --report fresh-report
  coda evaluate --interactions ratings.csv --protocol fresh --tune grid.json --settings-out best.json --json tune.json
"""


class Command:
    help = "compare methods on a table of your own: accuracy with intervals, and cost"

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        parser.description = DESCRIPTION
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.add_argument(
            "--interactions", type=Path, metavar="F", help="table of interactions (default: the example)"
        )
        parser.add_argument("--items", type=Path, metavar="F", help="table of items")
        parser.add_argument(
            "--users-table", type=Path, metavar="F", help="table of users: nobody else is examined (default: everybody)"
        )
        parser.add_argument("--positive-at", type=float, metavar="X", help="least rating that counts as a like")
        parser.add_argument(
            "--protocol", default="fresh", choices=("paper", "fresh", "cold", "synthetic"), help="(%(default)s)"
        )
        parser.add_argument(
            "--validation", action="store_true", help="play it before the test period, to choose settings"
        )
        parser.add_argument("--heterogeneity", type=float, metavar="X", help="synthetic: 0 to 1 (default: a sweep)")
        parser.add_argument("--table-out", type=Path, metavar="DIR", help="synthetic: write the made-up tables here")
        parser.add_argument("--methods", default="all", metavar="LIST", help="comma-separated, or all (%(default)s)")
        parser.add_argument("--model", default="DIN", metavar="NAME", help="a model's name or package.module:Class")
        parser.add_argument("--users", type=int, default=300, metavar="N", help="examined, at most (%(default)s)")
        parser.add_argument(
            "--seeds", type=int, default=3, metavar="N", help="of what is random on devices (%(default)s)"
        )
        parser.add_argument(
            "--training-seed",
            type=int,
            default=0,
            metavar="N",
            help="another cloud model: intervals are over users, and say nothing of how models differ (%(default)s)",
        )
        parser.add_argument(
            "--tune", type=Path, metavar="GRID", help="JSON of lists: choose settings on the validation period instead"
        )
        parser.add_argument(
            "--settings-out", type=Path, metavar="F", help="tune: write the chosen settings, for --settings"
        )
        parser.add_argument(
            "--settings", type=Path, metavar="F", help="JSON with round settings that differ from the defaults"
        )
        parser.add_argument(
            "--growing-histories", action="store_true", help="test histories hold earlier test rows too"
        )
        parser.add_argument("--backend", default="loky", choices=("loky", "ray"), help="(%(default)s)")
        parser.add_argument("--jobs", type=int, default=-1, metavar="N", help="processes; default: one a core")
        parser.add_argument("--work", type=Path, metavar="DIR", help="models and finished parts (default: OUT.work)")
        parser.add_argument("--quick", action="store_true", help="few users, one seed, two epochs: to see that it runs")
        parser.add_argument("--json", type=Path, required=True, metavar="OUT", help="the result")
        parser.add_argument("--report", type=Path, metavar="DIR", help="write the same as a page, with plots, here")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        from cloud.evaluation.command import run

        return run(args)
