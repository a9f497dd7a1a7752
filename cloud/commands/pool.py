"""The verbs of `coda data` that are about a server's pool."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from device_runtime.bundle import write_atomically
from device_runtime.errors import InputError

if TYPE_CHECKING:
    from cloud.pool import Pool

INGEST = """\
Embed samples by the released encoder and add them to a server's pool, also while it serves: a prepared data set, or
with --interactions a table of any size, a folder of tables, or an fsspec URL such as s3://bucket/folder. Users become
pseudonyms. What is in the pool already is known by its content and not added again, so a run that was killed is simply
started anew. A file alone has the histories that are in it; in a folder, all its files make up the histories.
Samples are durable, and a server finds them, as soon as they are in the pool; merging segments and building indexes
comes after, and only makes searching cheaper.

examples:
  coda data ingest --home runs/server --data runs/data
  coda data ingest --home runs/server --interactions logs/ --positive-at 4
"""
ERASE = """\
Hide a contributor's samples from every answer at once, in all processes that serve the pool, and keep what they gave so
far from being ingested again. The samples leave the disk by the next `coda data compact`, or when the server merges.

examples:
  coda data erase --home runs/server --user 42
  coda data erase --home runs/server --device 6d1c…
"""
COMPACT = """\
Merge small segments of the pool and rewrite those that hide samples, so that erased and aged ones are gone from disk;
build indexes. Serving and ingesting go on meanwhile.

example:
  coda data compact --home runs/server --full
"""
RETAIN = """\
Hide the oldest samples: by age, or so that at most so many, or so much on disk, are left. They leave the disk by the
next compaction.

examples:
  coda data retain --home runs/server --days 180
  coda data retain --home runs/server --samples 10000000
"""
STATS = """\
Say what a server's pool holds.

example:
  coda data stats --home runs/server --json stats.json
