"""Tables of any size, block by block: a file, a folder of files, or an fsspec URL of either."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cloud.datasets.columns import chosen, gather, parquet_blocks
from cloud.datasets.lines import Dropped, with_header
from device_runtime.errors import EngineUnavailable, InputError

_PARQUET = (".parquet", ".pq")
_BUFFER = 1 << 20
"""Bytes of a Parquet column that are read at once, so that a large row group is not held whole."""


@dataclass(frozen=True)
class TableFile:
    name: str
    open: Callable[[], IO[bytes]]


def table_files(where: str) -> list[TableFile]:
    """The tables that a path or a URL names, by name. Raises: InputError, EngineUnavailable."""
    if "://" in where:
        try:
            import fsspec

            system, path = fsspec.core.url_to_fs(where)
            names = sorted(system.find(path)) if system.isdir(path) else [path] if system.exists(path) else []
        except ImportError as error:
            raise EngineUnavailable(f"{where} needs a package: {error}; install '.[fsspec]' and that") from None
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {where}: {error}") from None
        found = [TableFile(name, lambda name=name: cast("IO[bytes]", system.open(name, "rb"))) for name in names]  # type: ignore[misc]
    else:
        root = Path(where)
        paths = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
        found = [TableFile(str(path), lambda path=path: path.open("rb")) for path in paths if path.exists()]  # type: ignore[misc]
    if len(found) != 1:
        found = [source for source in found if source.name.endswith((*_PARQUET, ".csv"))]
    if not found:
        raise InputError(f"there is no table at {where}: no .parquet, .pq or .csv")
    return found


def parsed(
    name: str, stream: IO[bytes], dropped: Dropped, wanted: Sequence[str], rows: int = 1 << 18
) -> Iterator[pa.Table]:
    """Blocks of a table, of so many rows if it is Parquet, as `columns.gather` makes them.

    Raises:
        InputError: it lacks a column that it must have.
    """
    if name.endswith(_PARQUET):
        with pq.ParquetFile(stream, buffer_size=_BUFFER) as file:
            names = _present(file.schema_arrow.names, wanted)
            for block in parquet_blocks(file, list(names.values()), rows):
                yield gather([block], names)
        return
    header, blocks = with_header(stream, dropped)
    names = _present(header, wanted)
    for block in blocks:
        if len(block.places):
            yield gather([block], names)


def _present(header: list[str], wanted: Sequence[str]) -> dict[str, str]:
    found = chosen(header, wanted)
    if lacking := sorted({"user_id", "item_id", "timestamp"} - set(found)):
        raise InputError(f"it lacks {', '.join(lacking)}; it has {', '.join(header)}")
    return found


@contextmanager
def named(name: str) -> Iterator[None]:
    """Says which file it was, whatever went wrong in it."""
    try:
        yield
    except (InputError, pa.ArrowException, OSError, EOFError) as error:
        raise InputError(f"cannot use {name}: {error}") from None


def grouped(sizes: Sequence[int], rows: int) -> Iterator[list[int]]:
    """Consecutive buckets of about so many rows together; empty ones are left out."""
    group: list[int] = []
    for bucket, size in enumerate(sizes):
        if group and sum(sizes[i] for i in group) + size > rows:
            yield group
            group = []
        if size:
            group.append(bucket)
    if group:
        yield group


def repeated(
    user: npt.NDArray[np.generic], item: npt.NDArray[np.generic], time: npt.NDArray[np.generic]
) -> npt.NDArray[np.bool_]:
    """Rows that repeat an earlier one. bool [n]"""
    order = np.lexsort((np.arange(len(user)), item, time, user))
    before, after = order[:-1], order[1:]
    same = (user[before] == user[after]) & (item[before] == item[after]) & (time[before] == time[after])
    found = np.zeros(len(user), bool)
    found[after[same]] = True
    return found
