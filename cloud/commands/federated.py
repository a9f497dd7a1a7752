"""`coda federated …`: have devices try configurations on their own samples, and compare the figures that come back."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloud.federated import Federated

DESCRIPTION = """\
Federated evaluation. Devices that the conditions mean tune by each configuration in a round of theirs, compare them on
their held-out samples, and send back an AUC and a log loss each: no sample leaves them. The first configuration is what
the others are compared with. They may set epochs, rate, table_rate, row_steps, interpolation, outside_weight,
label_correction and freeze_histories.

example:
  coda federated create rates --try usual --try slow:rate=0.05 --try short:epochs=4 --cohort beta --home runs/server
  coda federated show rates --home runs/server
"""


class Command:
    help = "have devices compare configurations on their own samples; only figures come back"

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        parser.description = DESCRIPTION
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
        sub = verbs.add_parser("create", help="ask devices to compare configurations")
        sub.add_argument("name", metavar="NAME")
        sub.add_argument(
            "--try", dest="tries", action="append", required=True, metavar="LABEL[:K=V,…]", help="1 to 4 of these"
        )
        sub.add_argument("--devices", type=int, default=1000, metavar="N", help="that answer, at most (%(default)s)")
        sub.add_argument("--days", type=float, default=14.0, metavar="N", help="until it ends (%(default)s)")
        sub.add_argument("--cohort", action="append", default=[], metavar="X", help="only these; default: every device")
        sub.add_argument("--os", action="append", default=[], metavar="X", help="only these")
        sub = verbs.add_parser("show", help="what has come back")
        sub.add_argument("name", nargs="?", default="", metavar="NAME", help="default: all")
        sub.add_argument("--json", type=Path, metavar="OUT", help="write it as JSON")
        for sub in verbs.choices.values():
            sub.add_argument("--home", type=Path, required=True, metavar="DIR", help="the server's folder")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        from cloud.federated import Federated
        from cloud.home import ServerHome
        from cloud.rollout import Rule

        with ServerHome(args.home, create=False) as home:
            federated = Federated(home.catalog, time.time)
            if args.verb == "create":
                rule = Rule(name="evaluation", release="-", cohorts=frozenset(args.cohort), os=frozenset(args.os))
                made = federated.create(args.name, _tries(args.tries), rule, args.devices, args.days)
                print(f"{made.name}: asks devices until {time.strftime('%Y-%m-%d', time.gmtime(made.until))}")
            else:
                _show(args, federated)
        return 0


def _tries(given: list[str]) -> dict[str, dict[str, float]]:
    from device_runtime.errors import InputError

    found: dict[str, dict[str, float]] = {}
    for one in given:
        label, _, changes = one.partition(":")
        try:
            pairs = [change.split("=") for change in changes.split(",") if change]
            found[label] = {name: float(value) for name, value in pairs}
        except ValueError:
            raise InputError(f"write --try LABEL or --try LABEL:rate=0.05,epochs=4; given: {one!r}") from None
    return found


def _show(args: argparse.Namespace, federated: Federated) -> None:
    import msgspec

    from device_runtime.bundle import write_atomically
    from device_runtime.errors import InputError

    found = [one for one in federated.all() if args.name in ("", one.name)]
    if args.name and not found:
        raise InputError(f"there is no evaluation {args.name!r}")
    rows = []
    for evaluation in found:
        print(evaluation.name)
        for one in federated.compared(evaluation):
            rows.append({"evaluation": evaluation.name} | msgspec.to_builtins(one))
            auc = "-" if one.auc is None else f"{one.auc:.4f}"
            words = ""
            if one.difference:
                words = "; difference {:+.4f} AUC, 95 % interval {:+.4f} to {:+.4f}".format(*one.difference)
            print(f"  {one.name}: {one.devices} devices, {one.diverged} diverged, AUC {auc}{words}")
    if args.json:
        write_atomically(args.json, msgspec.json.encode({"command": "federated show", "rows": rows}))
