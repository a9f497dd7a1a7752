"""`coda device …`: everything a device does, from enrolment to ranking."""

from __future__ import annotations

import argparse
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from device_runtime import __version__
from device_runtime.bundle import write_atomically
from device_runtime.counting import ByteCounter
from device_runtime.engines import ENGINES, Engine, installed, open_engine
from device_runtime.errors import EngineUnavailable, InputError
from device_runtime.history import read_history
from device_runtime.home import DeviceHome
from device_runtime.messages import RoundReport
from device_runtime.meter import merge
from device_runtime.platform_info import capability
from device_runtime.store import Event

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

        def verb(name: str, run: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
            sub = verbs.add_parser(name, help=summary, description=summary)
            sub.add_argument("--home", type=Path, required=True, metavar="DIR", help="the device's folder")
            sub.set_defaults(verb_run=run)
            return sub

        sub = verb("enrol", _enrol, "make this device's key and announce it to a server; harmless if done before")
        _add_server(sub, required=True)
        sub = verb(
            "import", _import, "take in a user's history: CSV or JSON lines of item_id, timestamp, label or rating"
        )
        sub.add_argument("file", type=Path, metavar="FILE")
        sub = verb("event", _event, "append one event")
        sub.add_argument("--item", required=True, metavar="KEY")
        sub.add_argument("--label", type=float, metavar="X", help="0 to 1: whether the user liked it")
        sub.add_argument("--rating", type=float, metavar="X")
        sub.add_argument("--timestamp", type=int, metavar="SECONDS", help="default: now")
        sub = verb("run", _run, "run rounds: pull, match, filter, fine-tune, judge, activate or keep, report")
        _add_server(sub, required=False)
        _add_engine(sub)
        sub.add_argument("--import", dest="history", type=Path, metavar="FILE", help="import this history first")
        sub.add_argument("--rounds", type=int, default=1, metavar="N")
        sub.add_argument("--seed", type=int, default=0, metavar="N")
        sub.add_argument("--no-match", action="store_true", help="train on local samples alone; nothing is asked")
        sub.add_argument("--contribute", action="store_true", help="hand this user's samples to the pool: your choice")
        _add_json(sub)
        sub = verb("rank", _rank, "the best items for this user, by the weights that serve")
        _add_engine(sub)
        sub.add_argument("--items", metavar="K1,K2,…", help="rank only these; default: all with rows on the device")
        sub.add_argument("--items-file", type=Path, metavar="FILE", help="the same, one key a line")
        sub.add_argument("--top", type=int, default=10, metavar="N")
        sub.add_argument("--weights", choices=("active", "base"), default="active")
        _add_json(sub)
        sub = verb("status", _status, "what this device holds and did")
        _add_json(sub)
        sub = verb("evaluate", _evaluate, "how well later events are ranked: cloud, local-only and active weights")
        _add_engine(sub)
        sub.add_argument("--held-out", type=Path, required=True, metavar="FILE", help="later events, as for import")
        sub.add_argument("--seed", type=int, default=0, metavar="N", help="of the local-only tuning")
        _add_json(sub)
        sub = verb("erase", _erase, "delete everything this device holds, its identity included")
        sub.add_argument("--yes", action="store_true", help="really")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        return int(args.verb_run(args))


def _add_server(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument("--server", required=required, metavar="URL")
    parser.add_argument(
        "--trust", required=required, metavar="KEY", help="the public release key: 64 hex digits, or a file with them"
    )


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", choices=ENGINES, help="default: the first that works here")
    parser.add_argument("--threads", type=int, default=1, metavar="N")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the result to this file")


def _home(args: argparse.Namespace, create: bool = False) -> DeviceHome:
    if not create and not (args.home / "coda.db").exists():
        raise InputError(f"{args.home} is not a device's home; `coda device enrol --home {args.home} …` makes one")
    return DeviceHome(args.home)


def _engine(args: argparse.Namespace, home: DeviceHome) -> Engine:
    """The engine asked for, or the first that works; which one, and why not the others, goes to stderr."""
    if args.engine:
        return open_engine(args.engine, args.threads, home.cache)
    reasons = []
    for name in ENGINES:
        try:
            return open_engine(name, args.threads, home.cache)
        except EngineUnavailable as reason:
            print(f"engine {name} is not used: {reason}", file=sys.stderr)
            reasons.append(f"{name}: {reason}")
    raise EngineUnavailable(f"no engine works here: {'; '.join(reasons)}")


def _write(args: argparse.Namespace, command: str, **fields: object) -> None:
    if args.json:
        machine = msgspec.to_builtins(capability(installed())) | {"platform": platform.platform()}
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        result = {"command": f"device {command}", "version": __version__, "machine": machine, "started": now, **fields}
        write_atomically(args.json, msgspec.json.format(msgspec.json.encode(result)) + b"\n")


def _trusted_key(given: str) -> str:
    if re.fullmatch(r"[0-9a-fA-F]{64}", given):
        return given
    try:
        return Path(given).read_text().strip()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"--trust takes 64 hex digits or a file that holds them; {given!r} is neither") from None


def _enrol(args: argparse.Namespace) -> int:
    with _home(args, create=True) as home:
        device = home.enrol(args.server, _trusted_key(args.trust), ByteCounter())
    print(f"{args.home} is device {device} of {args.server}")
    return 0


def _import(args: argparse.Namespace) -> int:
    with _home(args, create=True) as home:
        _take_in(home, args.file)
    return 0


def _take_in(home: DeviceHome, path: Path) -> None:
    history = read_history(path)
    came = home.store.add_events(history.events)
    print(f"{path}: {came} new events, {len(history.events) - came} already known, {history.bad.total()} bad rows")
    for example in history.examples:
        print(f"  {example}", file=sys.stderr)


def _event(args: argparse.Namespace) -> int:
    if args.label is None and args.rating is None:
        raise InputError("an event needs --label or --rating")
    if args.label is not None and not 0 <= args.label <= 1:
        raise InputError(f"--label is between 0 and 1; given: {args.label}")
    at = int(time.time()) if args.timestamp is None else args.timestamp
    with _home(args, create=True) as home:
        came = home.store.add_events([Event(args.item, at, args.label, args.rating)])
    print("stored" if came else "already known")
    return 0


def _run(args: argparse.Namespace) -> int:
    from device_runtime.round import RoundOptions, run_round

    if (args.server is None) != (args.trust is None):
        raise InputError("--server and --trust go together: the key says whose bundles from there are believed")
    with _home(args, create=True) as home:
        counter = ByteCounter()
        if args.server:
            home.enrol(args.server, _trusted_key(args.trust), counter)
        if args.history:
            _take_in(home, args.history)
        engine = _engine(args, home)
        options = RoundOptions(args.seed, not args.no_match, args.contribute)
        results = []
        with home.transport(counter) as transport:
            for _ in range(args.rounds):
                result = run_round(home, transport, engine, options)
                results.append(result)
                print(_sentence(result.report))
        rows = [
            msgspec.to_builtins(r.report) | {"filter": msgspec.to_builtins(r.filter), "bytes_by_message": r.traffic}
            for r in results
        ]
    _write(args, "run", rows=rows)
    return 0


def _sentence(report: RoundReport) -> str:
    cost = merge(report.phases)
    verdict = f"; {report.verdict.reason}" if report.verdict else ""
    return (
        f"round {report.round} on {report.engine}: {report.outcome}{verdict}; {report.local} local samples, kept "
        f"{report.kept} of {report.candidates} candidates; {cost['cpu_s']:.2f} CPU s, {cost['peak_mib']:.0f} MiB, "
        f"{cost['bytes_down']} bytes down, {cost['bytes_up']} up"
    )


def _rank(args: argparse.Namespace) -> int:
    from device_runtime.ranker import rank

    items = args.items.split(",") if args.items else None
    if args.items_file:
        items = [line.strip() for line in args.items_file.read_text().splitlines() if line.strip()]
    with _home(args) as home:
        model = home.model(_engine(args, home))
        weights = home.active_weights(model) if args.weights == "active" else model.base
        found = rank(home, model, weights, items, args.top)
    for row in found:
        print(f"{row.rank:4}  {row.score:.4f}  {row.item}")
    _write(args, "rank", weights=weights.version, rows=[msgspec.to_builtins(row) for row in found])
    return 0


def _status(args: argparse.Namespace) -> int:
    with _home(args) as home:
        store = home.store
        serving, weights = store.bundle(), store.weights()
        rounds = store.rounds()
        facts = {
            "device": store.setting("device"),
            "server": store.setting("server"),
            "events": store.count_events(),
            "bundle": serving[0].version if serving else None,
            "weights": weights[0] if weights else "base",
            "undelivered_reports": sum(1 for row in rounds if row.report is not None and not row.delivered),
            "bytes_stored": sum(f.stat().st_size for f in args.home.rglob("*") if f.is_file()),
        }
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):22}{'-' if value is None else value}")
    for row in rounds:
        print(_sentence(row.report) if row.report else f"round {row.id}: {row.state}")
    listed = [
        {"id": row.id, "state": row.state, "report": row.report, "bytes_by_message": row.traffic} for row in rounds
    ]
    _write(args, "status", **facts, rows=msgspec.to_builtins(listed))
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from device_runtime.ranker import evaluate

    history = read_history(args.held_out)
    with _home(args) as home:
        found = evaluate(home, home.model(_engine(args, home)), history.events, args.seed)
    for name in ("cloud", "local", "coda"):
        accuracy = getattr(found, name)
        auc = "one class only" if accuracy.auc is None else f"{accuracy.auc:.4f}"
        print(f"{name:6} AUC {auc}   log loss {accuracy.log_loss:.4f}")
    print(f"over {found.held_out} later events; {found.unknown} without a label or of unknown items were left out")
    _write(args, "evaluate", **msgspec.to_builtins(found))
    return 0


def _erase(args: argparse.Namespace) -> int:
    with _home(args) as home:
        count = home.store.count_events()
        if not args.yes:
            raise InputError(
                f"this would delete {count} events, the weights and the identity in {args.home}; add --yes"
            )
        with home.locked():
            pass
    shutil.rmtree(args.home)
    print(f"{args.home} is gone, with {count} events")
    return 0
