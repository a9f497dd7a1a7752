"""Text files as blocks of columns, with the line of every row.

A file is read in blocks of whole lines and split by Arrow, so memory is bound by a block and not by the file. Only what
has quotes, where a row may span lines, goes through Python's csv.
"""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from device_runtime.errors import InputError
from device_runtime.samples import Int64

BLOCK = 16 << 20
"""Bytes of text that are split at once; also the longest line that is taken for one."""
_ROWS = 1 << 16
_PLACES = 5


@dataclass
class Dropped:
    """Rows put aside. counts: reason -> rows. examples: reason -> the first few places, such as "line 7"."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, places: Sequence[int] | npt.NDArray[np.integer], unit: str = "line") -> None:
        if len(places):
            self.counts[reason] = self.counts.get(reason, 0) + len(places)
            shown = self.examples.setdefault(reason, [])
            shown += [f"{unit} {int(place)}" for place in places[: _PLACES - len(shown)]]


@dataclass(frozen=True)
class Block:
    """Some rows of a table. columns: name -> n values. places: int64 [n], the line or row of each, from 1."""

    columns: Mapping[str, pa.Array]
    places: Int64


def with_header(stream: IO[bytes], dropped: Dropped) -> tuple[list[str], Iterator[Block]]:
    """The header's names, and the rows below as text. Commas separate; tabs or semicolons if the header has no comma.

    Raises:
        InputError: empty, binary, or two columns share a name; later, from the iterator: a line never ends.
    """
    found = _blocks(stream)
    first = next(found, b"")
    line, _, rest = first.partition(b"\n")
    text = _utf8(line).decode("utf-8-sig").strip()
    if not text:
        raise InputError("it is empty" if not first else "its first line should name the columns, and is empty")
    separator = next((mark for mark in ",\t;" if mark in text), ",")
    names = [name.strip() for name in next(csv.reader([text], delimiter=separator))]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"its header names {', '.join(map(repr, twice))} twice")
    reason = "another number of columns than the header"
    return names, _split(chain([rest], found), separator, names, dropped, reason, 2, quotes=True)


def without_header(
    stream: IO[bytes], separator: str, names: Sequence[str], dropped: Dropped, *, quotes: bool = False
) -> Iterator[Block]:
    """Rows of a file whose columns are known, cut at a separator that may be longer than one character."""
    return _split(_blocks(stream), separator, names, dropped, f"not {len(names)} columns", 1, quotes)


def json_lines(stream: IO[bytes], wanted: Sequence[str], dropped: Dropped, prefix: str = "") -> Iterator[Block]:
    """One object a line, the wanted fields as text; labels of a list are joined by "|".

    Also Python's literals: so the product file of Amazon 2014 is written.
    """
    line = 0
    for block in _blocks(stream):
        lines = block.split(b"\n")[: None if not block.endswith(b"\n") else -1]
        for start in range(0, len(lines), _ROWS):
            rows, places, wrong = [], [], []
            for text in lines[start : start + _ROWS]:
                line += 1
                row = _object(text)
                if row is not None:
                    rows.append(row)
                    places.append(line)
                elif text.strip():
                    wrong.append(line)
            dropped.add(f"{prefix}not a JSON object", wrong)
            columns = {name: pa.array([flat(row.get(name)) for row in rows], pa.string()) for name in wanted}
            yield Block(columns, np.array(places, np.int64))


def flat(value: object) -> str | None:
    """A value as text: the labels of lists, and of lists in lists, each once and joined by "|"."""
    if isinstance(value, list):
        labels = [label for part in value if (label := flat(part))]
        return "|".join(dict.fromkeys(labels)) or None
    return None if value is None else str(value).encode(errors="replace").decode()  # half surrogates are no text


def _object(text: bytes) -> dict[str, object] | None:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        try:
            row = ast.literal_eval(text.decode(errors="replace").strip()) if text.lstrip()[:1] == b"{" else None
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            return None
    return row if isinstance(row, dict) else None


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    """Whole lines, at most a few blocks long, as UTF-8."""
    rest = b""
    while chunk := stream.read(BLOCK):
        if b"\0" in chunk:
            raise InputError("it is not UTF-8 text; it should be Parquet, or CSV with a header")
        whole = rest + chunk
        cut = whole.rfind(b"\n") + 1
        rest = whole[cut:]
        if len(rest) > BLOCK:
            raise InputError(f"it has a line of more than {BLOCK >> 20} MiB; is it a text file?")
        if cut:
            yield _utf8(whole[:cut])
    if rest:
        yield _utf8(rest)


def _utf8(block: bytes) -> bytes:
    """Old files are in latin-1. Told by line, because one damaged byte must not change how the others read."""
    try:
        block.decode()
        return block
    except UnicodeDecodeError:
        return b"\n".join(map(_utf8_line, block.split(b"\n")))


def _utf8_line(line: bytes) -> bytes:
    try:
        line.decode()
        return line
    except UnicodeDecodeError:
        return line.decode("latin-1").encode()


def _split(
    blocks: Iterator[bytes],
    separator: str,
    names: Sequence[str],
    dropped: Dropped,
    reason: str,
    line: int,
    quotes: bool,
) -> Iterator[Block]:
    """line: the number of the first."""
    for block in blocks:
        if quotes and b'"' in block:  # from here on a row may span lines, and so blocks
            yield from _quoted(chain([block], blocks), separator, names, dropped, reason, line)
            return
        if block:
            lines = _lines(block)
            fits = pc.equal(pc.count_substring(lines, separator), len(names) - 1).to_numpy(zero_copy_only=False)
            blank = pc.equal(pc.utf8_trim_whitespace(lines), "").to_numpy(zero_copy_only=False)
            places = np.arange(line, line + len(lines))
            dropped.add(reason, places[~fits & ~blank])
            good = fits & ~blank
            cells = pc.split_pattern(lines.filter(pa.array(good)), separator).flatten()
            at = np.arange(0, len(cells), len(names))
            yield Block({name: cells.take(pa.array(at + i)) for i, name in enumerate(names)}, places[good])
            line += len(lines)


def _lines(block: bytes) -> pa.Array:
    """The lines as an array of text over the block itself, without their ends."""
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
    if not block.endswith(b"\n"):
        ends = np.append(ends, len(block))
    offsets = np.concatenate(([0], ends)).astype(np.int32)
    lines = pa.StringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(block))
    return pc.ascii_rtrim(lines, characters="\r\n")


def _quoted(
    blocks: Iterable[bytes], separator: str, names: Sequence[str], dropped: Dropped, reason: str, line: int
) -> Iterator[Block]:
    reader = csv.reader((f"{text}\n" for block in blocks for text in _texts(block)), delimiter=separator)

    def numbered() -> Iterator[tuple[int, list[str]]]:
        before = 0
        try:
            for row in reader:
                yield line + before, row
                before = reader.line_num
        except csv.Error as error:
            raise InputError(f"line {line + before} does not read as CSV ({error}); is a quote left open?") from None

    rows = numbered()
    while some := list(islice(rows, _ROWS)):
        fits = [(place, row) for place, row in some if len(row) == len(names)]
        dropped.add(reason, [place for place, row in some if len(row) not in (0, len(names))])
        columns = {name: pa.array([row[i] for _, row in fits], pa.string()) for i, name in enumerate(names)}
        yield Block(columns, np.array([place for place, _ in fits], np.int64))


def _texts(block: bytes) -> list[str]:
    # not splitlines(): that also cuts at characters which may be part of a title
    lines = block.decode().split("\n")
    return lines[:-1] if lines[-1] == "" else lines
