"""A pool on disk that grows, forgets, and is searched while it does.

A pool is a folder of immutable segments and of `pool.json`, which says which of them count. Whatever changes the pool
is written beside and becomes true by one atomic replacement of `pool.json`: a kill at any point leaves the state before
or after. Changes take turns by a lock on the folder, long writing is done outside of it. Readers work on a snapshot
(`segments`); a position once given stays with its sample until compaction moves it, and can be gathered for a minute
beyond that. All columns are memory-mapped, so files that compaction removes stay readable to those who have them open.
A contributor is a 64-bit pseudonym made with a salt that lies elsewhere.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from cloud.pool import compaction, manifest
from cloud.pool.manifest import Entry, State, reason, sync_folder
from cloud.pool.segment import Segment, Snapshot, Tokens, columns_of, open_segment, save, seal
from device_runtime.errors import InputError, StoreError
from device_runtime.samples import Float32, Int64, SampleBatch, Schema

GRACE_S = 60.0
"""For so long after compaction moved a sample, it is still found at its old position."""


@dataclass(frozen=True)
class Part:
    """Samples `start` to `stop` of a source, counted from 0: what has been ingested is not taken in again."""

    source: str
    start: int
    stop: int


class Pool(Snapshot):
    """Samples embedded by one encoder.

    Raises (from every method):
        StoreError: a segment is damaged, or the disk refuses; what was acknowledged before is still there.
    """

    _retired: tuple[tuple[float, Segment], ...] = ()
    """(when, which) segments that compaction replaced: who searched them may still gather from them."""

    def __init__(self, folder: Path, schema: Schema, width: int) -> None:
        super().__init__(schema, width, ())
        self.folder = folder
        self._state = State()
        self._seen: _Opened | None = None  # the manifest that was read last
        self._refreshing = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._alone():
                if not (folder / manifest.NAME).exists():
                    if any(folder.glob("segment-*")):
                        raise StoreError(
                            f"the pool at {folder} holds segments but no {manifest.NAME}: it was written by an earlier "
                            "version, or that file was lost. Restore it from a copy, or ingest into a new pool"
                        )
                    manifest.write(folder, State())
                self._sweep()
            self._refresh()
        except OSError as error:
            raise StoreError(f"the pool at {folder} cannot be opened: {reason(error)}") from None

    @property
    def segments(self) -> tuple[Segment, ...]:
        """What the pool holds now, also by the doing of other processes: in ascending order of positions."""
        self._refresh()
        return self._segments

    def snapshot(self) -> Snapshot:
        """The pool as it is now, whatever happens to it."""
        return Snapshot(self.schema, self.width, self.segments)

    def append(
        self,
        samples: SampleBatch,
        timestamps: Int64,
        contributors: Tokens,
        embeddings: Float32,
        part: Part | None = None,
    ) -> int:
        """Add samples as one segment; they are durable and can be matched when this returns. Returns how many were
        added: samples that their contributor had erased before do not come back.

        timestamps: int64 [n], seconds. contributors: uint64 [n]. embeddings: float32 [n, width], unit rows. part: what
        they are of their source; noted in the same step.

        Raises:
            InputError: lengths, the width or numbers do not fit; or the part does not follow what is in.
        """
        arrays = columns_of(self.schema, self.width, samples, timestamps, contributors, embeddings)
        self._refresh()
        if before := self._state.erased:
            gone = erased_rows(before, contributors, timestamps)
            if gone.any():
                kept = ~gone
                arrays = columns_of(
                    self.schema, self.width, samples.take(kept), timestamps[kept], contributors[kept], embeddings[kept]
                )
        n = len(arrays["labels"])
        with self._changing("cannot grow"), self._workspace() as new:
            if n:
                save(new, arrays)
                seal(new, n, self.width)
            with self._alone():
                state = manifest.read(self.folder)
                sources = _advanced(state.sources, part)
                if not n:
                    if sources != state.sources:
                        self._commit(msgspec.structs.replace(state, sources=sources))
                    return 0
                late = {token for token, when in state.erased.items() if before.get(token) != when}
                erased = tuple(sorted(late & {int(token) for token in arrays["owners.tokens"]}))
                entry = Entry(_name(state.next_number), state.next_base, n, erased)
                self._publish(new, msgspec.structs.replace(state, sources=sources), entry)
        return n

    def erase(self, contributor: int, now: int) -> int:
        """Hide a contributor's samples from every answer, durably; they leave the disk by the next compaction. What
        they gave until `now`, in seconds, does not come back if it is ingested again. Returns how many were hidden."""
        with self._changing("cannot forget"), self._alone():
            state = manifest.read(self.folder)
            self._refresh()
            count, entries = 0, []
            for entry, segment in zip(state.segments, self._segments, strict=True):
                rows = segment.owners.rows_of(contributor)
                if len(rows) and contributor not in entry.erased:
                    count += int((~np.isin(rows, segment.hidden)).sum())
                    entry = msgspec.structs.replace(entry, erased=(*entry.erased, contributor))
                entries.append(entry)
            self._commit(
                msgspec.structs.replace(
                    state, segments=tuple(entries), erased={**state.erased, contributor: max(int(now), 0)}
                )
            )
        return count

    def retain(self, oldest: int) -> int:
        """Hide what is older than a second, durably; it leaves the disk by the next compaction. Returns how many."""
        with self._changing("cannot forget"), self._alone():
            before, state = len(self), manifest.read(self.folder)
            entries = tuple(
                msgspec.structs.replace(entry, oldest=oldest)
                if (entry.oldest is None or entry.oldest < oldest)
                and len(segment)
                and segment.timestamps.min() < oldest
                else entry
                for entry, segment in zip(state.segments, self._segments, strict=True)
            )
            if entries != state.segments:
                self._commit(msgspec.structs.replace(state, segments=entries))
            return before - len(self)

    def retain_newest(self, samples: int) -> int:
        """Hide the oldest samples, so that at most so many are left; those of one second go together."""
        segments = self.segments
        if len(self) <= samples:
            return 0
        times = np.sort(np.concatenate([s.timestamps[s.shown()] for s in segments]))
        return self.retain(int(times[len(times) - samples - 1]) + 1)

    def compact(self, full: bool = False, prepare: Callable[[Segment], None] = lambda segment: None) -> int:
        """Merge small segments, and rewrite those that hide samples, so that these are gone from disk. Searching and
        growing go on meanwhile. Returns how many segments were rewritten.

        full: merge all that fits together. prepare: called with a merged segment before it takes the others' place, to
        put an index beside it.
        """
        done = 0
        with self._changing("cannot be compacted"), (self.folder / ".compacting").open("ab") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            self._refresh()
            for group in compaction.plan(self._segments, full):
                self._merge(group, prepare)
                done += len(group)
        return done

    def due(self) -> bool:
        """Whether `compact` would do something."""
        return bool(compaction.plan(self.segments, False))

    def stats(self) -> dict[str, int]:
        """samples: that answers may show. hidden: that wait for compaction. bytes: on disk, indexes included. oldest,
        newest: seconds, 0 if there are none."""
        segments = self.segments
        ends = [(int(s.timestamps.min()), int(s.timestamps.max())) for s in segments]
        everybody = [s.owners.tokens for s in segments]
        return {
            "samples": len(self),
            "hidden": sum(len(s.hidden) for s in segments),
            "segments": len(segments),
            "contributors": len(np.unique(np.concatenate(everybody))) if everybody else 0,
            "erased_contributors": len(self._state.erased),
            "bytes": sum(_size(self.folder / s.name) for s in segments),
            "oldest": min((first for first, _ in ends), default=0),
            "newest": max((last for _, last in ends), default=0),
        }

    def ingested(self, source: str) -> int:
        """Samples of a source that are in."""
        self._refresh()
        return self._state.sources.get(source, 0)

    # -- how ----------------------------------------------------------------------------------------------------

    def _merge(self, group: Sequence[Segment], prepare: Callable[[Segment], None]) -> None:
        applied = {segment.name: segment.entry for segment in group if segment.entry}
        with self._workspace() as new:
            rows = compaction.write(new, group, self.schema)
            if rows:
                seal(new, rows, self.width)
                prepare(open_segment(new, None, 0, self.schema, self.width))
            with self._alone():
                state = manifest.read(self.folder)
                entries = tuple(entry for entry in state.segments if entry.name not in applied)
                if not rows:
                    self._commit(msgspec.structs.replace(state, segments=entries))
                else:
                    # what was hidden while we wrote is in what we wrote, and stays hidden
                    inputs = [entry for entry in state.segments if entry.name in applied]
                    late = {
                        token for entry in inputs for token in entry.erased if token not in applied[entry.name].erased
                    }
                    cuts = [e.oldest for e in inputs if e.oldest is not None and e.oldest != applied[e.name].oldest]
                    entry = Entry(
                        _name(state.next_number), state.next_base, rows, tuple(sorted(late)), max(cuts, default=None)
                    )
                    self._publish(new, msgspec.structs.replace(state, segments=entries), entry)
                self._sweep()

    def _publish(self, new: Path, state: State, entry: Entry) -> None:
        """Put a written segment in its place, and commit a state that counts it; it goes back if that fails."""
        new.rename(self.folder / entry.name)
        try:
            sync_folder(self.folder)
            self._commit(
                msgspec.structs.replace(
                    state,
                    next_base=state.next_base + entry.samples,
                    next_number=state.next_number + 1,
                    segments=(*state.segments, entry),
                )
            )
        except OSError:
            (self.folder / entry.name).rename(new)
            raise

    def _readable(self) -> tuple[Segment, ...]:
        return (*self.segments, *(segment for _, segment in self._retired))

    def _refresh(self) -> None:
        """See what has changed on disk since; costs one look at a file if nothing has."""
        try:
            if self._unchanged():
                return
            with self._refreshing:
                while not self._unchanged():
                    self._load()
        except OSError as error:
            raise StoreError(f"the pool at {self.folder} cannot be read: {reason(error)}") from None

    def _unchanged(self) -> bool:
        # being open, its inode is not used again: another inode means another manifest
        seen = self._seen
        return seen is not None and os.path.samestat((self.folder / manifest.NAME).stat(), os.fstat(seen.descriptor))

    def _load(self) -> None:
        opened = _Opened(self.folder / manifest.NAME)
        try:
            state = manifest.parse(opened.contents(), self.folder)
            have = {segment.name: segment for segment in self._segments}
            segments = tuple(self._opened(entry, have.get(entry.name)) for entry in state.segments)
        except FileNotFoundError as error:
            if not os.path.samestat((self.folder / manifest.NAME).stat(), os.fstat(opened.descriptor)):
                return  # compacted away while we looked: look again
            lost = Path(error.filename).parent.name
            raise StoreError(f"the pool at {self.folder} lacks {lost}. Restore it from a copy") from None
        now, staying = time.monotonic(), {entry.name for entry in state.segments}
        self._retired = (
            *((since, segment) for since, segment in self._retired if now - since < GRACE_S),
            *((now, segment) for segment in self._segments if segment.name not in staying),
        )
        self._state, self._segments, self._seen = state, segments, opened

    def _opened(self, entry: Entry, have: Segment | None) -> Segment:
        if have is not None and have.entry == entry:
            return have
        segment = have or open_segment(self.folder / entry.name, entry, entry.base, self.schema, self.width)
        if len(segment) != entry.samples:
            raise StoreError(
                f"{self.folder / entry.name} is damaged: it holds {len(segment)} samples, not {entry.samples}. "
                "Restore it from a copy"
            )
        return dataclasses.replace(segment, entry=entry, hidden=_hidden(segment, entry))

    def _commit(self, state: State) -> None:
        manifest.write(self.folder, state)
        self._refresh()

    @contextmanager
    def _changing(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"the pool at {self.folder} {what}: {reason(error)}; what it holds is kept") from None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps other writers out, in other threads and processes; a crash lets go."""
        with (self.folder / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _workspace(self) -> Iterator[Path]:
        """A folder to write a segment in. Its lock says that somebody is still at it."""
        with self._alone():
            new = Path(tempfile.mkdtemp(dir=self.folder, prefix=".new-"))
            alive = os.open(new, os.O_RDONLY)
            fcntl.flock(alive, fcntl.LOCK_EX)
        try:
            yield new
        finally:
            os.close(alive)
            shutil.rmtree(new, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what a crash left, and segments that no longer count; with the lock held."""
        manifest.sweep(self.folder)
        counted = {entry.name for entry in manifest.read(self.folder).segments}
        for path in self.folder.glob("segment-*"):
            if path.name not in counted:  # gone in one step: who is about to open it must not find half of it
                path.rename(self.folder / f".old-{path.name}")
        for path in self.folder.glob(".old-*"):
            shutil.rmtree(path)
        for path in self.folder.glob(".new-*"):
            if path.is_dir() and _dead(path):
                shutil.rmtree(path)


def erased_rows(
    erased: dict[int, int], contributors: Tokens, timestamps: Int64
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """bool [n]: samples given before their contributor had them erased."""
    tokens = np.array(sorted(erased), np.uint64)
    until = np.array([erased[token] for token in sorted(erased)], np.int64)
    at = np.minimum(np.searchsorted(tokens, contributors.astype(np.uint64)), len(tokens) - 1)
    return np.asarray((tokens[at] == contributors) & (timestamps <= until[at]), bool)


def _hidden(segment: Segment, entry: Entry) -> Int64:
    parts = [segment.owners.rows_of(token).astype(np.int64) for token in entry.erased]
    if entry.oldest is not None:
        parts.append(np.flatnonzero(segment.timestamps < entry.oldest))
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.int64)


def _advanced(sources: dict[str, int], part: Part | None) -> dict[str, int]:
    if part is None:
        return sources
    if sources.get(part.source, 0) != part.start:
        raise InputError(
            f"{sources.get(part.source, 0)} samples of the source are in the pool; those from {part.start} on do not "
            "follow. Is another process ingesting the same?"
        )
    return {**sources, part.source: part.stop}


class _Opened:
    """A file that is open as long as somebody has this."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self.descriptor)

    def contents(self) -> bytes:
        return os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0)


def _size(folder: Path) -> int:
    """Bytes of the files in a folder; 0 if it has just been compacted away."""
    try:
        return sum(path.stat().st_size for path in folder.iterdir())
    except FileNotFoundError:
        return 0


def _dead(path: Path) -> bool:
    """Whether nobody writes in this folder any more."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def _name(number: int) -> str:
    return f"segment-{number:08d}"
