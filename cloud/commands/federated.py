"""`coda federated …`: have devices try configurations on their own samples, and compare the figures that come back."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloud.catalog.evaluations import Period
    from cloud.federated import Federated
    from cloud.home import ServerHome

DESCRIPTION = """\
Federated evaluation. Devices that the conditions mean tune by each configuration in a round of theirs, compare them on
their held-out samples, and send back an AUC and a log loss each: no sample leaves them. The first configuration is what
the others are compared with. They may set epochs, rate, table_rate, row_steps, interpolation, outside_weight,
label_correction and freeze_histories.

With --tune they are compared on the samples before those that the judge sees, and `propose` names the configuration
that is better than the first for sure. With --key and --out it makes a bundle of it, which differs from the current one
in its settings only, and has to pass a release's ladder and gate like any other. Of more than four configurations a
device tries the first and three others.

example:
  coda federated create rates --try usual --try slow:rate=0.05 --try short:epochs=4 --cohort beta --home runs/server
  coda federated show rates --home runs/server
  coda federated create tuned --tune --try usual --try slow:rate=0.02 --try long:epochs=6 --home runs/server
  coda federated propose tuned --home runs/server --settings-out best.json
  coda federated propose tuned --home runs/server --key runs/release.key --out runs/bundle-8
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
            "--try", dest="tries", action="append", required=True, metavar="LABEL[:K=V,…]", help="1 to 16 of these"
        )
        sub.add_argument("--tune", action="store_true", help="on the samples before those that the judge sees")
        sub.add_argument("--devices", type=int, default=1000, metavar="N", help="that answer, at most (%(default)s)")
        sub.add_argument("--days", type=float, default=14.0, metavar="N", help="until it ends (%(default)s)")
        sub.add_argument("--cohort", action="append", default=[], metavar="X", help="only these; default: every device")
        sub.add_argument("--os", action="append", default=[], metavar="X", help="only these")
        sub = verbs.add_parser("show", help="what has come back")
        sub.add_argument("name", nargs="?", default="", metavar="NAME", help="default: all")
        sub.add_argument("--json", type=Path, metavar="OUT", help="write it as JSON")
        sub = verbs.add_parser("propose", help="the settings that devices found better, for a release")
        sub.add_argument("name", metavar="NAME")
        sub.add_argument(
            "--settings-out", type=Path, metavar="F", help="write them as JSON, for `coda export --settings`"
        )
        sub.add_argument("--key", type=Path, metavar="F", help="the release key: sign a bundle with them")
        sub.add_argument("--out", type=Path, metavar="DIR", help="where the bundle goes")
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
                period: Period = "validation" if args.tune else "judged"
                made = federated.create(args.name, _tries(args.tries), rule, args.devices, args.days, period)
                print(f"{made.name}: asks devices until {time.strftime('%Y-%m-%d', time.gmtime(made.until))}")
            elif args.verb == "propose":
                return _propose(args, federated, home)
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


def _propose(args: argparse.Namespace, federated: Federated, home: ServerHome) -> int:
    """1 if there is nothing to propose."""
    import msgspec

    from device_runtime.bundle import write_atomically
    from device_runtime.errors import InputError
    from device_runtime.evaluating import settings_of

    if bool(args.key) != bool(args.out):
        raise InputError("give both --key, which signs the bundle, and --out, where it goes; or neither")
    found = federated.proposal(federated.named(args.name))
    print(found.why)
    if not found.name:
        return 1
    _, manifest = home.release()
    settings = settings_of(manifest.settings, found.settings)
    if args.settings_out:
        write_atomically(args.settings_out, msgspec.json.format(msgspec.json.encode(settings)))
    if args.key:
        from device_runtime.identity import Signer
        from export.package import restate

        version = max(release.ref.version for release in home.catalog.releases()) + 1
        changed = msgspec.structs.replace(manifest, version=version, settings=settings)
        restate(changed, home.blobs, args.out, Signer.open(args.key))
        print(f"bundle {version}, which no device has: it climbs like any other, as by")
        print(f"  coda release add {args.out} --home {args.home}")
        print(f'  coda release create NAME --bundle {version} --home {args.home} --why "{found.why}"')
    return 0


def _show(args: argparse.Namespace, federated: Federated) -> None:
    import msgspec

    from device_runtime.bundle import write_atomically
    from device_runtime.errors import InputError

    found = [one for one in federated.all() if args.name in ("", one.name)]
    if args.name and not found:
        raise InputError(f"there is no evaluation {args.name!r}")
    rows = []
    for evaluation in found:
        print(f"{evaluation.name}, on the {evaluation.period} samples")
        for one in federated.compared(evaluation):
            rows.append({"evaluation": evaluation.name} | msgspec.to_builtins(one))
            auc = "-" if one.auc is None else f"{one.auc:.4f}"
            words = ""
            if one.difference:
                words = "; difference {:+.4f} AUC, between {:+.4f} and {:+.4f}".format(*one.difference)
            print(f"  {one.name}: {one.devices} devices, {one.diverged} diverged, AUC {auc}{words}")
    if args.json:
        write_atomically(args.json, msgspec.json.encode({"command": "federated show", "rows": rows}))
