"""`coda release …`: what a server serves."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import msgspec

from device_runtime.bundle import write_atomically

DESCRIPTION = """\
Publish bundles on a server. A bundle is verified file by file before it becomes the current release.

example:
  coda release keys --home runs/server                 the key to give to `coda export --answer-key`
  coda release publish runs/bundle-1 --home runs/server
  coda release list --home runs/server
"""


class Command:
    help = "publish bundles on a server"

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        parser.description = DESCRIPTION
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
        sub = verbs.add_parser("keys", help="print the server's public answer key; it is made when first asked for")
        sub.add_argument("--home", type=Path, required=True, metavar="DIR", help="the server's folder")
        sub = verbs.add_parser("publish", help="verify a bundle and make it the current release")
        sub.add_argument("bundle", type=Path, metavar="BUNDLE", help="what `coda export` wrote")
        sub.add_argument("--home", type=Path, required=True, metavar="DIR", help="the server's folder")
        sub = verbs.add_parser("list", help="list releases, newest first")
        sub.add_argument("--home", type=Path, required=True, metavar="DIR", help="the server's folder")
        sub.add_argument("--json", type=Path, metavar="OUT", help="write them as JSON")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        from cloud.home import ServerHome, publish

        # only `keys` makes a home: a mistyped folder must not become one
        with ServerHome(args.home, create=args.verb == "keys") as home:
            if args.verb == "keys":
                print(home.answer_signer.public)
            elif args.verb == "publish":
                manifest = publish(home, args.bundle)
                print(f"{args.home} now serves bundle {manifest.version}: {manifest.model} on {manifest.name}")
            else:
                found = home.catalog.releases()
                for number, release in enumerate(found):
                    day = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(release.published))
                    print(f"{release.ref.version:6}  {day}  {release.name}{'' if number else '  <- current'}")
                if args.json:
                    write_atomically(args.json, msgspec.json.encode({"command": "release list", "rows": found}))
        return 0
