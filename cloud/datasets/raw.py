"""Tables as they come, brought to our columns: a Parquet or CSV table of ours, and the public sets' own files.

Nothing is judged here but that rows have the right number of columns; what a value may be is for `reading`.
"""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import IO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cloud.datasets.catalogue import values
from cloud.datasets.columns import INTERACTIONS, ITEMS, chosen, gather, parquet_blocks
from cloud.datasets.lines import Block, Dropped, json_lines, with_header, without_header
from device_runtime.errors import InputError

_AMAZON = ("user_id", "item_id", "rating", "timestamp")
_REVIEW = ("reviewerID", "user_id", "asin", "parent_asin", "overall", "rating", "unixReviewTime", "timestamp")
_PRODUCT = ("asin", "parent_asin", "item_id", "title", "categories", "category")
_TAOBAO = ("user_id", "item_id", "categories", "event", "timestamp")
_BEHAVIOURS = ("pv", "buy", "cart", "fav")
_ASIN = r"^(B[0-9A-Z]{9}|\d{9}[\dX])$"
_GENRES = 19


@dataclass
class Raw:
    """interactions, items: tables as `columns.gather` makes them. dropped: rows that could not be split. unit: what a
    place counts, "line" or "row"."""

    interactions: pa.Table
    items: pa.Table | None = None
    dropped: Dropped = field(default_factory=Dropped)
    notes: list[str] = field(default_factory=list)
    unit: str = "line"


def read_table(path: Path, items: Path | None) -> Raw:
    """A Parquet or CSV table of interactions, and optionally one of items."""
    raw = Raw(pa.table({}), unit="row" if _is_parquet(path) else "line")
    with _readable(path):
        raw.interactions = _table(path, INTERACTIONS, raw, "An interactions table has user_id, item_id, timestamp")
    raw.items = None if items is None else items_table(items, raw)
    return raw


def read_movielens(path: Path, items: Path | None) -> Raw:
    """A MovieLens release as downloaded: the zip, the folder in it, or its file of ratings (100K to 32M)."""
    raw = Raw(pa.table({}))
    with _readable(path), _members(path) as (names, opened):
        ratings = _one(path, names, ("ratings.csv", "ratings.dat", "u.data"))
        if ratings is None:
            raise InputError("it holds no ratings.csv, ratings.dat or u.data; is it a MovieLens zip or folder?")
        with opened(ratings) as stream:
            if ratings.endswith(".csv"):
                raw.interactions = _headed(stream, INTERACTIONS, raw, "ratings.csv has userId, movieId, timestamp")
            else:
                separator = "::" if ratings.endswith(".dat") else "\t"
                raw.interactions = _plain(without_header(stream, separator, _AMAZON, raw.dropped), _AMAZON)
        movies = _one(path, names, ("movies.csv", "movies.dat", "u.item"))
        if movies is not None and items is None:
            genres = _genres(names, opened)
            with opened(movies) as stream:
                raw.items = _movies(movies, stream, genres, raw)
    if items is not None:
        raw.items = items_table(items, raw)
    return raw


def read_amazon(path: Path, items: Path | None) -> Raw:
    """Amazon reviews: JSON lines of 2014 or 2018 (plain or .gz), or the CSV of ratings without a header.

    items: the product file (JSON lines, or the Python literals of 2014), or a table.
    """
    raw = Raw(pa.table({}))
    with _readable(path), _opened(path) as stream:
        if _is_json(path):
            raw.interactions = _json(json_lines(stream, _REVIEW, raw.dropped), INTERACTIONS)
        else:
            blocks = without_header(stream, ",", _AMAZON, raw.dropped, quotes=True)
            raw.interactions = _item_second(_plain(blocks, _AMAZON), raw)
    raw.items = None if items is None else items_table(items, raw)
    return raw


def read_taobao(path: Path, items: Path | None) -> Raw:
    """Taobao's UserBehavior.csv: user, item, category, behaviour, time; no header. Every behaviour is a positive."""
    raw = Raw(pa.table({}), notes=["every behaviour (pv, buy, cart, fav) counts as a positive"])

    def known(blocks: Iterator[Block]) -> Iterator[Block]:
        for block in blocks:
            text = pc.utf8_trim_whitespace(block.columns["event"])
            good = pc.is_in(text, pa.array(_BEHAVIOURS)).to_numpy(zero_copy_only=False)
            raw.dropped.add("behaviour is not pv, buy, cart or fav", block.places[~good])
            mask = pa.array(good)
            yield Block({name: column.filter(mask) for name, column in block.columns.items()}, block.places[good])

    with _readable(path), _opened(path) as stream:
        blocks = known(without_header(stream, ",", _TAOBAO, raw.dropped))
        raw.interactions = _plain(blocks, [name for name in _TAOBAO if name != "event"])
    raw.items = None if items is None else items_table(items, raw)
    return raw


