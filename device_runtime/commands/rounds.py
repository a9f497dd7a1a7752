"""`coda device enrol | run | rank | status | evaluate`."""

from __future__ import annotations

import argparse
import os
import signal
import time
from types import FrameType

import msgspec

from device_runtime.activity import ActivityLog
from device_runtime.commands.shared import choose_engine, open_home, take_in, trusted_key, write_result
from device_runtime.counting import ByteCounter
from device_runtime.errors import InputError, Yielded
from device_runtime.history import read_history
from device_runtime.home import DeviceHome
from device_runtime.messages import RoundReport
from device_runtime.meter import merge
from device_runtime.plot import write_plot
from device_runtime.prometheus import write_prometheus
from device_runtime.schedule import Usage, load_policy, over_budget
from device_runtime.sensors import Sensors
from device_runtime.triggers import digest, load
from device_runtime.yielding import GiveWay


def enrol(args: argparse.Namespace) -> int:
    with open_home(args, create=True) as home:
        device = home.enrol(args.server, trusted_key(args.trust), ByteCounter())
    print(f"{args.home} is device {device} of {args.server}")
    return 0


def rotate_key(args: argparse.Namespace) -> int:
    with open_home(args) as home:
        home.rotate_key(ByteCounter())
        print(f"{args.home} has a new key; it is still device {home.store.setting('device')} of {home.server}")
    return 0


def run(args: argparse.Namespace) -> int:
    from device_runtime.round import RoundOptions, run_round

    if (args.server is None) != (args.trust is None):
        raise InputError("--server and --trust go together: the key says whose bundles from there are believed")
    with open_home(args, create=True) as home:
        usage, counter = Usage(home.store.database), ByteCounter()
        pulse = _within_budgets(args, home, usage, counter) if args.scheduled else None
        sensors = Sensors(power_csv=args.power_csv)
        results = []
        try:
            if home.rotation_due:  # cut off, or asked for in a run that was
                home.rotate_key(counter)
            if args.server:
                home.enrol(args.server, trusted_key(args.trust), counter)
            if args.history:
                take_in(home, args.history)
            digest(home.store, ActivityLog(home.store.database), load(args.home / "triggers.json"))
            engine = choose_engine(args, home)
            options = RoundOptions(args.seed, not args.no_match, args.contribute, not args.no_evaluate)
            with home.transport(counter, pulse) as transport:
                for _ in range(args.rounds):
                    results.append(run_round(home, transport, engine, options, pulse=pulse, sensors=sensors))
                    print(_sentence(results[-1].report))
            if home.rotation_due:
                home.rotate_key(counter)
        finally:
            used = counter.total
            usage.add(time.time(), cpu_s=time.process_time(), bytes=used.up + used.down)
        rows = [
            msgspec.to_builtins(r.report)
            | {
                "filter": msgspec.to_builtins(r.filter),
                "bytes_by_message": r.traffic,
                "resumed": r.resumed,
                "meter_cost_s": r.meter_cost_s,
            }
            for r in results
        ]
    _show_cost(args, results[-1].report)
    write_result(args, "run", bytes_split=msgspec.to_builtins(counter.split()), rows=rows)
    return 0


def _within_budgets(args: argparse.Namespace, home: DeviceHome, usage: Usage, counter: ByteCounter) -> GiveWay:
    """Become the modest process that the policy wants; SIGTERM has the round put aside."""
    policy, now = load_policy(args.home), time.time()
    if reasons := over_budget(policy, usage, args.home, now):
        raise Yielded(f"no round now: {', '.join(reasons)}")
    os.nice(policy.nice)
    args.threads = policy.threads
    counter.limit = max(int(policy.bytes - usage.today(now, "bytes")), 1)
    pulse = GiveWay(
        args.home / "foreground",
        cpu_s=policy.cpu_s - usage.today(now, "cpu_s"),
        memory_mib=policy.memory_mib,
        patience_s=policy.patience_s,
    )

    def stop(number: int, frame: FrameType | None) -> None:
        pulse.stopping = True

    signal.signal(signal.SIGTERM, stop)
    return pulse


def _show_cost(args: argparse.Namespace, report: RoundReport) -> None:
    if args.prometheus:
        write_prometheus(args.prometheus, report)
    if args.plot:
        write_plot(args.plot, report)


def _sentence(report: RoundReport) -> str:
    cost = merge(report.phases)
    verdict = f"; {report.verdict.reason}" if report.verdict else ""
    return (
        f"round {report.round} on {report.engine}: {report.outcome}{verdict}; {report.local} local samples, kept "
        f"{report.kept} of {report.candidates} candidates; {cost['cpu_s']:.2f} CPU s, {cost['peak_mib']:.0f} MiB, "
        f"{cost['bytes_down']} bytes down, {cost['bytes_up']} up"
    )


def rank(args: argparse.Namespace) -> int:
    from device_runtime.ranker import rank

    items = args.items.split(",") if args.items else None
    if args.items_file:
        items = [line.strip() for line in args.items_file.read_text().splitlines() if line.strip()]
    with open_home(args) as home:
        model = home.model(choose_engine(args, home))
        weights = home.active_weights(model) if args.weights == "active" else model.base
        found = rank(home, model, weights, items, args.top)
    for row in found:
        print(f"{row.rank:4}  {row.score:.4f}  {row.item}")
    write_result(args, "rank", weights=weights.version, rows=[msgspec.to_builtins(row) for row in found])
    return 0


def status(args: argparse.Namespace) -> int:
    with open_home(args) as home:
        store = home.store
        serving, weights = store.bundle(), store.weights()
        rounds = store.rounds()
        facts = {
            "device": store.setting("device"),
            "server": store.setting("server"),
            "events": store.count_events(),
            "activity": ActivityLog(store.database).count(),
            "bundle": serving[0].version if serving else None,
            "weights": weights[0] if weights else "base",
            "undelivered_reports": sum(1 for row in rounds if row.report is not None and not row.delivered),
            "bytes_stored": sum(f.stat().st_size for f in args.home.rglob("*") if f.is_file()),
        }
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):22}{'-' if value is None else value}")
    for row in rounds:
        print(_sentence(row.report) if row.report else f"round {row.id}: {row.state}")
    reports = [row.report for row in rounds if row.report]
    if reports:
        _show_cost(args, reports[-1])
    elif args.prometheus or args.plot:
        raise InputError(f"{args.home} has run no round whose cost could be written")
    listed = [
        {"id": row.id, "state": row.state, "report": row.report, "bytes_by_message": row.traffic} for row in rounds
    ]
    write_result(args, "status", **facts, rows=msgspec.to_builtins(listed))
    return 0


def evaluate(args: argparse.Namespace) -> int:
    from device_runtime.ranker import evaluate

    history = read_history(args.held_out)
    with open_home(args) as home:
        found = evaluate(home, home.model(choose_engine(args, home)), history.events, args.seed)
    for name in ("cloud", "local", "coda"):
        accuracy = getattr(found, name)
        auc = "one class only" if accuracy.auc is None else f"{accuracy.auc:.4f}"
        print(f"{name:6} AUC {auc}   log loss {accuracy.log_loss:.4f}")
    print(f"over {found.held_out} later events; {found.unknown} without a label or of unknown items were left out")
    write_result(args, "evaluate", **msgspec.to_builtins(found))
    return 0
