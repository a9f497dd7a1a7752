"""`coda device agent | conditions`: nothing here imports NumPy or an engine."""

from __future__ import annotations

import argparse
import signal
import time

import msgspec

from device_runtime.agent import Agent
from device_runtime.errors import InputError
from device_runtime.schedule import Usage, conditions, load_policy, over_budget
from device_runtime.store import Store


def agent(args: argparse.Namespace) -> int:
    if not (args.home / "coda.db").exists():
        raise InputError(f"{args.home} is not a device's home; `coda device enrol --home {args.home} …` makes one")
    if not args.look_every > 0:
        raise InputError(f"--look-every is a number of seconds above 0; given: {args.look_every:g}")
    load_policy(args.home)  # a mistake in it ends the agent now, not the first night
    running = Agent(args.home, say=lambda words: print(words, flush=True))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, running.stop)
    if args.once:
        found = running.look()
        print(found.due or "nothing is due", *(f"waiting: {reason}" for reason in found.refusals), sep="\n")
        return 0 if found.ran is None else found.ran
    running.run(args.look_every)
    return 0


def show(args: argparse.Namespace) -> int:
    policy, found, now = load_policy(args.home), conditions(args.home), time.time()
    for name in found.__struct_fields__:
        value = getattr(found, name)
        print(f"{name.replace('_', ' '):22}{'unknown' if value is None else value}")
    with Store(args.home / "coda.db") as store:
        usage = Usage(store.database)
        used = {what: usage.today(now, what) for what in ("cpu_s", "bytes")}
        refusals = policy.refusals(found) + over_budget(policy, usage, args.home, now)
    print(f"{'used today':22}{used['cpu_s']:.1f} CPU s, {used['bytes']:.0f} bytes")
    print("a round may run" if not refusals else f"no round may run: {', '.join(refusals)}")
    if args.json:
        from device_runtime.commands.shared import write_result

        told = msgspec.to_builtins(found)
        write_result(args, "conditions", conditions=told, used_today=used, refusals=refusals, policy=policy)
    return 0
