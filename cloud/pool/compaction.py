"""Merging segments: which, and into what.

Segments of about the same size are merged when there are enough of them, so a sample is rewritten a few times only
while the pool grows a thousandfold. In a merged segment the samples of a contributor lie together in the order of time,
and their histories share storage even where they came in separately. What is hidden is not carried over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cloud.pool.segment import Arrays, Segment, owner_columns, ragged_columns, save
from device_runtime.samples import Int64, Ragged, Schema

FAN = 8
"""So many segments of about the same size become one."""
FLOOR = 4096
"""Segments of fewer samples count as of the same size."""
MOST = 4_000_000
"""Samples in a merged segment, at most: what it takes to merge, and to index, is bound by it."""
_CHUNK = 1 << 16

Rows = npt.NDArray[np.int64]


def plan(segments: Sequence[Segment], full: bool) -> list[list[Segment]]:
    """Groups of segments, each to become one. full: all that fit together. What hides samples is always rewritten."""
    groups: list[list[Segment]] = []
    tiers: dict[int, list[Segment]] = {}
    for segment in segments:
        tiers.setdefault(0 if full else _tier(segment.visible), []).append(segment)
    for tier in tiers.values():
        if len(tier) < (2 if full else FAN):
            continue
        group: list[Segment] = []
        for segment in tier:
            if group and sum(s.visible for s in group) + segment.visible > MOST:
                groups.append(group)
                group = []
            group.append(segment)
        groups.append(group)
    groups = [group for group in groups if len(group) > 1]
    taken = {segment.name for group in groups for segment in group}
    return groups + [[s] for s in segments if len(s.hidden) and s.name not in taken]


def write(folder: Path, group: Sequence[Segment], schema: Schema) -> int:
    """Write the columns of the merged segment durably, in memory bound by some 40 bytes a sample. Returns how many
    samples it has. Raises: OSError."""
    kept = [np.flatnonzero(segment.shown()) for segment in group]
    source = np.repeat(np.arange(len(group)), [len(rows) for rows in kept])
    row: Rows = np.concatenate(kept)
    tokens = np.concatenate([segment.contributors[rows] for segment, rows in zip(group, kept, strict=True)])
    times = np.concatenate([segment.timestamps[rows] for segment, rows in zip(group, kept, strict=True)])
    order = np.lexsort((times, tokens))
    if not len(order):
        return 0
    source, row, tokens = source[order], row[order], tokens[order]
    save(folder, {**owner_columns(tokens), "timestamps": times[order]})
    del order, times

    def gathered(name: str, columns: Sequence[npt.NDArray[np.generic]]) -> None:
        shape = (len(row), *columns[0].shape[1:])
        out = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", columns[0].dtype, shape)
        for start in range(0, len(row), _CHUNK):
            part = slice(start, start + _CHUNK)
            out[part] = _picked(columns, source[part], row[part])
        out.flush()  # msync: as durable as fsync

    gathered("labels", [segment.samples.labels for segment in group])
    gathered("embeddings", [segment.embeddings for segment in group])
    for feature in schema.features:
        columns = [segment.samples.columns[feature.name] for segment in group]
        plain = [column for column in columns if not isinstance(column, Ragged)]
        if plain:
            gathered(feature.name, plain)
        else:
            ragged = [column for column in columns if isinstance(column, Ragged)]
            save(folder, _merged(feature.name, ragged, source, row, tokens))
    return len(row)


def _tier(samples: int) -> int:
    return 0 if samples < FLOOR else 1 + int(np.log(samples / FLOOR) / np.log(FAN))


def _picked(
    columns: Sequence[npt.NDArray[np.generic]], source: npt.NDArray[np.integer], row: Rows
) -> npt.NDArray[np.generic]:
    out = np.empty((len(row), *columns[0].shape[1:]), columns[0].dtype)
    for number in np.unique(source):
        at = np.flatnonzero(source == number)
        out[at] = columns[number][row[at]]
    return out


def _merged(
    name: str, columns: Sequence[Ragged], source: npt.NDArray[np.integer], row: Rows, owner: npt.NDArray[np.uint64]
) -> Arrays:
    """One ragged column of rows of several, rows of one owner lying together."""
    starts, lengths = np.empty(len(row), np.int64), np.empty(len(row), np.int64)
    for number, column in enumerate(columns):
        at = np.flatnonzero(source == number)
        starts[at], lengths[at] = column.starts[row[at]], column.lengths[row[at]]
    # stretches of values that rows of one owner from one source use: a new one opens where a row starts beyond the last
    number_of_owner = np.cumsum(np.concatenate(([0], owner[1:] != owner[:-1])))
    order = np.lexsort((starts, source, number_of_owner))
    group = number_of_owner[order] * len(columns) + source[order]
    apart = group * (1 + max(len(column.values) for column in columns))  # so that no group reaches into the next
    begin, end = starts[order] + apart, (starts + lengths)[order] + apart
    reach = np.maximum.accumulate(end)
    opens = np.concatenate(([True], (begin[1:] > reach[:-1]) | (group[1:] != group[:-1])))
    first, last = begin[opens] - apart[opens], np.append(reach[:-1][opens[1:]], reach[-1]) - apart[opens]
    whose, where = number_of_owner[order][opens], source[order][opens]
    placed, values = _laid_out(whose, (columns[s].values[a:b] for s, a, b in zip(where, first, last, strict=True)))
    new_starts = np.empty(len(row), np.int64)
    new_starts[order] = starts[order] + (placed - first)[np.cumsum(opens) - 1]
    return ragged_columns(name, Ragged(values, new_starts.astype(np.int32), lengths.astype(np.int32)))


def _laid_out(
    whose: npt.NDArray[np.integer], stretches: Iterator[npt.NDArray[np.int32]]
) -> tuple[Int64, npt.NDArray[np.int32]]:
    """Where each stretch begins, int64 [s], and the values. A stretch that its owner has already is not stored again,
    and one that goes on where its owner's last ended adds only what is new."""
    placed, out, base = np.empty(len(whose), np.int64), [np.zeros(0, np.int32)], 0
    mine, owner = out[0], -1
    for number, stretch in enumerate(stretches):
        if whose[number] != owner:
            out.append(mine)
            base += len(mine)
            mine, owner = np.asarray(stretch, np.int32), whose[number]
            placed[number] = base
            continue
        at = _overlap(mine, stretch)
        placed[number] = base + at
        mine = np.concatenate([mine, stretch[len(mine) - at :]]) if at + len(stretch) > len(mine) else mine
    return placed, np.concatenate([*out, mine]).astype(np.int32)


def _overlap(values: npt.NDArray[np.int32], more: npt.NDArray[np.int32]) -> int:
    """The first place in `values` from where `more` agrees with them, as far as both go; their end if there is none."""
    if not len(more):
        return len(values)
    for at in np.flatnonzero(values == more[0]).tolist():
        common = min(len(values) - at, len(more))
        if np.array_equal(values[at : at + common], more[:common]):
            return int(at)
    return len(values)
