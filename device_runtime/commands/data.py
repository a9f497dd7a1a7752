"""`coda device import | event | export | repair | erase`: what is held of the user."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import msgspec

from device_runtime.activity import Activity, ActivityLog, stamp_ms
from device_runtime.errors import InputError, StoreError
from device_runtime.locking import locked
from device_runtime.store import Event, Store


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: str
    at_ms: int
    item: str = ""
    page: str = ""
    value: float = 0.0


def import_history(args: argparse.Namespace) -> int:
    from device_runtime.commands.shared import open_home, take_in

    with open_home(args, create=True) as home:
        take_in(home, args.file)
    return 0


def event(args: argparse.Namespace) -> int:
    if args.file is not None:
        return _events_of(args.home, args.file)
    if args.kind is not None:
        return _activity(args)
    if args.item is None or (args.label is None and args.rating is None):
        raise InputError("an event needs --item, and --label or --rating; or --kind; or --from")
    if args.label is not None and not 0 <= args.label <= 1:
        raise InputError(f"--label is between 0 and 1; given: {args.label}")
    at = int(time.time()) if args.timestamp is None else args.timestamp
    with Store(args.home / "coda.db") as store:
        came = store.add_events([Event(args.item, at, args.label, args.rating)])
    print("stored" if came else "already known")
    return 0


def _activity(args: argparse.Namespace) -> int:
    if args.label is not None:
        raise InputError("--label goes without --kind: labels of what the app saw are made by triggers")
    with Store(args.home / "coda.db") as store:
        log = ActivityLog(store.database)
        at_ms = stamp_ms(time.time(), log.newest_ms()) if args.timestamp is None else args.timestamp * 1000
        came = log.append([Activity(args.kind, at_ms, args.item or "", args.page, args.rating or 0.0)])
    print("stored" if came else "already known")
    return 0


def _events_of(home: Path, path: Path) -> int:
    """Good lines are stored, in batches; bad ones are counted, with number and reason."""
    came = known = bad = 0
    try:
        opened = nullcontext(sys.stdin.buffer) if str(path) == "-" else path.open("rb")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    with opened as lines, Store(home / "coda.db") as store:
        log = ActivityLog(store.database)
        batch: list[Activity] = []
        for number, line in enumerate(lines, 1):
            try:
                found = msgspec.json.decode(line, type=_Line)
                batch.append(Activity(found.kind, found.at_ms, found.item, found.page, found.value))
            except (msgspec.DecodeError, InputError) as error:
                bad += 1
                if bad <= 5:
                    print(f"  line {number}: {error}", file=sys.stderr)
            if len(batch) == 5000:
                stored = log.append(batch)
                came, known, batch = came + stored, known + len(batch) - stored, []
        stored = log.append(batch)
        came, known = came + stored, known + len(batch) - stored
    print(f"{path}: {came} new events, {known} already known, {bad} bad lines")
    return 0


def export(args: argparse.Namespace) -> int:
    """Plain files; the private key is not among them, it would only let others pose as this device."""
    from device_runtime.commands.shared import open_home

    with open_home(args) as home:
        try:
            args.out.mkdir(parents=True, mode=0o700)
        except OSError as error:
            raise InputError(f"cannot make the folder {args.out}: {error.strerror}; choose a new one") from None
        store, log = home.store, ActivityLog(home.store.database)
        events = [msgspec.json.encode(row) for row in _as_rows(store)]
        (args.out / "samples.jsonl").write_bytes(b"\n".join([*events, b""]) if events else b"")
        with (args.out / "events.jsonl").open("wb") as file:
            file.writelines(msgspec.json.encode(_Line(**vars(e))) + b"\n" for _, e in log.read())
        rounds = msgspec.json.encode(store.rounds())
        (args.out / "rounds.json").write_bytes(msgspec.json.format(rounds) + b"\n")
        (args.out / "settings.json").write_bytes(msgspec.json.format(msgspec.json.encode(store.settings())) + b"\n")
        weights = home.path / "weights"
        if weights.is_dir():
            shutil.copytree(weights, args.out / "weights")
        print(f"{args.out}: {len(events)} samples, {log.count()} events, {len(store.rounds())} rounds")
    return 0


def _as_rows(store: Store) -> Iterator[dict[str, object]]:
    """As `coda device import` takes them."""
    for e in store.events():
        yield {
            "item_id": e.item,
            "timestamp": e.timestamp,
            "label": e.label,
            "rating": e.rating,
            "observed": e.observed,
        }


def mend(args: argparse.Namespace) -> int:
    from device_runtime.repair import repair

    if not args.home.is_dir():
        raise InputError(f"{args.home} is not a folder")
    done = repair(args.home)
    print("\n".join(done) or "nothing is damaged")
    return 0


def erase(args: argparse.Namespace) -> int:
    if not (args.home / "coda.db").exists():
        raise InputError(f"{args.home} is not a device's home")
    count = _held(args.home)
    if not args.yes:
        raise InputError(f"this would delete {count}, the weights and the identity in {args.home}; add --yes")
    with locked(args.home):
        shutil.rmtree(args.home)
    print(f"{args.home} is gone, with {count}")
    return 0


def _held(home: Path) -> str:
    """Also a damaged home can be erased."""
    try:
        with Store(home / "coda.db") as store:
            return f"{store.count_events() + ActivityLog(store.database).count()} events"
    except StoreError:
        return "an unknown number of events"
