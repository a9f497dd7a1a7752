"""Tables as they come, brought to named columns: a Parquet or CSV table of ours, and the public sets' own files.

Every reader gives a `Raw`: columns as text, numbers or missing, with the line that each row came from. Nothing is
judged here but that rows have the right number of columns; what a value may be is for `reading`.
"""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from device_runtime.errors import InputError

ALIASES = {
    "user_id": ("user", "userid", "reviewerid", "uid"),
    "item_id": ("item", "itemid", "movieid", "movie_id", "asin", "parent_asin", "iid"),
    "timestamp": ("unixreviewtime", "time", "ts", "unix_timestamp"),
    "rating": ("overall", "stars", "score"),
    "label": ("click", "target"),
    "categories": ("genres", "category", "main_attribute"),
    "title": ("name",),
}


@dataclass
class Raw:
    """interactions, items: tables with our column names, `line` added to interactions. bad: reason -> places."""

    interactions: pa.Table
    items: pa.Table | None = None
    bad: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_table(path: Path, items: Path | None) -> Raw:
    """A Parquet or CSV table of interactions, and optionally one of items."""
    bad: dict[str, list[str]] = {}
    table = _renamed(_load(path, bad))
    catalogue = None if items is None else _renamed(_load(items, {}))
    lacking = {"user_id", "item_id", "timestamp"} - set(table.column_names)
    if lacking:
        raise InputError(
            f"{path} lacks {', '.join(sorted(lacking))}; it has {', '.join(table.column_names)}. "
            "An interactions table has user_id, item_id, timestamp and, if known, rating or label"
        )
    if catalogue is not None and "item_id" not in catalogue.column_names:
        raise InputError(f"{items} lacks item_id; it has {', '.join(catalogue.column_names)}")
    if catalogue is None and "categories" in table.column_names:
        catalogue = table.select(["item_id", "categories"])
    return Raw(table, catalogue, bad)


def read_movielens(path: Path, items: Path | None) -> Raw:
    """A MovieLens release as downloaded: the zip, or the folder in it (100K, 1M, latest, 20M, 25M, 32M)."""
    names, opened = _members(path)

    def find(*endings: str) -> str | None:
        return next((name for ending in endings for name in names if name.endswith(ending)), None)

    bad: dict[str, list[str]] = {}
    ratings = find("ratings.csv", "ratings.dat", "u.data")
    if ratings is None:
        raise InputError(f"{path} holds no ratings.csv, ratings.dat or u.data; is it a MovieLens zip or folder?")
    columns = ["user_id", "item_id", "rating", "timestamp"]
    if ratings.endswith(".csv"):
        table = _renamed(_csv(opened(ratings), bad))
    else:
        table = _split(opened(ratings), "::" if ratings.endswith(".dat") else "\t", columns, bad)
    movies = find("movies.csv", "movies.dat", "u.item")
    catalogue = None
    if movies and movies.endswith(".csv"):
        catalogue = _renamed(_csv(opened(movies), {}))
    elif movies and movies.endswith(".dat"):
        catalogue = _split(opened(movies), "::", ["item_id", "title", "categories"], {}, "latin-1")
    elif movies:
        flags = [f"g{i}" for i in range(19)]
        wide = _split(opened(movies), "|", ["item_id", "title", "released", "video", "url", *flags], {}, "latin-1")
        genres = _genres(opened, find("u.genre"))
        rows = zip(*(wide[name].to_pylist() for name in flags), strict=True)
        joined = ["|".join(g for g, on in zip(genres, row, strict=True) if on == "1") for row in rows]
        catalogue = wide.select(["item_id", "title"]).append_column("categories", pa.array(joined))
    return Raw(table, catalogue, bad)


def read_amazon(path: Path, items: Path | None) -> Raw:
    """Amazon reviews: 2014/2018 JSON lines (plain or .gz), or the ratings-only CSV without a header."""
    bad: dict[str, list[str]] = {}
    if path.suffix == ".csv":
        # the ratings-only files are user,item,rating,time in 2014 and item,user,rating,time in 2018: ASINs tell
        table = _split(_unzipped(path), ",", ["a", "b", "rating", "timestamp"], bad)
        first = str(table["a"][0]) if len(table) else ""
        order = ["item_id", "user_id"] if len(first) == 10 and not first.startswith("A") else ["user_id", "item_id"]
        table = table.rename_columns([*order, *table.column_names[2:]])
    else:
        wanted = ("reviewerID", "user_id", "asin", "parent_asin", "overall", "rating", "unixReviewTime", "timestamp")
        table = _renamed(_json_lines(_unzipped(path), wanted, bad))
    catalogue = None
    if items is not None:
        catalogue = _renamed(_json_lines(_unzipped(items), ("asin", "parent_asin", "title", "categories"), {}))
    return Raw(table, catalogue, bad)


def read_taobao(path: Path, items: Path | None) -> Raw:
    """Taobao UserBehavior.csv: user, item, category, behaviour, time; no header. Every behaviour is a positive."""
    bad: dict[str, list[str]] = {}
    table = _split(_unzipped(path), ",", ["user_id", "item_id", "categories", "event", "timestamp"], bad)
    return Raw(table, table.select(["item_id", "categories"]), bad, ["every behaviour counts as a positive"])


