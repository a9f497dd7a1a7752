"""`coda trust …`: the publisher's documents, made and signed where the keys are; no server and no network is needed."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import msgspec

from device_runtime.bundle import write_atomically
from device_runtime.errors import InputError
from device_runtime.identity import Signer, check_public_key, key_id
from device_runtime.messages import BundleRef
from device_runtime.trust import (
    Listing,
    Root,
    TrustedSet,
    check_listing,
    make_root,
    parse,
    role_of,
    unsigned,
    with_signature,
)

DESCRIPTION = """\
Who may say what devices run. A root names the keys, and is signed by several people who keep theirs offline; a list
names the bundles, and is signed by the release key. Devices are given the root (`coda device run --trust root-1.json`),
and follow its successors by themselves. docs/operate.md says what to do when a key is lost or stolen.

example:
  coda trust key ada.key                                   prints the public key; the file stays with Ada
  coda trust root --key ADA --key BOB --key EVE --threshold 2 --bundle-key RELEASE --online ANSWER --out root-1.json
  coda trust sign root-1.json --key ada.key                and then Bob does
  coda trust bundles runs/bundle-1 --out bundles-1.json && coda trust sign bundles-1.json --key runs/release.key
  coda trust check root-1.json --bundles bundles-1.json
  coda release trust root-1.json bundles-1.json --home runs/server
"""
_DAY_S = 86_400


class Command:
    help = "make and sign the documents that say whose bundles devices believe"

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        parser.description = DESCRIPTION
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

        def verb(name: str, summary: str) -> argparse.ArgumentParser:
            return verbs.add_parser(name, help=summary, description=summary)

        sub = verb("key", "make a key; its public half is printed")
        sub.add_argument("file", type=Path, metavar="FILE", help="a new file, readable by its owner only")
        sub = verb("root", "write a root, to be signed")
        sub.add_argument("--key", action="append", required=True, metavar="PUBLIC", help="of a person who signs roots")
        sub.add_argument("--threshold", type=int, required=True, metavar="N", help="of these that must sign")
        sub.add_argument("--bundle-key", action="append", required=True, metavar="PUBLIC", help="that signs bundles")
        sub.add_argument("--online", action="append", required=True, metavar="PUBLIC", help="`coda release keys`")
        sub.add_argument("--after", type=Path, metavar="ROOT", help="the root that this one follows")
        _configure_out(sub, 365)
        sub = verb("bundles", "write the list of bundles that devices may run, to be signed")
        sub.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE", help="folders that `coda export` wrote")
        sub.add_argument("--after", type=Path, metavar="LIST", help="the list that this one follows; it is taken over")
        sub.add_argument("--drop", action="append", type=int, default=[], metavar="VERSION", help="nobody may run it")
        _configure_out(sub, 90)
        sub = verb("sign", "add a signature to a root or a list")
        sub.add_argument("file", type=Path, metavar="FILE")
        sub.add_argument("--key", type=Path, required=True, metavar="FILE", help="a private key's file")
        sub = verb("check", "whether a root, and a list, are what devices would take")
        sub.add_argument("root", type=Path, metavar="ROOT")
        sub.add_argument("--after", type=Path, metavar="ROOT", help="the root that it follows")
        sub.add_argument("--bundles", type=Path, metavar="LIST")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        {"key": _key, "root": _root, "bundles": _bundles, "sign": _sign, "check": _check}[args.verb](args)
        return 0


def _configure_out(sub: argparse.ArgumentParser, days: int) -> None:
    sub.add_argument("--days", type=float, default=days, metavar="N", help="until it expires (%(default)s)")
    sub.add_argument("--out", type=Path, required=True, metavar="FILE", help="a new file")


def _key(args: argparse.Namespace) -> None:
    print(Signer.create(args.file).public)


def _root(args: argparse.Namespace) -> None:
    before = _document(args.after, "root") if args.after else None
    made = make_root(
        before.version + 1 if before else 1,
        int(time.time() + args.days * _DAY_S),
        root=map(_public, args.key),
        threshold=args.threshold,
        bundles=map(_public, args.bundle_key),
        online=map(_public, args.online),
    )
    _write(args.out, made)
    role = made.roles["root"]
    print(f"{args.out}: root {made.version}, to be signed by {role.threshold} of {', '.join(role.keys)}")
    if isinstance(before, Root):
        role = before.roles["root"]
        print(f"and by {role.threshold} of root {before.version}'s {', '.join(role.keys)}")


def _bundles(args: argparse.Namespace) -> None:
    before = _document(args.after, "bundles") if args.after else None
    listed = dict(before.bundles) if isinstance(before, Listing) else {}
    for folder in args.bundles:
        try:
            ref = msgspec.json.decode((folder / "bundle.json").read_bytes(), type=BundleRef)
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} is not a bundle folder ({error}); make one with `coda export`") from None
        if listed.get(ref.version, ref.manifest) != ref.manifest:
            raise InputError(f"the list has another bundle of version {ref.version}; a version is never used twice")
        listed[ref.version] = ref.manifest
    for version in args.drop:
        if listed.pop(version, None) is None:
            raise InputError(f"the list has no bundle {version} to drop")
    expires = int(time.time() + args.days * _DAY_S)
    _write(args.out, made := Listing(version=before.version + 1 if before else 1, expires=expires, bundles=listed))
    print(f"{args.out}: list {made.version} of bundles {', '.join(map(str, sorted(listed)))}, to be signed")


def _sign(args: argparse.Namespace) -> None:
    data, signer = _read(args.file), Signer.open(args.key)
    role = role_of(data)
    write_atomically(args.file, with_signature(data, role, signer))
    print(f"{args.file}: signed as {role} by {key_id(signer.public)}")


def _check(args: argparse.Namespace) -> None:
    now = time.time()
    if args.after:
        trusted = TrustedSet(_read(args.after))
        trusted.update_root(_read(args.root))
    else:
        trusted = TrustedSet(_read(args.root))
        trusted.check_self_signed()
    trusted.check_root(now)
    print(f"{args.root}: root {trusted.root.version}, until {_day(trusted.root.expires)}")
    if args.bundles:
        listing = check_listing(trusted.root, _read(args.bundles), now)
        print(f"{args.bundles}: list {listing.version}, until {_day(listing.expires)}")


def _document(path: Path, role: str) -> Root | Listing:
    return parse(_read(path), role)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def _write(path: Path, document: Root | Listing) -> None:
    if path.exists():
        raise InputError(f"{path} exists; a document is never overwritten")
    write_atomically(path, unsigned(document))


def _public(given: str) -> str:
    """A public key, or a file with one."""
    path = Path(given)
    return check_public_key(path.read_text().strip() if len(given) < 64 and path.is_file() else given)


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(at))
