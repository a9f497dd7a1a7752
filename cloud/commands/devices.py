"""`coda devices …`: the devices that a server knows."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from device_runtime.bundle import write_atomically
from device_runtime.errors import InputError

if TYPE_CHECKING:
    from cloud.catalog import Catalog, Device

DESCRIPTION = """\
The devices that are enrolled at a server. Takes effect at once, also while `coda serve` runs.

example:
  coda devices list   --home runs/server
  coda devices revoke --home runs/server 27f5aa5ee54fb3a6e4b7cdca4ccd9332    its requests are refused from now on
  coda devices rotate --home runs/server --all                               each makes a new key at its next round
"""


class Command:
    help = "list and revoke a server's devices, have them make new keys"

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        parser.description = DESCRIPTION
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
        sub = verbs.add_parser("list", help="every device: when it came, when it was last seen, of which class it is")
        sub.add_argument("--json", type=Path, metavar="OUT", help="write them as JSON")
        for verb, summary in (("revoke", "refuse their requests from now on"), ("rotate", "ask them for new keys")):
            sub = verbs.add_parser(verb, help=summary)
            sub.add_argument("devices", nargs="*", metavar="DEVICE", help="ids of 32 hex digits, as `list` prints them")
            if verb == "rotate":
                sub.add_argument("--all", action="store_true", help="every device that is not revoked")
        for sub in verbs.choices.values():
            sub.add_argument("--home", type=Path, required=True, metavar="DIR", help="the server's folder")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        from cloud.home import ServerHome

        with ServerHome(args.home, create=False) as home:
            if args.verb == "list":
                _list(args, home.catalog)
            else:
                _change(args, home.catalog)
        return 0


def _list(args: argparse.Namespace, catalog: Catalog) -> None:
    found = []
    for device in _every(catalog):
        state = "revoked" if device.revoked else "asked for a new key" if device.rotation_due else ""
        print(f"{device.id}  {_day(device.enrolled)}  {_day(device.seen)}  {device.device_class}  {state}".rstrip())
        if args.json:
            found.append(device)
    if args.json:
        write_atomically(args.json, msgspec.json.encode({"command": "devices list", "rows": found}))


def _change(args: argparse.Namespace, catalog: Catalog) -> None:
    everybody = args.verb == "rotate" and args.all
    if everybody == bool(args.devices):
        raise InputError(f"name the devices to {args.verb}{', or --all' if args.verb == 'rotate' else ''}")
    if everybody:
        print(f"{catalog.ask_for_rotation(None)} devices will make a new key at their next round")
        return
    for name in args.devices:  # all are looked at before any is changed
        if not re.fullmatch("[0-9a-f]{32}", name) or catalog.device(name) is None:
            raise InputError(f"no device {name!r} is enrolled here; `coda devices list --home {args.home}` shows them")
    for name in args.devices:
        if args.verb == "revoke":
            catalog.revoke(name)
            print(f"{name} is revoked")
        else:
            asked = catalog.ask_for_rotation(name)
            print(f"{name} {'will make a new key at its next round' if asked else 'is revoked, and is not asked'}")


def _every(catalog: Catalog) -> Iterator[Device]:
    after = ""
    while page := catalog.devices(after):
        yield from page
        after = page[-1].id


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(at))
