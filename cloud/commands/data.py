"""`coda data …`: tables in, data sets out, samples into the pool."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from cloud.commands.pool import POOL_VERBS, add_pool_verbs
from device_runtime.bundle import write_atomically
from device_runtime.errors import InputError

if TYPE_CHECKING:
    from cloud.datasets import Dataset, StreamedDataset

DESCRIPTION = """\
Read interactions of any origin. A table (Parquet or CSV) has user_id, item_id, timestamp in seconds and, if known,
rating or label; with neither, every row is a positive and negatives are drawn. An items table has item_id and
optionally title and categories. MovieLens zips or folders, Amazon reviews and Taobao's UserBehavior.csv are read as
downloaded. The pool of a server is fed, looked at and made to forget here too.

example:
  coda data prepare --interactions ratings.csv --items movies.csv --out runs/data
  coda data describe runs/data
  coda data ingest --home runs/server --data runs/data
"""


PREPARE = """\
Read a table or a public data set, and store it as one data set. Rows that cannot be used are dropped, counted and
shown with their lines; a table that cannot be used at all is refused.

examples:
  coda data prepare --interactions ratings.csv --items movies.csv --out runs/data
  coda data prepare --interactions ml-1m.zip --out runs/ml-1m
  coda data prepare --interactions UserBehavior.csv --negatives 4 --seed 7 --out runs/taobao
  coda data prepare --stream --interactions s3://bucket/events/ --items items.parquet --out /data/events

With --stream the table (Parquet or CSV), a folder of tables, or an fsspec URL may be larger than memory: events are put
on disk as columns that `coda train` reads in blocks. Keys of users are not kept.
"""
DESCRIBE = """\
Say what a prepared data set holds, or what `prepare` would make of a table, and which rows are dropped and why.

examples:
  coda data describe runs/data
  coda data describe --interactions ratings.csv --json facts.json
"""
EXAMPLE = """\
Prepare the data set that comes with CoDA: MovieLens latest-small of 2018, 610 users and 9,742 films.

example:
  coda data example --out runs/data
"""
HISTORY = """\
Write one user's events as CSV: item_id, timestamp, label, observed and, where the data set has them, rating.

example:
  coda data history --data runs/data --user 42 --out history.csv
  coda device import --help
"""


class Command:
    help = "read interactions tables, and feed the pool"

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        parser.description = DESCRIPTION
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
        sub = _verb(verbs, "prepare", "read a table, and store it as a data set for training and ingestion", PREPARE)
        add_source(sub, required=True)
        sub.add_argument("--out", type=Path, required=True, metavar="DIR")
        sub.add_argument("--stream", action="store_true", help="in bounded memory, for training from disk")
        _add_json(sub)
        sub = _verb(verbs, "describe", "what a data set or table holds, and which rows were dropped and why", DESCRIBE)
        sub.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="a prepared data set")
        add_source(sub, required=False)
        _add_json(sub)
        sub = _verb(verbs, "example", "prepare the data set that comes with CoDA (MovieLens latest-small)", EXAMPLE)
        sub.add_argument("--out", type=Path, required=True, metavar="DIR")
        _add_json(sub)
        sub = _verb(verbs, "history", "write one user's events as a file that a device imports", HISTORY)
        sub.add_argument("--data", type=Path, required=True, metavar="DIR", help="a prepared data set")
        sub.add_argument("--user", required=True, metavar="KEY", help="the user's key in the table")
        sub.add_argument("--out", type=Path, required=True, metavar="FILE", help="CSV to write")
        add_pool_verbs(verbs)

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        from cloud.datasets import Dataset, StreamedDataset, example

        if args.verb in POOL_VERBS:
            return POOL_VERBS[args.verb](args)
        if args.verb == "history":
            return _history(args)
        if args.verb == "describe" and args.folder and args.interactions:
            raise InputError("name a prepared data set or a table with --interactions, not both")
        dataset: Dataset | StreamedDataset
        if args.verb == "describe" and args.folder:
            streamed = StreamedDataset.is_in(args.folder)
            dataset = StreamedDataset.open(args.folder) if streamed else Dataset.load(args.folder)
        elif args.verb == "prepare" and args.stream:
            dataset = prepare_streamed(args)
        elif args.verb == "example":
            dataset = example()
        elif args.interactions:
            dataset = read_source(args)
        else:
            raise InputError("name a prepared data set, or a table with --interactions")
        if isinstance(dataset, Dataset) and args.verb != "describe":
            dataset.save(args.out)
        facts = describe(dataset)
        _show(facts)
        if args.json:
            write_atomically(
                args.json, msgspec.json.format(msgspec.json.encode({"command": f"data {args.verb}", **facts}))
            )
        return 0


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, line: str, text: str
) -> argparse.ArgumentParser:
    return verbs.add_parser(name, help=line, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_source(parser: argparse.ArgumentParser, required: bool) -> None:
    """The arguments that say which table to read, and how."""
    parser.add_argument("--interactions", required=required, metavar="F", help="table, zip or folder")
    parser.add_argument("--items", type=Path, metavar="F", help="items table")
    parser.add_argument(
        "--reader",
        default="auto",
        choices=("auto", "table", "movielens", "amazon", "taobao"),
        help="whose files they are; auto goes by the name and the first line",
    )
    parser.add_argument(
        "--positive-at", type=float, metavar="X", help="least rating that counts as a like; 4 on a scale up to 5"
    )
    parser.add_argument("--negatives", type=int, default=1, metavar="N", help="per positive, if there are no labels")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the negatives")
    parser.add_argument("--name", metavar="NAME", help="name of the data set, instead of the file's")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the facts as JSON")


def read_source(args: argparse.Namespace) -> Dataset:
    """The data set that these arguments name. Raises: InputError."""
    from cloud.datasets import read

    if "://" in args.interactions:
        raise InputError(f"{args.interactions} is a URL: `coda data prepare --stream` reads those")
    return read(
        Path(args.interactions),
        args.items,
        reader=args.reader,
        positive_at=args.positive_at,
        negatives=args.negatives,
        seed=args.seed,
        name=args.name,
    )


def prepare_streamed(args: argparse.Namespace) -> StreamedDataset:
    """What these arguments name, put into `args.out` in bounded memory. Raises: InputError, StoreError."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from cloud.datasets import prepare

    if args.reader not in ("auto", "table"):
        raise InputError(f"--stream reads tables (Parquet, CSV), not {args.reader}'s files")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.completed:,} rows"),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("read", total=None)
        return prepare(
            args.interactions,
            args.out,
            args.items,
            positive_at=args.positive_at,
            negatives=args.negatives,
            seed=args.seed,
            name=args.name,
            show=lambda what, done, total: bar.update(task, description=what, completed=done, total=total or None),
        )