"""
_GIB = 1 << 30


def add_pool_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """ingest, erase, compact, retain, stats."""
    sub = _verb(verbs, "ingest", "embed samples and add them to a server's pool", INGEST)
    source = sub.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, metavar="DIR", help="a prepared data set")
    source.add_argument("--interactions", metavar="F", help="table, folder of tables, or URL")
    sub.add_argument("--positive-at", type=float, metavar="X", help="least rating that counts as a like; 4")
    sub.add_argument("--bundle", type=int, metavar="V", help="by the encoder of this bundle, before its release begins")
    sub.add_argument("--json", type=Path, metavar="OUT", help="write how many, and how long it took, as JSON")
    sub = _verb(verbs, "erase", "make the pool forget a contributor", ERASE)
    who = sub.add_mutually_exclusive_group(required=True)
    who.add_argument("--user", metavar="KEY", help="the user's key in the ingested table")
    who.add_argument("--device", metavar="ID", help="the id of a device that contributed")
    sub = _verb(verbs, "compact", "merge segments, and drop from disk what was erased", COMPACT)
    sub.add_argument("--full", action="store_true", help="merge all that fits together, not only what is due")
    sub = _verb(verbs, "retain", "make the pool forget what is old", RETAIN)
    limit = sub.add_mutually_exclusive_group(required=True)
    limit.add_argument("--days", type=float, metavar="N", help="hide samples that are older")
    limit.add_argument("--samples", type=int, metavar="N", help="keep the newest so many")
    limit.add_argument("--gib", type=float, metavar="N", help="keep the newest that fit")
    sub = _verb(verbs, "stats", "what the pool holds", STATS)
    sub.add_argument("--json", type=Path, metavar="OUT", help="write the facts as JSON")


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, line: str, text: str
) -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    sub = verbs.add_parser(name, help=line, description=text, formatter_class=form)
    sub.add_argument("--home", type=Path, required=True, metavar="DIR", help="the server's folder")
    return sub


def _ingest(args: argparse.Namespace) -> int:
    from rich.progress import Progress

    from cloud.datasets import Dataset
    from cloud.home import ServerHome, ingest
    from cloud.http.services import served
    from cloud.ingestion import ingest_tables

    if args.data and args.positive_at is not None:
        raise InputError("--positive-at goes with --interactions: a prepared data set has its labels")
    with ServerHome(args.home) as home, Progress(transient=True) as bar:
        task = bar.add_task("embed", total=None)

        def show(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total or None)

        bundle = served(home, args.bundle)
        pool = bundle.pool
        before, clock = len(pool), _Clock()
        if args.data:
            count = ingest(home, Dataset.load(args.data), lambda done, total: show("embed", done, total), args.bundle)
            told = [f"{count} samples"]
            read: dict[str, object] = {}
        else:
            found = ingest_tables(home, args.interactions, args.positive_at, show, args.bundle)
            read = {"rows": found.rows, "before": found.before, "dropped": found.dropped.counts}
            told = [f"{found.rows} rows read, {found.before} were in the pool already"]
            for reason, number in found.dropped.counts.items():
                told.append(f"  dropped {number}: {reason} ({', '.join(found.dropped.examples[reason])} …)")
        taken, held = clock.lap(), len(pool)
        show("merge", 0, 0)
        if pool.due():
            pool.compact(prepare=bundle.prepare)
        show("prepare", 0, 0)
        bundle.warm(wait=True)
        prepared = clock.lap()
    print("\n".join(told))
    print(f"{args.home}: {held - before} samples added to the pool, which has {held}")
    print(f"in the pool, durable and searched: {_said(taken)}; merged and made ready to match: {_said(prepared)} more")
    if args.json:
        facts = {**read, "added": held - before, "samples": held, "pool": taken, "prepared": prepared}
        write_atomically(args.json, msgspec.json.format(msgspec.json.encode({"command": "data ingest", **facts})))
    return 0


class _Clock:
    """Seconds of wall time and of CPU time of all threads, lap by lap."""

    def __init__(self) -> None:
        self._since = self._now()

    def lap(self) -> dict[str, float]:
        before, self._since = self._since, self._now()
        return {name: self._since[name] - before[name] for name in before}

    @staticmethod
    def _now() -> dict[str, float]:
        return {"seconds": time.perf_counter(), "cpu_s": time.process_time()}


def _said(lap: dict[str, float]) -> str:
    return f"{lap['seconds']:.1f} s ({lap['cpu_s']:.1f} CPU s)"


def _erase(args: argparse.Namespace) -> int:
    from cloud.home import ServerHome

    name = f"user:{args.user}" if args.user else f"device:{args.device}"
    with ServerHome(args.home, create=False) as home:
        count = sum(pool.erase(home.contributor(name), int(time.time())) for pool in home.pools())
    print(f"{args.home}: {count} samples hidden; `coda data compact` takes them from disk")
    return 0


def _compact(args: argparse.Namespace) -> int:
    from cloud.home import ServerHome
    from cloud.http.services import served

    with ServerHome(args.home, create=False) as home:
        bundle = served(home)
        pool = bundle.pool
        before = len(pool.segments)
        done = pool.compact(args.full, bundle.prepare)
        bundle.warm(wait=True)
        print(f"{args.home}: {done} of {before} segments rewritten; there are {len(pool.segments)} now")
    return 0


def _retain(args: argparse.Namespace) -> int:
    with _pool(args) as pool:
        if (limit := next(x for x in (args.days, args.samples, args.gib) if x is not None)) < 0:
            raise InputError(f"what is to be kept cannot be below 0; it is {limit}")
        if args.days is not None:
            count = pool.retain(int(time.time() - args.days * 86_400))
        elif args.samples is not None:
            count = pool.retain_newest(args.samples)
        else:
            facts = pool.stats()
            each = facts["bytes"] / max(facts["samples"] + facts["hidden"], 1)
            count = pool.retain_newest(int(args.gib * _GIB / max(each, 1)))
        print(f"{args.home}: {count} samples hidden, {len(pool)} left; `coda data compact` takes them from disk")
    return 0


def _stats(args: argparse.Namespace) -> int:
    with _pool(args) as pool:
        facts = pool.stats()
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):18}{value}")
    if args.json:
        write_atomically(args.json, msgspec.json.format(msgspec.json.encode({"command": "data stats", **facts})))
    return 0


@contextmanager
def _pool(args: argparse.Namespace) -> Iterator[Pool]:
    """The pool of a home's release, while the home is open."""
    from cloud.home import ServerHome

    with ServerHome(args.home, create=False) as home:
        yield home.pool(home.release()[1])


POOL_VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "ingest": _ingest,
    "erase": _erase,
    "compact": _compact,
    "retain": _retain,
    "stats": _stats,
}