def guess(path: Path) -> str:
    """The reader that a file's name and shape call for."""
    if path.is_dir() or path.suffix == ".zip":
        return "movielens"
    if path.name.lower().startswith("userbehavior"):
        return "taobao"
    if path.name.endswith((".json", ".json.gz", ".jsonl", ".jsonl.gz")):
        return "amazon"
    return "table"


def _load(path: Path, bad: dict[str, list[str]]) -> pa.Table:
    try:
        if path.suffix in (".parquet", ".pq"):
            table = pq.read_table(path)
            return table.append_column("line", pa.array(range(1, len(table) + 1), pa.int64()))
        return _csv(_unzipped(path), bad)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot read {path}: {error}; it should be Parquet, or CSV with a header") from None


def _csv(data: bytes, bad: dict[str, list[str]]) -> pa.Table:
    """All columns as text; rows with another number of columns are put aside."""

    def skip(row: pa_csv.InvalidRow) -> str:
        _note(bad, "another number of columns than the header", f"line {row.number}" if row.number else row.text[:60])
        return "skip"

    header = data.split(b"\n", 1)[0].decode("utf-8-sig", "replace").strip().split(",")
    kinds = pa_csv.ConvertOptions(
        column_types={name.strip('"'): pa.string() for name in header}, strings_can_be_null=True
    )
    # one thread: only then does the parser know the numbers of bad rows
    reading = pa_csv.ReadOptions(use_threads=False)
    parsing = pa_csv.ParseOptions(invalid_row_handler=skip, newlines_in_values=b'"' in data)
    table = pa_csv.read_csv(io.BytesIO(data), reading, parsing, kinds)
    lines = _lines(len(table), bad.get("another number of columns than the header", []))
    return table.append_column("line", lines)


def _lines(count: int, skipped: list[str]) -> pa.Array:
    """Line numbers of the rows that were kept: the header is line 1, and skipped lines are left out."""
    gone = {int(place.split()[1]) for place in skipped if place.startswith("line ")}
    numbers: list[int] = []
    line = 1
    while len(numbers) < count:
        line += 1
        if line not in gone:
            numbers.append(line)
    return pa.array(numbers, pa.int64())


def _split(
    data: bytes, separator: str, names: list[str], bad: dict[str, list[str]], encoding: str = "utf-8"
) -> pa.Table:
    """Headerless lines cut at a separator, which may be longer than one character."""
    rows, numbers = [], []
    for number, line in enumerate(data.decode(encoding, "replace").splitlines(), 1):
        cells = line.split(separator)
        if len(cells) == len(names):
            rows.append(cells)
            numbers.append(number)
        elif line.strip():
            _note(bad, f"not {len(names)} columns", f"line {number}")
    columns = list(zip(*rows, strict=True)) if rows else [() for _ in names]
    table = pa.table({name: pa.array(column, pa.string()) for name, column in zip(names, columns, strict=True)})
    return table.append_column("line", pa.array(numbers, pa.int64()))


def _json_lines(data: bytes, wanted: Iterable[str], bad: dict[str, list[str]]) -> pa.Table:
    found: dict[str, list[str | None]] = {name: [] for name in wanted}
    numbers = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            _note(bad, "not a JSON object", f"line {number}")
            continue
        numbers.append(number)
        for name, column in found.items():
            value = row.get(name)
            column.append(None if value is None else _flat(value))
    known = {name: pa.array(c, pa.string()) for name, c in found.items() if any(v is not None for v in c)}
    return pa.table({**known, "line": pa.array(numbers, pa.int64())})


def _flat(value: object) -> str:
    while isinstance(value, list) and value and isinstance(value[0], list):
        value = value[0]
    return "|".join(map(str, value)) if isinstance(value, list) else str(value)


def _renamed(table: pa.Table) -> pa.Table:
    """Our column names, from theirs; the first alias that is there counts, and our own name before any."""
    lower = {name.lower(): name for name in reversed(table.column_names)}
    chosen = {}
    for ours, theirs in ALIASES.items():
        found = next((lower[name] for name in (ours, *theirs) if name in lower), None)
        if found is not None and found not in chosen:
            chosen[found] = ours
    kept = [name for name in table.column_names if name in chosen or name == "line"]
    return table.select(kept).rename_columns([chosen.get(name, name) for name in kept])


def _unzipped(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError) as error:
        raise InputError(f"cannot read {path}: {error}") from None


def _members(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    if path.is_dir():
        names = sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())
        return names, lambda name: (path / name).read_bytes()
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read {path}: {error}; a MovieLens zip or folder is expected") from None
    with archive:
        held = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    return sorted(held), held.__getitem__


def _genres(opened: Callable[[str], bytes], name: str | None) -> list[str]:
    lines = opened(name).decode().splitlines() if name else []
    named = {int(number): genre for genre, _, number in (line.partition("|") for line in lines) if number}
    return [named.get(i, f"genre {i}") for i in range(19)]


def _note(bad: dict[str, list[str]], reason: str, place: str) -> None:
    bad.setdefault(reason, []).append(place)


def as_text(column: pa.ChunkedArray) -> pa.Array:
    """Keys as text, whatever they were; empty ones are missing."""
    text = pc.utf8_trim_whitespace(pc.cast(column, pa.string()))
    return pc.if_else(pc.equal(text, ""), None, text).combine_chunks()
