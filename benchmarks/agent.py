"""What the device agent costs when nothing happens, how fast events become samples, and how soon a round gives way.

Without --home: the idle agent and the digest of events. With --home DIR, a device's folder that has had a round (it is
copied, not changed): also the cold start to a ranked list, and the longest CPU time between two moments at which a
round looks whether the app has come to the front (training, scoring and judging on local samples; waits for the network
use no CPU). CPU times are the kernel's; wall times are left out, for they tell more of the machine's other work.
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from email.message import Message
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import result
from device_runtime.activity import Activity, ActivityLog
from device_runtime.counting import ByteCounter
from device_runtime.engines import open_engine
from device_runtime.errors import InputError, Unreachable
from device_runtime.home import DeviceHome
from device_runtime.round import RoundOptions, run_round
from device_runtime.store import Store
from device_runtime.transport import Answer
from device_runtime.triggers import DEFAULTS, digest

DESCRIPTION = __doc__ or ""
_LOOK_S = 60.0
"""How often the agent looks by default; the benchmark has it look more often, and counts CPU by look."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--home", type=Path, metavar="DIR", help="a device's folder that has had a round")
    parser.add_argument("--events", type=int, default=100_000, metavar="N")


def run(args: argparse.Namespace) -> int:
    started = result.now()
    if args.home is not None and not (args.home / "coda.db").exists():
        raise InputError(f"{args.home} is not a device's home; `coda device run --home {args.home} …` makes one")
    with tempfile.TemporaryDirectory(prefix="coda-bench-") as folder:
        rows = _idle(Path(folder) / "idle", 10 if args.quick else 60)
        rows += _digested(Path(folder) / "events.db", args.events // 10 if args.quick else args.events)
        if args.home is not None:
            rows += _cold_start(args.home, 3 if args.quick else 9)
            shutil.copytree(args.home, Path(folder) / "home")
            rows += _giving_way(Path(folder) / "home", 1 if args.quick else 5)
    print(result.table(rows, {"what": "", "value": ".4g", "unit": ""}))
    result.write(args.json, "bench agent", started, rows)
    return 0


def _row(what: str, value: float, unit: str) -> dict[str, object]:
    return {"what": what, "value": value, "unit": unit}


def _idle(home: Path, looks: int) -> list[dict[str, object]]:
    """An agent with nothing to do, looking once a second."""
    with Store(home / "coda.db") as store:
        store.set(server="http://127.0.0.1:1", agent_not_before=str(time.time() + 3600))
    words = [sys.executable, "-m", "device_runtime", "device", "agent", "--home", str(home), "--look-every", "1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        agent.stdout.readline()  # the first look is over
        before = _cpu_s(agent.pid)
        time.sleep(looks)
        used = _cpu_s(agent.pid) - before
        status = Path(f"/proc/{agent.pid}/status").read_text()
        agent.terminate()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    return [
        _row("idle agent, peak memory", peak / 1024, "MiB"),
        _row("idle agent, CPU of a look", 1000 * used / looks, "ms"),
        _row("idle agent, share of a core at a look a minute", 100 * used / looks / _LOOK_S, "%"),
    ]


def _cpu_s(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _digested(path: Path, count: int) -> list[dict[str, object]]:
    """Visits of twenty exposures, of which one is clicked, stored in one go and turned into samples."""
    rng, at = random.Random(7), 1_600_000_000_000
    events: list[Activity] = []
    while len(events) < count:
        page, shown = f"page {at}", [f"item {rng.randrange(5000)}" for _ in range(20)]
        events.append(Activity("page_enter", at, "", page))
        events += [Activity("exposure", at + 100 * n, item, page) for n, item in enumerate(shown, 1)]
        events += [Activity("click", at + 5000, shown[0], page), Activity("page_exit", at + 9000, "", page)]
        at += 60_000
    with Store(path) as store:
        log = ActivityLog(store.database)
        before = time.process_time()
        log.append(events)
        stored = time.process_time()
        found = digest(store, log, DEFAULTS)
        done = time.process_time()
    return [
        _row(f"storing {len(events):,} events, CPU", stored - before, "s"),
        _row(f"digesting them to {found.samples:,} samples, CPU", done - stored, "s"),
        _row("on disk", path.stat().st_size / (1 << 20), "MiB"),
    ]


def _cold_start(home: Path, times: int) -> list[dict[str, object]]:
    """A process from its start to a ranked list and its end."""
    words = [sys.executable, "-m", "device_runtime", "device", "rank", "--home", str(home), "--engine", "onnx"]
    found = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(words, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return [_row("cold start to a ranked list, CPU", float(np.median(found)), "s")]


class _Offline:
    """A server that has nothing new, and takes no reports."""

    base_url = "offline"

    def __init__(self) -> None:
        self.counter = ByteCounter()
        self.bundle, self.stale = 0, ""

    def request(self, method: str, path: str, *_: object, **__: object) -> Answer:
        if path.startswith("/v1/stale/"):
            return Answer(204, Message(), b"", "")
        raise Unreachable("this benchmark has no server")

    def fetch_blob(self, *_: object) -> int:
        return 0


def _giving_way(home: Path, rounds: int) -> list[dict[str, object]]:
    gaps: list[float] = []
    last = time.process_time()

    def pulse() -> None:
        nonlocal last
        now = time.process_time()
        gaps.append(1000 * (now - last))
        last = now

    server: Any = _Offline()
    with DeviceHome(home) as opened:
        for seed in range(rounds + 1):
            if seed == 1:
                gaps.clear()  # the first round warms up
            last = time.process_time()
            run_round(opened, server, open_engine("onnx"), RoundOptions(seed=seed, match=False), pulse=pulse)
    return [
        _row("between two looks for the app in a round, longest CPU", max(gaps), "ms"),
        _row("between two looks for the app in a round, median CPU", float(np.median(gaps)), "ms"),
    ]
