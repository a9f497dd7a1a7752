"""Arrays that are made once a segment and kept beside it, for all processes to map.

A segment never changes, whatever becomes hidden of it. So what matching derives from one is made by whichever process
is first, and lies beside it. Where it cannot be written it is kept in memory.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from cloud.pool import Segment
from device_runtime.samples import SampleBatch

KEPT = 4
"""Arrays of one sort, of so many models, stay beside a segment: releases come and go, and may be rolled back."""
_log = logging.getLogger("coda.matching")
_Made = TypeVar("_Made")
_Number = TypeVar("_Number", np.float32, np.int32, np.int64)


class BySegment(Generic[_Made]):
    """What is made of a segment when it is first asked for, and kept as long as anybody has the segment's samples."""

    def __init__(self, make: Callable[[Segment], _Made]) -> None:
        self._make = make
        self._computing = threading.Lock()
        self._known: dict[int, tuple[weakref.ref[SampleBatch], _Made]] = {}

    def __call__(self, segment: Segment) -> _Made:
        found = self._known.get(segment.base)
        if found is not None and found[0]() is segment.samples:
            return found[1]
        with self._computing:
            found = self._known.get(segment.base)
            if found is None or found[0]() is not segment.samples:
                known = {base: one for base, one in self._known.items() if one[0]() is not None}
                found = weakref.ref(segment.samples), self._make(segment)
                self._known = known | {segment.base: found}
            return found[1]


def kept(
    segment: Segment,
    name: str,
    shape: tuple[int, ...],
    dtype: type[_Number],
    make: Callable[[], npt.NDArray[_Number]],
) -> npt.NDArray[_Number]:
    """The array of that name beside the segment, mapped; made, and left there, if there is none. One process makes it
    while others wait.

    name: "SORT-KEY"; of a sort, the newest `KEPT` stay.
    """
    if segment.folder is None or 0 in shape:
        return make()
    path = segment.folder / f"{name}.npy"
    try:
        with (segment.folder / f".{name}").open("ab") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if (found := _mapped(path, shape, dtype)) is not None:
                return found
            made = make()
            try:
                _write(path, made)
            except OSError as error:
                _log.warning("kept in memory", extra={"facts": {"file": name, "reason": error.strerror}})
                return made
            mapped = _mapped(path, shape, dtype)
            return made if mapped is None else mapped
    except OSError:  # the segment has been compacted away, and this process still has it
        return make()


def _mapped(path: Path, shape: tuple[int, ...], dtype: type[_Number]) -> npt.NDArray[_Number] | None:
    """None: there is none, or it is not whole."""
    try:
        found: npt.NDArray[_Number] = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == dtype else None


def _write(path: Path, array: npt.NDArray[np.generic]) -> None:
    """Whole or not at all; what other models made long ago goes. Raises: OSError."""
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    alike = sorted(path.parent.glob(f"{path.stem.partition('-')[0]}-*.npy"), key=lambda one: one.stat().st_mtime)
    for old in alike[:-KEPT]:
        old.unlink()
