"""What the verbs of `coda device` share: the home, the engine, the JSON of results."""

from __future__ import annotations

import argparse
import platform
import re
import sys
import time
from pathlib import Path

import msgspec

from device_runtime import __version__
from device_runtime.bundle import write_atomically
from device_runtime.engines import ENGINES, Engine, installed, open_engine
from device_runtime.errors import EngineUnavailable, InputError
from device_runtime.history import History, batches
from device_runtime.home import DeviceHome
from device_runtime.platform_info import capability


def open_home(args: argparse.Namespace, create: bool = False) -> DeviceHome:
    if not create and not (args.home / "coda.db").exists():
        raise InputError(f"{args.home} is not a device's home; `coda device enrol --home {args.home} …` makes one")
    return DeviceHome(args.home)


def choose_engine(args: argparse.Namespace, home: DeviceHome) -> Engine:
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


def write_result(args: argparse.Namespace, command: str, **fields: object) -> None:
    if args.json:
        machine = msgspec.to_builtins(capability(installed())) | {"platform": platform.platform()}
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        result = {"command": f"device {command}", "version": __version__, "machine": machine, "started": now, **fields}
        write_atomically(args.json, msgspec.json.format(msgspec.json.encode(result)) + b"\n")


def trusted_key(given: str) -> str:
    """A public key, or the text of a root document. Raises: InputError: neither a key nor a file."""
    if re.fullmatch(r"[0-9a-fA-F]{64}", given):
        return given
    try:
        return Path(given).read_text().strip()
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f"--trust takes 64 hex digits, a file that holds them, or a root document; {given!r} is none of these"
        ) from None


def take_in(home: DeviceHome, path: Path) -> None:
    """Import a history, in batches; harmless if it is done twice, or cut off and done again."""
    history, came, known = History(), 0, 0
    for batch in batches(path, history):
        stored = home.store.add_events(batch)
        came, known = came + stored, known + len(batch) - stored
    print(f"{path}: {came} new events, {known} already known, {history.bad.total()} bad rows")
    for example in history.examples:
        print(f"  {example}", file=sys.stderr)