def guess(path: Path) -> str:
    """The reader that a file's name, and the first line of a CSV, call for."""
    if path.is_dir() or path.suffix == ".zip" or path.name in ("u.data", "ratings.dat"):
        return "movielens"
    if _is_json(path):
        return "amazon"
    if _is_parquet(path):
        return "table"
    with _readable(path), _opened(path) as stream:
        cells = stream.readline(1 << 16).decode(errors="replace").strip().split(",")
    if len(cells) == len(_TAOBAO) and cells[3] in _BEHAVIOURS:
        return "taobao"
    if len(cells) == len(_AMAZON) and cells[3].isdigit() and cells[2] in ("1", "2", "3", "4", "5", *_STARS):
        return "amazon"
    return "table"


_STARS = ("1.0", "2.0", "3.0", "4.0", "5.0")


def items_table(path: Path, raw: Raw) -> pa.Table:
    """An items table of ours or a product file. What is put aside of it is counted in `raw`. Raises: InputError."""
    with _readable(path):
        if _is_json(path):
            with _opened(path) as stream:
                return _json(json_lines(stream, _PRODUCT, raw.dropped, "items: "), ITEMS)
        aside = Dropped()
        table = _table(path, ITEMS, replace(raw, dropped=aside), "An items table has item_id")
        _merge(aside, raw)
        return table


def listed_users(path: Path) -> frozenset[str]:
    """The keys in a table of users, Parquet or CSV; its other columns say nothing to models of items and histories.

    Raises:
        InputError: it cannot be read, has no user_id, lists nobody, or has rows that cannot be split: their users would
            be left out in silence.
    """
    raw = Raw(pa.table({}))
    with _readable(path):
        column = _table(path, ("user_id",), raw, "A table of users has user_id")["user_id"]
    if raw.dropped.counts:
        reason, places = next(iter(raw.dropped.examples.items()))
        raise InputError(f"{path}, {', '.join(places)}: {reason}; mend the table of users")
    found = frozenset(values(column).to_pylist())
    if not found:
        raise InputError(f"{path} lists no user; without --users-table everybody may be examined")
    return found


def _table(path: Path, wanted: Sequence[str], raw: Raw, needs: str) -> pa.Table:
    if _is_parquet(path):
        with pq.ParquetFile(path) as file:
            names = _present(file.schema_arrow.names, wanted, raw, needs)
            return gather(parquet_blocks(file, list(names.values())), names)
    with _opened(path) as stream:
        return _headed(stream, wanted, raw, needs)


def _headed(stream: IO[bytes], wanted: Sequence[str], raw: Raw, needs: str) -> pa.Table:
    header, blocks = with_header(stream, raw.dropped)
    return gather(blocks, _present(header, wanted, raw, needs))


def _present(names: Sequence[str], wanted: Sequence[str], raw: Raw, needs: str) -> dict[str, str]:
    found = chosen(names, wanted)
    must = {"user_id", "item_id", "timestamp"} & set(wanted)
    if lacking := sorted(must - set(found)):
        raise InputError(f"lacks {', '.join(lacking)}; it has {', '.join(names)}. {needs}")
    if twice := sorted({name for name in found.values() if list(names).count(name) > 1}):
        raise InputError(f"it has two columns {', '.join(twice)}")
    if others := [f"{theirs} as {ours}" for ours, theirs in found.items() if ours != theirs]:
        raw.notes.append(f"read {', '.join(others)}")
    return found


def _plain(blocks: Iterator[Block], names: Sequence[str]) -> pa.Table:
    return gather(blocks, {name: name for name in names})


def _json(blocks: Iterator[Block], wanted: Sequence[str]) -> pa.Table:
    """The first block tells which of several spellings a file uses."""
    first = next(blocks, Block({}, np.zeros(0, np.int64)))
    present = [name for name, column in first.columns.items() if column.null_count < len(column)]
    names = chosen(present, wanted)
    must = {"user_id", "item_id", "timestamp"} & set(wanted)
    if lacking := sorted(must - set(names)):
        raise InputError(f"lacks {', '.join(lacking)}; it has {', '.join(present) or 'none of the fields of reviews'}")
    return gather(chain([first], blocks), names)


