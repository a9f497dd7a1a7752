"""`coda release …`: what a server serves, and to whom."""

from __future__ import annotations

import argparse
import getpass
from pathlib import Path

DESCRIPTION = """\
Bundles and releases of a server. All of it takes effect at once, also while `coda serve` runs.

`publish` gives a bundle to every device at once. `add` only takes it in: `create` then plans a release of it, which
climbs a ladder of rungs (simulation, named devices, 1 %%, 5 %%, 20 %%, 100 %%) by `advance`, past a gate on failures,
quality and cost that stops it by itself. docs/releases.md says more.

example:
  coda release keys --home runs/server                 the key to give to `coda export --answer-key`
  coda release publish runs/bundle-1 --home runs/server
  coda release add runs/bundle-2 --home runs/server
  coda release create week-2 --bundle 2 --home runs/server --why "trained on week 2" --app-from 2.0 \\
               --named DEVICE --named DEVICE --named DEVICE
  coda release advance week-2 --home runs/server --why "simulated well"
  coda release show week-2 --home runs/server
  coda release explain DEVICE --home runs/server
""".replace("%%", "%")
_ACTS = {
    "advance": "climb to the next rung, if the gate lets it",
    "pause": "give it to nobody new, and take it from nobody",
    "resume": "go on",
    "rollback": "stop it for good: everyone gets the previous bundle",
}


class Command:
    help = "publish bundles on a server, roll them out, and see why a device gets which"

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        parser.description = DESCRIPTION
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

        def verb(name: str, summary: str, acts: bool = False, json: bool = False) -> argparse.ArgumentParser:
            sub = verbs.add_parser(name, help=summary, description=summary)
            sub.add_argument("--home", type=Path, required=True, metavar="DIR", help="the server's folder")
            if acts:
                sub.add_argument("--why", required=True, metavar="TEXT", help="the audit log keeps it")
                sub.add_argument("--who", default=_user(), metavar="NAME", help="who acts (%(default)s)")
            if json:
                sub.add_argument("--json", type=Path, metavar="OUT", help="write it as JSON")
            return sub

        verb("keys", "print the server's public answer key; it is made when first asked for")
        sub = verb("publish", "verify a bundle and make it everyone's release, at once")
        sub.add_argument("bundle", type=Path, metavar="BUNDLE", help="what `coda export` wrote")
        sub = verb("add", "verify a bundle and take it in, for a release to bring it to devices")
        sub.add_argument("bundle", type=Path, metavar="BUNDLE", help="what `coda export` wrote")
        verb("list", "list bundles and releases, newest first", json=True)
        sub = verb("create", "plan a release of a bundle; whom it means, ladder and gate are fixed then", acts=True)
        sub.add_argument("name", metavar="NAME")
        _configure_create(sub)
        for name, summary in _ACTS.items():
            sub = verb(name, summary, acts=True)
            sub.add_argument("name", metavar="NAME")
            if name == "advance":
                sub.add_argument("--override", action="store_true", help="though the gate would wait; never past a no")
        sub = verb("show", "a release: rung, evidence, and what the gate says", json=True)
        sub.add_argument("name", metavar="NAME")
        sub = verb("pin", "give a device a bundle to keep, whatever is rolled out", acts=True)
        sub.add_argument("device", metavar="DEVICE", help="32 hex digits, as `coda devices list` prints them")
        sub.add_argument("--bundle", type=int, required=True, metavar="VERSION")
        sub = verb("unpin", "take a pin away", acts=True)
        sub.add_argument("device", metavar="DEVICE")
        sub = verb("explain", "which bundle a device gets, by which rule, and why", json=True)
        sub.add_argument("device", metavar="DEVICE")
        sub.add_argument("--runs", type=int, default=0, metavar="VERSION", help="the bundle that it runs")
        sub = verb("audit", "who did what, when and why, newest first", json=True)
        sub.add_argument("name", nargs="?", default="", metavar="NAME", help="of one release; of all, if not given")
        sub = verb("cohort", "put devices into a cohort, or take them out")
        sub.add_argument("cohort", metavar="COHORT")
        sub.add_argument("devices", nargs="+", metavar="DEVICE")
        sub.add_argument("--leave", action="store_true", help="take them out")
        sub = verb("trust", "take in the publisher's signed documents: roots and lists, as `coda trust` makes them")
        sub.add_argument("documents", nargs="+", type=Path, metavar="FILE")
        sub = verb("operator", "add an operator of the HTTP API and the console; prints the token, once")
        sub.add_argument("name", metavar="NAME")
        sub.add_argument("--role", choices=("viewer", "releaser"), default="viewer")
        sub.add_argument("--remove", action="store_true", help="remove the operator instead")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        from cloud.commands import rollouts
        from cloud.home import ServerHome

        # only `keys` makes a home: a mistyped folder must not become one
        with ServerHome(args.home, create=args.verb == "keys") as home:
            rollouts.VERBS[args.verb](args, home)
        return 0


def _configure_create(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--bundle", type=int, required=True, metavar="VERSION", help="that was taken in by `add`")
    for name, words in (
        ("os", "such as linux"),
        ("engine", "such as onnx"),
        ("device-class", "as `coda devices list` prints them"),
        ("locale", "such as de, which means de-AT too"),
        ("cohort", "that the operator put devices into, or that they joined"),
        ("device", "an id: a release to single devices"),
    ):
        sub.add_argument(f"--{name}", action="append", default=[], metavar="X", help=f"one of these; {words}")
    sub.add_argument("--app-from", default="", metavar="V", help="app versions from this one on")
    sub.add_argument("--app-before", default="", metavar="V", help="and before this one")
    sub.add_argument("--named", action="append", default=[], metavar="DEVICE", help="who tries it before any share")
    sub.add_argument("--ladder", type=Path, metavar="FILE", help="JSON: a list of {name, share, named, least, dwell_s}")
    sub.add_argument("--gate", type=Path, metavar="FILE", help="JSON: fields of cloud.rollout.gates.Gate")
    sub.add_argument("--automatic", action="store_true", help="climb by itself where the gate lets it, from 1 %% on")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a process without a name, as in some containers
        return "command line"
