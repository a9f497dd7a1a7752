"""`coda profile`: rounds on a real device, from this machine: over ssh, or over adb."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from cloud.remote import Adb, Remote, Ssh
from cloud.report import profile
from device_runtime import __version__
from device_runtime.engines import ENGINES
from device_runtime.errors import CodaError, InputError, WireError
from device_runtime.messages import RoundReport

DESCRIPTION = """\
Measure rounds on a real device. Copies CoDA's wheel, a history and the release key to a new folder there, runs rounds
against a server, brings the records back, removes the folder, and writes a report. A server on this machine's loopback
is forwarded (ssh -R, adb reverse); any other must be reachable from the device.

Over ssh, a virtual environment is made there and the wheel installed by pip. With --python, an interpreter that already
has the dependencies is used instead and nothing is installed; over adb that is the only way.

example:
  coda profile --ssh pi@raspberrypi --server http://127.0.0.1:8470 --trust release.pub --history history.csv
  coda profile --adb 1A2B3C --python /data/local/tmp/python/bin/python3 --server … --trust … --history …
"""


class Command:
    help = "measure rounds on a real device, over ssh or adb"

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        parser.description = DESCRIPTION
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        where = parser.add_mutually_exclusive_group(required=True)
        where.add_argument("--ssh", metavar="USER@HOST")
        where.add_argument("--adb", metavar="SERIAL")
        parser.add_argument("--server", required=True, metavar="URL")
        parser.add_argument("--trust", type=Path, required=True, metavar="FILE", help="the public release key")
        parser.add_argument("--history", type=Path, required=True, metavar="FILE", help="as for `coda device import`")
        parser.add_argument("--engine", choices=ENGINES, help="default: the first that works there")
        parser.add_argument("--rounds", type=int, default=3, metavar="N", help="(%(default)s)")
        parser.add_argument("--python", metavar="PATH", help="an interpreter there that has the dependencies")
        parser.add_argument("--wheel", type=Path, metavar="FILE", help="default: built from this checkout")
        parser.add_argument("--report", type=Path, default=Path("profile-report"), metavar="DIR", help="(%(default)s)")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        if args.rounds < 1:
            raise InputError("--rounds is at least 1")
        if args.adb and not args.python:
            raise InputError("Android has no Python of its own: name one on the device with --python")
        for path in (args.trust, args.history, *([args.wheel] if args.wheel else [])):
            if not path.is_file():
                raise InputError(f"{path} is not a file")
        target = args.ssh or args.adb
        if target.startswith("-"):
            raise InputError(f"{target!r} is not the name of a device")
        remote: Remote = Ssh(target) if args.ssh else Adb(target)
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with TemporaryDirectory(prefix="coda-profile-") as folder:
            wheel = args.wheel or _wheel(Path(folder))
            found = _measure(remote, args, wheel, Path(folder))
        report = _report(found, args, started)
        profile.write(report, args.report)
        for one in report.rounds:
            cost = sum(phase.cpu_user_s + phase.cpu_system_s for phase in one.phases)
            print(
                f"{one.engine}: {one.outcome}, {one.local} local samples, {one.candidates} candidates, {cost:.2f} CPU s"
            )
        print(f"{args.report / 'report.html'} has the rest; not measured: {' '.join(report.unmeasured)}")
        return 0


def _wheel(folder: Path) -> Path:
    """Raises: InputError: this is no checkout, or the wheel cannot be built."""
    source = Path(__file__).resolve().parents[2]
    if not (source / "pyproject.toml").exists():
        raise InputError("CoDA is installed here without its sources; give its wheel with --wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"the wheel cannot be built: {done.stderr.strip().splitlines()[-1:]}; give one with --wheel")
    [wheel] = folder.glob("coda_loop-*.whl")
    return wheel


def _measure(remote: Remote, args: argparse.Namespace, wheel: Path, folder: Path) -> dict[str, Any]:
    """Everything that happens on the device; the record of its rounds."""
    there = remote.folder()
    if not re.fullmatch(r"/[\w./-]+", there):
        raise WireError(f"{remote.name} gave {there[:80]!r} for a new folder")
    try:
        remote.push([wheel, args.trust, args.history], there)
        python, environment = args.python, {"CODA_CACHE": f"{there}/cache"}
        if python:
            remote.run([python, "-m", "zipfile", "-e", f"{there}/{wheel.name}", f"{there}/site"], {})
            environment["PYTHONPATH"] = f"{there}/site"
        else:
            python = f"{there}/venv/bin/python"
            remote.run(["python3", "-m", "venv", f"{there}/venv"], {})
            remote.run([python, "-m", "pip", "install", "--quiet", f"{there}/{wheel.name}"], {})
        words = ["--home", f"{there}/phone", "--server", args.server, "--trust", f"{there}/{args.trust.name}"]
        words += ["--import", f"{there}/{args.history.name}", "--rounds", str(args.rounds)]
        words += ["--json", f"{there}/rounds.json", *(["--engine", args.engine] if args.engine else [])]
        remote.run([python, "-m", "device_runtime", "device", "run", *words], environment, args.server)
        remote.pull(f"{there}/rounds.json", folder / "rounds.json")
    finally:
        _remove(remote, there)
    try:
        found: dict[str, Any] = json.loads((folder / "rounds.json").read_text())
    except (OSError, ValueError) as error:
        raise WireError(f"the records of {remote.name} cannot be read: {error}") from None
    return found


def _remove(remote: Remote, folder: str) -> None:
    try:
        remote.run(["rm", "-rf", folder], {})
    except CodaError as error:  # what ended the run, if anything did, matters more
        print(f"{folder} is left on {remote.name}: {error}", file=sys.stderr)


def _report(found: dict[str, Any], args: argparse.Namespace, started: str) -> profile.ProfileReport:
    try:
        rows: Sequence[dict[str, Any]] = found["rows"]
        rounds = [msgspec.convert(row, RoundReport) for row in rows]
        traffic = [msgspec.convert(row["bytes_by_message"], dict[str, tuple[int, int]]) for row in rows]
        machine = msgspec.convert(found["machine"], dict[str, Any])
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise WireError(f"the device's records are not those of this version: {error}") from None
    return profile.ProfileReport(
        shlex.join(["coda", *sys.argv[1:]]),
        __version__,
        started,
        args.ssh or f"Android device {args.adb}",
        machine,
        rounds,
        traffic,
        profile.unmeasured(rounds, bool(args.adb)),
    )