def _item_second(table: pa.Table, raw: Raw) -> pa.Table:
    """The ratings are user,item,... in 2014 and item,user,... in 2018; product numbers have a form of their own."""
    shares = []
    for name in ("user_id", "item_id"):
        keys = table[name].combine_chunks().dictionary.slice(0, 10_000)
        shares.append(pc.mean(pc.match_substring_regex(keys, _ASIN).cast(pa.float64())).as_py() or 0.0)
    if max(shares) < 0.5 or shares[0] == shares[1]:
        raise InputError("neither of its first two columns looks like Amazon's product numbers; is it another table?")
    if shares[0] < shares[1]:
        return table
    raw.notes.append("the first column is the item, the second the user")
    return table.rename_columns(["item_id", "user_id", *table.column_names[2:]])


def _movies(name: str, stream: IO[bytes], genres: Sequence[str], raw: Raw) -> pa.Table:
    aside = Dropped()
    if name.endswith(".csv"):
        table = _headed(stream, ITEMS, replace(raw, dropped=aside), "movies.csv has movieId")
    elif name.endswith(".dat"):
        table = _plain(without_header(stream, "::", ITEMS, aside), ITEMS)
    else:
        flags = [f"genre {i}" for i in range(_GENRES)]

        def joined(blocks: Iterator[Block]) -> Iterator[Block]:
            for block in blocks:
                rows = zip(*(block.columns[flag].to_pylist() for flag in flags), strict=True)
                labels = ["|".join(g for g, on in zip(genres, row, strict=True) if on == "1") for row in rows]
                columns = {"item_id": block.columns["item_id"], "title": block.columns["title"]}
                yield Block({**columns, "categories": pa.array(labels, pa.string())}, block.places)

        wide = ["item_id", "title", "released", "video", "url", *flags]
        table = _plain(joined(without_header(stream, "|", wide, aside)), ITEMS)
    _merge(aside, raw)
    return table


def _merge(aside: Dropped, raw: Raw) -> None:
    for reason, count in aside.counts.items():
        raw.dropped.counts[f"items: {reason}"] = count
        raw.dropped.examples[f"items: {reason}"] = aside.examples[reason]


def _genres(names: Sequence[str], opened: Callable[[str], IO[bytes]]) -> list[str]:
    lines: list[str] = []
    if name := next((name for name in names if Path(name).name == "u.genre"), None):
        with opened(name) as stream:
            lines = stream.read().decode("latin-1").splitlines()
    pairs = [line.strip().rpartition("|") for line in lines]
    named = {int(number): genre for genre, _, number in pairs if number.isdigit()}
    return [named.get(i, f"genre {i}") for i in range(_GENRES)]


def _is_json(path: Path) -> bool:
    return path.name.endswith((".json", ".json.gz", ".jsonl", ".jsonl.gz"))


def _is_parquet(path: Path) -> bool:
    return path.suffix in (".parquet", ".pq")


def _one(path: Path, names: Sequence[str], wanted: Sequence[str]) -> str | None:
    """The member with one of these names. What macOS adds to zips is none."""
    for name in wanted:
        found = [n for n in names if Path(n).name == name and "__MACOSX" not in n]
        if len(found) > 1:
            raise InputError(f"it holds more than one {name}: {', '.join(found)}; name the folder of one release")
        if found:
            return found[0]
    return None


@contextmanager
def _members(path: Path) -> Iterator[tuple[list[str], Callable[[str], IO[bytes]]]]:
    """Names of the files in a zip, in a folder or beside a file, and how to open them."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            yield sorted(n for n in archive.namelist() if not n.endswith("/")), archive.open
        return
    if path.is_dir():
        folder, found = path, sorted(p for pattern in ("*", "*/*") for p in path.glob(pattern) if p.is_file())
    else:  # its own name, and those of the files that may describe its items
        about = ("movies.csv", "movies.dat", "u.item", "u.genre")
        folder, found = path.parent, [path, *(path.parent / n for n in about if (path.parent / n).is_file())]
    yield [str(p.relative_to(folder)) for p in found], lambda name: (folder / name).open("rb")


def _opened(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Says which file it was, whatever went wrong in it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"cannot use {path}: {error}") from None
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        raise InputError(f"cannot read {path}: {error}; is it whole, and what its name says?") from None
    except pa.ArrowException as error:
        raise InputError(f"cannot read {path}: {error}; it should be Parquet, or CSV with a header") from None
