"""`coda backup`: a server's home in one file, while it serves."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sqlite3
import tarfile
import tempfile
from pathlib import Path

from device_runtime.errors import InputError, StoreError

DESCRIPTION = """\
Write what a server needs to go on elsewhere into one tar file: keys, salt, settings, catalog, blobs, pool. The server
may go on serving and taking in samples meanwhile; what was acknowledged before the backup began is in it. The file
holds private keys: keep it like them. To restore, unpack it into an empty folder, which then is a home.

A catalog on PostgreSQL is not in it: back that up by pg_dump, and before the home.

example:
  coda backup --home runs/server --out server.tar
  mkdir restored && tar -xf server.tar -C restored && coda serve --home restored
"""
_TRIES = 50


class Command:
    help = "back up a server's home while it serves"

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        parser.description = DESCRIPTION
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.add_argument("--home", type=Path, required=True, metavar="DIR", help="the server's folder")
        parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a tar file that is not there yet")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        if not (args.home / "answer.key").exists():
            raise InputError(f"{args.home} is not a server's home")
        if args.out.exists():
            raise InputError(f"{args.out} exists; a backup is never overwritten")
        try:
            size = backup(args.home, args.out)
        except (OSError, sqlite3.Error) as error:
            args.out.unlink(missing_ok=True)
            raise StoreError(f"no backup of {args.home} could be made: {error}") from None
        print(f"{args.out} holds {args.home}: {size} bytes; it has the private keys in it")
        return 0


def backup(home: Path, out: Path) -> int:
    """Returns the file's size. Raises: OSError, sqlite3.Error."""
    # on the same disk, so that a snapshot of immutable files is a matter of links
    with tempfile.TemporaryDirectory(dir=home, prefix=".backup-") as folder:
        snapshot = Path(folder)
        if (home / "catalog.db").exists():
            with (
                contextlib.closing(sqlite3.connect(home / "catalog.db")) as live,
                contextlib.closing(sqlite3.connect(snapshot / "catalog.db")) as copy,
            ):
                live.backup(copy)
        for name in ("answer.key", "salt", "watch.token", "server.toml"):
            if (home / name).exists():
                shutil.copy2(home / name, snapshot / name)
        _linked(home / "blobs", snapshot / "blobs")
        _linked(home / "pool", snapshot / "pool")
        with os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                archive.add(snapshot, arcname=".", filter=_plain)
            file.flush()
            os.fsync(file.fileno())
    return out.stat().st_size


def _linked(source: Path, target: Path) -> None:
    """A tree of links to immutable files. What says which of them count (`pool.json`) is replaced when that changes: if
    it was, once more from the start."""
    for _ in range(_TRIES):
        shutil.rmtree(target, ignore_errors=True)
        before = _manifests(source)
        try:
            for file in [path for path in source.rglob("*") if path.is_file() and not path.name.startswith(".")]:
                into = target / file.relative_to(source)
                into.parent.mkdir(parents=True, exist_ok=True)
                os.link(file, into)
        except FileNotFoundError:  # compacted away, which replaces the manifest too
            continue
        if _manifests(source) == before:
            return
    raise OSError(f"{source} changed during each of {_TRIES} tries; try again when less is taken in")


def _manifests(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*/pool.json")}


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
