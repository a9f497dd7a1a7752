#!/usr/bin/env python3
"""Measure rounds of the Android app on an emulator or a phone, over adb: `.venv/bin/python android_demo/bench/run.py`.

Installs the APK, starts its benchmark as often as asked (each time with empty data, so that every first round pulls the
bundle), waits, brings the records back and writes the same report as `coda profile`. Meanwhile memory is asked of
`dumpsys meminfo`, and afterwards the app's bytes are compared with the kernel's counters of its user id.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from cloud.remote import Adb
from cloud.report import profile
from device_runtime import __version__
from device_runtime.errors import CodaError, InputError, Unreachable, WireError
from device_runtime.messages import RoundReport

PACKAGE = "org.coda.app"
FOLDER = f"/sdcard/Android/data/{PACKAGE}/files"
POLL_S = 2.0
MAY_DIFFER = 0.15
"""Share by which two counts of the same thing may differ without that being said."""
_TOTAL = re.compile(r"TOTAL(?: PSS)?:?\s+(\d+)")
NOT_SEEN = (
    "Energy: the battery's counter is read only while the phone is not charging, and adb over USB charges it.",
    "An emulator runs on this machine's processor: its seconds say how runs compare, not what a phone takes.",
    "Bytes are those of HTTP inside TLS; the kernel's counters of the user id, in platform, have the rest.",
)


@dataclass(frozen=True)
class Run:
    """One start of the benchmark. record: what the app wrote. pss_mib: the most that `dumpsys meminfo` told; None where
    it told nothing."""

    record: dict[str, Any]
    pss_mib: float | None


def measure(adb: Adb, server: str, trust: str, rounds: int, events: int, seed: int, patience_s: float) -> Run:
    """Start the benchmark with empty data and wait for its record.

    Raises:
        Unreachable: the phone does not answer, or nothing came within `patience_s`.
        InputError: the benchmark failed, with the app's own words.
    """
    adb.run(["pm", "clear", PACKAGE], {})
    words = ["--es", "server", server, "--es", "trust", trust, "--ei", "rounds", str(rounds)]
    words += ["--ei", "events", str(events), "--ei", "seed", str(seed)]
    adb.run(["am", "start", "-W", "-n", f"{PACKAGE}/.BenchmarkActivity", *words], {})
    most: float | None = None
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        found = adb.run(["sh", "-c", f"ls {FOLDER} 2>/dev/null || true"], {}).split()
        if "benchmark.error" in found:
            raise InputError(f"the app says: {adb.run(['cat', f'{FOLDER}/benchmark.error'], {}).strip()}")
        if "benchmark.json" in found:
            with TemporaryDirectory() as folder:
                adb.pull(f"{FOLDER}/benchmark.json", Path(folder) / "record.json")
                return Run(json.loads((Path(folder) / "record.json").read_text()), most)
        told = _TOTAL.search(adb.run(["dumpsys", "meminfo", PACKAGE], {}))
        if told:
            most = max(most or 0.0, int(told[1]) / 1024)
        time.sleep(POLL_S)
    raise Unreachable(f"no record came from {adb.name} within {patience_s:g} s; look at its screen, or at adb logcat")


def checks(run: Run) -> list[str]:
    """In which ways the platform's counts and the app's own differ."""
    said = []
    rows = run.record["rows"]
    peak = max(row["overhead"]["peak_mib"] for row in rows)
    if run.pss_mib is None:
        said.append("dumpsys meminfo told nothing while the rounds ran: peaks are the app's own word")
    elif run.pss_mib > peak * (1 + MAY_DIFFER):
        said.append(f"dumpsys meminfo saw {run.pss_mib:.0f} MiB (PSS), the app's own peak is {peak:.0f} MiB")
    for way in ("up", "down"):
        own = sum(sum(pair[way == "down"] for pair in row["bytes_by_message"].values()) for row in rows)
        kernel = sum(row["platform"][f"uid_bytes_{way}"] for row in rows)
        if not own * (1 - MAY_DIFFER) <= kernel <= own * (2 + MAY_DIFFER):  # TCP and TLS can double short messages
            said.append(f"the kernel counts {kernel} bytes {way} for the app's user, the app itself {own}")
    return said


def report(runs: list[Run], target: str, started: str) -> profile.ProfileReport:
    """Raises: WireError: a record is not of this version."""
    try:
        rows = [row for run in runs for row in run.record["rows"]]
        rounds = [msgspec.convert(row, RoundReport) for row in rows]
        traffic = [msgspec.convert(row["bytes_by_message"], dict[str, tuple[int, int]]) for row in rows]
        machine = msgspec.convert(runs[0].record["machine"], dict[str, Any])
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise WireError(f"the app's record is not of this version: {error}") from None
    said = [*NOT_SEEN, *(check for run in runs for check in checks(run))]
    return profile.ProfileReport(shlex.join(sys.argv), __version__, started, target, machine, rounds, traffic, said)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adb", required=True, metavar="SERIAL", help="as `adb devices` lists it")
    parser.add_argument(
        "--apk", type=Path, metavar="FILE", help="install this one first, such as build/android/coda.apk"
    )
    parser.add_argument("--server", required=True, metavar="URL", help="one on this machine's loopback is forwarded")
    parser.add_argument("--trust", type=Path, required=True, metavar="FILE", help="the public release key")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of each start (%(default)s)")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="starts (%(default)s)")
    parser.add_argument("--events", type=int, default=100, metavar="N", help="of the made-up history (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(%(default)s)")
    parser.add_argument("--patience", type=float, default=600.0, metavar="S", help="for each start (%(default)s)")
    parser.add_argument("--report", type=Path, default=Path("android-report"), metavar="DIR", help="(%(default)s)")
    args = parser.parse_args(words)
    try:
        return _run(args)
    except CodaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status


def _run(args: argparse.Namespace) -> int:
    if min(args.rounds, args.repeat, args.events) < 1:
        raise InputError("--rounds, --repeat and --events are at least 1")
    try:
        trust = args.trust.read_text().strip()
    except OSError as error:
        raise InputError(f"cannot read {args.trust}: {error.strerror}") from None
    adb, started = Adb(args.adb), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if args.apk:
        adb.install(args.apk)
    runs = []
    with adb.forwarded(args.server):
        for _ in range(args.repeat):
            runs.append(measure(adb, args.server, trust, args.rounds, args.events, args.seed, args.patience))
    made = report(runs, f"Android app on {args.adb}", started)
    profile.write(made, args.report)
    for one in made.rounds:
        cost = sum(phase.cpu_user_s + phase.cpu_system_s for phase in one.phases)
        print(f"{one.outcome}: {one.local} local samples, kept {one.kept} of {one.candidates}, {cost:.2f} CPU s")
    print(f"{args.report / 'report.html'} has the rest; not measured: {' '.join(made.unmeasured)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
