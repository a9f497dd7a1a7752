"""How fast a release reaches a fleet, what that costs, and how far a bad one comes before the gate stops it.

A million devices that exist only as numbers, with days of their own, networks of several kinds and downloads that fail;
groups, policy, ladder, evidence and gates are the server's own code. What a pull, a question of its own and the line
that rides on other requests cost is measured first, by a real device against a real server on this machine.

  coverage      hours until half, 90 % and 99 % of the devices that may have a release have it, by three ways of telling
                them: by riding on the requests that their apps make anyway (push-then-pull), by asking every six hours
                (polling), by messages from the server every hour (push)
  bad releases  crashing (5 % of rounds fail instead of 1 %), slower (CPU times 1.2), less accurate (AUC lower by 0.01),
                dying (5 % of devices are never heard of again): each rolled out many times from 1 % on, until the gate
                stops it
  harmless      the same with nothing wrong, and with one device in a thousand that forges reports
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from markupsafe import Markup

from benchmarks import fleet_simulation as simulation
from benchmarks import plot, result
from benchmarks.prepared import engines_here, prepared
from benchmarks.round import one_round
from cloud.report.svg import Scale, picture, text
from cloud.rollout import Gate
from device_runtime.counting import ByteCounter
from device_runtime.errors import StoreError
from device_runtime.home import DeviceHome
from device_runtime.round import FRAME
from device_runtime.wire import encode_report

DESCRIPTION = __doc__ or ""
_COLUMNS = {"strategy": "", "t50": ".1f", "t90": ".1f", "t99": ".1f", "covered": ".3%", "within_two_sessions": ".2%"}
_COLUMNS |= {"bytes": ".3g", "requests": ".3g"}
_RELEASES = {"release": "", "runs": "d", "stopped_share": ".3f", "ci95": "", "reached_share_p95": ".3%"}
_RELEASES |= {"reached_share_most": ".3%", "days_median": ".1f"}
_PUSH_BYTES = 4096
"""Of a push message: the most that the platforms' services carry; the release's name would fit into less."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--devices", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=300, help="releases of each kind (default: 300)")
    parser.add_argument("--days", type=float, default=14.0, help="of the coverage")
    parser.add_argument("--jobs", type=int, default=2, help="processes for the releases")
    parser.add_argument("--part", choices=("both", "coverage", "releases"), default="both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--plot", type=Path, metavar="OUT.svg", help="the coverage; and OUT-releases.svg, how far they came"
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the prepared server here, and find it again")


def run(args: argparse.Namespace) -> int:
    started = result.now()
    rng = np.random.default_rng(args.seed)
    fleet = simulation.fleet(args.devices, f"salt-{args.seed}", rng)
    rows, more = _coverage(args, fleet, rng) if args.part != "releases" else ([], {})
    if args.part != "coverage":
        more |= _releases(args, fleet)
    result.write(args.json, "bench fleet", started, rows, devices=args.devices, **more)
    return 0


def _coverage(
    args: argparse.Namespace, fleet: simulation.Fleet, rng: np.random.Generator
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows, and the same by strategy."""
    devices, days = args.devices, min(args.days, 4.0) if args.quick else args.days
    costs = measured_costs(args.work)
    _say(f"coverage of {devices:,} devices over {days:g} days")
    covered = simulation.coverage(fleet, costs, days, 600.0, rng, _percent())
    print(
        f"Coverage of {devices:,} devices, hours from the release; a check costs {costs.profile} bytes where it rides"
    )
    print(f"on another request, {costs.poll} where it is one, a pull {costs.pull}")
    rows: list[dict[str, Any]] = [{"strategy": name} | told for name, told in covered.items()]
    print(result.table(rows, _COLUMNS))
    if args.plot:
        plot.write(args.plot, curves({row["strategy"]: row["curve"] for row in rows}, days))
    return rows, {"coverage": covered}


def _releases(args: argparse.Namespace, fleet: simulation.Fleet) -> dict[str, Any]:
    runs = 10 if args.quick else args.runs
    released: dict[str, dict[str, Any]] = {}
    for name, kind in {**simulation.KINDS, **simulation.HARMLESS}.items():
        _say(f"{runs} releases that are {name}")
        seeds = [[args.seed, 1, number] for number in range(runs)]
        tasks = (delayed(_release)(fleet, kind, seed) for seed in seeds)
        ran = Parallel(n_jobs=args.jobs)(tasks) if args.jobs > 1 else [_release(fleet, kind, seed) for seed in seeds]
        told = simulation.summary(ran)
        released[name] = told | {"ci95": simulation.interval(round(told["stopped_share"] * runs), runs)}
    print("\nReleases that climb from 1 %: how many the gate stopped, and how much of the fleet had them then")
    print(result.table([{"release": name} | _shown(told) for name, told in released.items()], _RELEASES))
    bad = {name: released[name] for name in simulation.KINDS}
    harmless, forged = (released[name] for name in simulation.HARMLESS)
    if args.plot:
        plot.write(args.plot.with_stem(f"{args.plot.stem}-releases"), reached(bad))
    return {"bad_releases": bad, "harmless": harmless, "harmless_with_forgers": forged}


def measured_costs(work: Path | None) -> simulation.Costs:
    """Of a real device: what its first round pulls, and what it asks in a later one, where nothing is new."""
    engines = engines_here(("onnx",), _say)
    with prepared(work, engines, _say) as made, TemporaryDirectory(prefix="coda-fleet-") as folder:
        home = Path(folder) / "device"
        home.mkdir()
        made.write_history(100, home / "history.csv")
        with made.serving(100) as url:
            start = ["--server", url, "--trust", made.trust, "--import", home / "history.csv"]
            first, later = one_round(home, "onnx", start), one_round(home, "onnx")
            riding = _riding(home / "phone")
    pulled = {name: sum(both) for name, both in first["bytes_by_message"].items()}
    pull = sum(pulled[name] for name in ("bundle", "manifest", "graphs", "weights", "item rows"))
    poll = sum(later["bytes_by_message"]["bundle"])
    return simulation.Costs(profile=riding, pull=pull, poll=poll, push=_PUSH_BYTES)


def _riding(folder: Path) -> int:
    """What a request and its answer take more if the device names its bundle: the same report, sent both ways."""
    with DeviceHome(folder) as home, home.transport(counter := ByteCounter()) as transport:
        last, serving = home.store.last_round(), home.store.bundle()
        if last is None or last.report is None or serving is None:
            raise StoreError(f"{folder} has run no round")
        body = encode_report(last.report)
        for label, bundle in (("silent", 0), ("telling", serving[0].version)):
            transport.bundle = bundle
            transport.request("POST", "/v1/reports", body, label=label, content_type=FRAME, accept_status=(204,))
        silent, telling = counter.by_label["silent"], counter.by_label["telling"]
    return telling.up + telling.down - silent.up - silent.down


def _release(fleet: simulation.Fleet, kind: simulation.Kind, seed: Sequence[int]) -> simulation.Ran:
    return simulation.release(fleet, kind, Gate(), np.random.default_rng(seed))


def _shown(told: Mapping[str, Any]) -> dict[str, Any]:
    return dict(told) | {"ci95": "{:.3f} to {:.3f}".format(*told["ci95"]), "runs": int(told["runs"])}


def curves(shares: Mapping[str, Sequence[float]], days: float) -> Markup:
    """Share covered by days since the release, a line a strategy."""
    across, up = Scale([0, days], 60, 700, about=7), Scale([0, 1], 300, 30)
    body = across.axis(30, 300)
    body += [text(52, up(share) + 4, f"{share:.0%}", "small", "end") for share in (0, 0.25, 0.5, 0.75, 1)]
    for number, (name, values) in enumerate(shares.items()):
        step = days / len(values)
        dots = " ".join(f"{across((i + 1) * step):.1f},{up(share):.1f}" for i, share in enumerate(values))
        body.append(f'<polyline points="{dots}" class="e{number}" style="fill:none"/>')
        body.append(text(180 * number + 60, 340, name, f"p{number * 5 % 8}"))
    return picture(720, 350, "Share of the devices that have the release", ", ".join(shares), body)


def reached(bad: Mapping[str, Mapping[str, Any]]) -> Markup:
    """How much of the fleet a bad release had reached when it was stopped, in 95 % of its runs and in the worst."""
    shares = {}
    for name, told in bad.items():
        shares[f"{name}, 95 % of runs"] = told["reached_share_p95"]
        shares[f"{name}, at most"] = told["reached_share_most"]
    return plot.bars("Share of the fleet that a bad release reached", shares, ".2%")


def _percent() -> Callable[[float], None]:
    told = 0

    def say(share: float) -> None:
        nonlocal told
        if int(share * 10) > told:
            told = int(share * 10)
            _say(f"  {told * 10} %")

    return say


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
