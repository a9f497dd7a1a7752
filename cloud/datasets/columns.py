"""Columns by our names and of few types: keys and categories as dictionaries of text, numbers as float64.

Gathered block by block, a row costs some 40 bytes however long its keys are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cloud.datasets.lines import Block, flat
from device_runtime.errors import InputError

ALIASES = {
    "user_id": ("user", "reviewer_id", "uid"),
    "item_id": ("item", "movie_id", "asin", "parent_asin", "iid"),
    "timestamp": ("unix_review_time", "time", "ts", "unix_timestamp"),
    "rating": ("overall", "stars", "score"),
    "label": ("click", "target"),
    "categories": ("genres", "category", "main_attribute"),
    "title": ("name",),
}
INTERACTIONS = ("user_id", "item_id", "timestamp", "rating", "label", "categories")
ITEMS = ("item_id", "title", "categories")
PLACE = "place"
_NUMBERS = ("timestamp", "rating", "label")
_NO_KEY = ("", "nan", "null", "none", "<na>")
_NUMBER = r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"


def chosen(names: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """Our name -> theirs, for what is there. Case, spaces, "_" and "-" do not count; our own name goes first."""
    plain = {_plain(name): name for name in reversed(names)}
    found = {}
    for ours in wanted:
        theirs = next((plain[p] for p in map(_plain, (ours, *ALIASES[ours])) if p in plain), None)
        if theirs is not None:
            found[ours] = theirs
    return found


def gather(blocks: Iterable[Block], names: dict[str, str]) -> pa.Table:
    """One table of these columns (our name -> theirs) and of `PLACE`, int64.

    Raises:
        InputError: a column's type cannot be what its name says.
    """
    parts: dict[str, list[pa.Array]] = {ours: [] for ours in (*names, PLACE)}
    for block in blocks:
        for ours, theirs in names.items():
            parts[ours].append(_typed(ours, theirs, block.columns[theirs]))
        parts[PLACE].append(pa.array(block.places, pa.int64()))
    types = {ours: _type(ours) for ours in parts}
    columns = {ours: pa.chunked_array(found, types[ours]).unify_dictionaries() for ours, found in parts.items()}
    return pa.table({ours: column.combine_chunks() for ours, column in columns.items()})


def parquet_blocks(file: pq.ParquetFile, names: Sequence[str], rows: int = 1 << 18) -> Iterator[Block]:
    """Some columns of a Parquet file; a row's place is its number, from 1."""
    row = 1
    for batch in file.iter_batches(batch_size=rows, columns=list(names)):
        yield Block(dict(zip(batch.schema.names, batch.columns, strict=True)), np.arange(row, row + len(batch)))
        row += len(batch)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter not in " _-")


def _type(ours: str) -> pa.DataType:
    if ours == PLACE:
        return pa.int64()
    return pa.float64() if ours in _NUMBERS else pa.dictionary(pa.int32(), pa.string())


def _typed(ours: str, theirs: str, column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        if ours in _NUMBERS:
            return _numbers(column)
        text = _text(column)
        if ours in ("user_id", "item_id"):
            text = pc.if_else(pc.is_in(pc.utf8_lower(text), pa.array(_NO_KEY)), None, text)
        return text.dictionary_encode()
    except pa.ArrowException:
        raise InputError(f"its column {theirs!r} is {column.type}, which does not do for {ours}") from None


def _numbers(column: pa.Array) -> pa.Array:
    """float64, NaN for what is missing or no number. Dates become seconds since 1970; without a zone they are UTC."""
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        column = column.cast(pa.timestamp("s", getattr(kind, "tz", None)), safe=False).cast(pa.int64())
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = pc.utf8_trim_whitespace(column)
        column = pc.if_else(pc.match_substring_regex(column, _NUMBER), column, None)
    return pc.fill_null(column.cast(pa.float64(), safe=False), float("nan"))


def _text(column: pa.Array) -> pa.Array:
    """Trimmed text. Whole floats lose their ".0": pandas makes floats of integers when some are missing."""
    kind = column.type
    if pa.types.is_floating(kind):
        whole = pc.is_finite(column)
        if pc.all(pc.equal(pc.floor(column.filter(whole)), column.filter(whole))).as_py() is not False:
            column = pc.if_else(whole, column, None).cast(pa.int64(), safe=False)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        column = pa.array([flat(value) for value in column.to_pylist()], pa.string())
    return pc.utf8_trim_whitespace(column.cast(pa.string()))