def describe(dataset: Dataset | StreamedDataset) -> dict[str, object]:
    """Facts of a data set, for people and scripts."""
    from cloud.datasets import StreamedDataset

    if isinstance(dataset, StreamedDataset):
        return {
            "name": dataset.name,
            "users": dataset.contributors,
            "items": len(dataset.items) - 1,
            "categories": len(dataset.categories) - 1,
            "events": len(dataset),
            "liked_share": dataset.liked / len(dataset),
            "events_per_user": dataset.report.per_user,
            "from": _day(dataset.report.first),
            "to": _day(dataset.report.last),
            "report": msgspec.to_builtins(dataset.report),
        }
    events = dataset.events
    each = np.bincount(events.contributor, minlength=len(dataset.users))
    return {
        "name": dataset.name,
        "users": len(dataset.users),
        "items": len(dataset.items) - 1,
        "categories": len(dataset.categories) - 1,
        "events": len(events),
        "liked_share": float(events.label.mean()),
        "events_per_user": {"least": int(each.min()), "median": float(np.median(each)), "most": int(each.max())},
        "from": _day(int(events.timestamp.min())),
        "to": _day(int(events.timestamp.max())),
        "report": msgspec.to_builtins(dataset.report),
    }


def _day(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _show(facts: dict[str, object]) -> None:
    report = facts["report"]
    assert isinstance(report, dict)
    for name, value in facts.items():
        if name != "report":
            shown = f"{value:.3f}" if isinstance(value, float) else value
            print(f"{name.replace('_', ' '):18}{shown}")
    print(f"{'rows':18}{report['rows']} read, {report['kept']} kept, {report['negatives']} negatives drawn")
    if report["short_negatives"]:
        print(f"  {report['short_negatives']} negatives could not be drawn: users who know nearly every item")
    for reason, count in report["dropped"].items():
        places = ", ".join(report["examples"].get(reason, []))
        print(f"  dropped {count}: {reason}{f' ({places} …)' if places else ''}")
    for note in report["notes"]:
        print(f"  {note}")


def _history(args: argparse.Namespace) -> int:
    from cloud.datasets import Dataset, write_history

    dataset = Dataset.load(args.data)
    if args.user not in dataset.users:
        raise InputError(
            f"{args.data} has no user {args.user!r}; it has {len(dataset.users)}, such as {dataset.users[0]!r}"
        )
    mine = dataset.take(dataset.events.contributor == dataset.users.index(args.user))
    write_history(dataset, mine.events, args.out, mine.ratings)
    print(f"{args.out}: {len(mine.events)} events")
    return 0
