"""What a pool holds, in one small file: a change to the pool is one atomic replacement of it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from device_runtime.errors import StoreError

FORMAT = 2
NAME = "pool.json"
_NEW, _BEFORE = ".new-pool.json", ".pool.json.before"


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A segment. base: the position of its first sample. erased: contributors whose samples in it are hidden, and go
    when it is next rewritten. oldest: samples of before that second are hidden likewise; None = none are."""

    name: str
    base: int
    samples: int
    erased: tuple[int, ...] = ()
    oldest: int | None = None


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """next_base, next_number: positions and names are never given twice. sources: what was ingested -> samples of it
    that are in. erased: contributor -> second of the erasure: what they gave until then does not come back."""

    format: int = FORMAT
    next_base: int = 0
    next_number: int = 0
    segments: tuple[Entry, ...] = ()
    sources: dict[str, int] = {}
    erased: dict[int, int] = {}


def read(folder: Path) -> State:
    """Raises: OSError: it cannot be read. StoreError: damaged, or of another format."""
    return parse((folder / NAME).read_bytes(), folder)


def parse(data: bytes, folder: Path) -> State:
    """The bytes of the manifest of the pool in that folder. Raises: StoreError: damaged, or of another format."""
    try:
        state = msgspec.json.decode(data, type=State)
    except msgspec.DecodeError as error:
        raise StoreError(f"{folder / NAME} is damaged: {error}. Restore it from a copy") from None
    if state.format != FORMAT:
        raise StoreError(f"{folder} is a pool of format {state.format}; {FORMAT} is expected. Ingest into a new one")
    return state


def write(folder: Path, state: State) -> None:
    """Durable when this returns; the caller holds the pool's lock.

    Raises:
        OSError: the disk refused; the state is what it was.
    """
    path, new, before = folder / NAME, folder / _NEW, folder / _BEFORE
    try:
        with new.open("wb") as file:
            file.write(msgspec.json.encode(state))
            file.flush()
            os.fsync(file.fileno())
        before.unlink(missing_ok=True)
        if path.exists():
            os.link(path, before)
        new.replace(path)
        try:
            sync_folder(folder)
        except OSError:  # it might not outlive a power cut, so it must not be seen before one
            if before.exists():
                before.replace(path)
            else:
                path.unlink()
            raise
    finally:
        sweep(folder)


def sweep(folder: Path) -> None:
    """Remove what a `write` leaves that is cut short; the caller holds the pool's lock."""
    for leftover in (_NEW, _BEFORE):
        with contextlib.suppress(OSError):
            (folder / leftover).unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Make names in a folder durable."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def reason(error: OSError) -> str:
    """What the system said, for a sentence."""
    # numpy reports a short write as an OSError without a number
    return error.strerror or f"the disk took only part of a column ({error})"
