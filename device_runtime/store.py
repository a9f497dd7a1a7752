"""What a device keeps: events, the journal of its rounds, which bundle and which weights serve. One SQLite file.

Every public method is one transaction: when it returns, its effect survives a power cut; when it raises, nothing has
changed. Weights themselves are files, written whole before the row that names them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from device_runtime.errors import StoreError
from device_runtime.messages import BundleRef, RoundReport, from_json, to_json

VERSION = 1

TRANSITIONS: dict[str, tuple[str, ...]] = {
    "started": ("pulled", "failed", "interrupted"),
    "pulled": ("encoded", "done", "failed", "interrupted"),
    "encoded": ("matched", "tuned", "failed", "interrupted"),
    "matched": ("pulled", "filtered", "tuned", "failed", "interrupted"),
    "filtered": ("tuned", "failed", "interrupted"),
    "tuned": ("judged", "failed", "interrupted"),
    "judged": ("done", "failed", "interrupted"),
    "done": (),
    "failed": (),
    "interrupted": (),
}
"""States of a round, and where each may lead. `encoded` goes straight to `tuned` where nothing is asked for, and
`matched` does where nothing came; `matched` goes back to `pulled` when the server says that the query was made by an
outdated encoder."""

_SCHEMA = """
CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    item TEXT NOT NULL,
    timestamp INTEGER NOT NULL,
    label REAL,
    rating REAL,
    observed INTEGER NOT NULL,
    UNIQUE (item, timestamp, observed)
);
CREATE TABLE bundle (only INTEGER PRIMARY KEY CHECK (only = 1), ref BLOB NOT NULL, etag TEXT NOT NULL);
CREATE TABLE weights (version TEXT PRIMARY KEY, bundle INTEGER NOT NULL, active INTEGER NOT NULL);
CREATE TABLE self_tests (what TEXT PRIMARY KEY);
CREATE TABLE rounds (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    started REAL NOT NULL,
    report BLOB,
    delivered INTEGER NOT NULL DEFAULT 0,
    traffic BLOB
);
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Event:
    """One thing the user did with an item. label in [0, 1], or rating, or both. observed: no sampled negative."""

    item: str
    timestamp: int
    label: float | None = None
    rating: float | None = None
    observed: bool = True


@dataclass(frozen=True)
class RoundRow:
    """A round in the journal. traffic: bytes (up, down) by message."""

    id: str
    state: str
    started: float
    report: RoundReport | None
    delivered: bool
    traffic: dict[str, tuple[int, int]]


class Store:
    """Opened with `Store(path)`; close it, or use it in a `with`.

    Raises (from every method):
        StoreError: the file is damaged, of another version, locked, or the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=10, isolation_level=None)
            try:
                self._open()
            except BaseException:
                self._db.close()
                raise

    def _open(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        with self._transaction():
            [version] = self._db.execute("PRAGMA user_version").fetchone()
            if version == 0 and not self._db.execute("SELECT name FROM sqlite_master").fetchall():
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {VERSION}")
            elif version != VERSION:
                raise StoreError(
                    f"{self.path} is of version {version}; this program reads version {VERSION}. "
                    "Use the program that wrote it, or another --home"
                )

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- events -------------------------------------------------------------------------------------------------

    def add_events(self, events: Iterable[Event]) -> int:
        """Append events; those already there (same item, second and kind) stay as they are. Returns how many came."""
        rows = [(e.item, e.timestamp, e.label, e.rating, int(e.observed)) for e in events]
        with self._transaction():
            before = self._db.total_changes
            self._db.executemany(
                "INSERT INTO events (item, timestamp, label, rating, observed) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT DO NOTHING",
                rows,
            )
            return self._db.total_changes - before

    def events(self) -> list[Event]:
        """All events, oldest first; those of the same second in the order of their arrival."""
        with self._explained():
            rows = self._db.execute(
                "SELECT item, timestamp, label, rating, observed FROM events ORDER BY timestamp, seq"
            )
            return [Event(item, at, label, rating, bool(seen)) for item, at, label, rating, seen in rows]

    def count_events(self) -> int:
        with self._explained():
            return int(self._db.execute("SELECT count(*) FROM events").fetchone()[0])

    # -- what serves --------------------------------------------------------------------------------------------

    def bundle(self) -> tuple[BundleRef, str] | None:
        """The bundle that serves, and the ETag under which the server announced it."""
        with self._explained():
            row = self._db.execute("SELECT ref, etag FROM bundle").fetchone()
        return None if row is None else (from_json(row[0], BundleRef, "the stored bundle"), row[1])

    def use_bundle(self, ref: BundleRef, etag: str) -> None:
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO bundle VALUES (1, ?, ?)", (to_json(ref), etag))

    def weights(self) -> tuple[str, int] | None:
        """Version and bundle of the personal weights that serve; None where the bundle's own do."""
        with self._explained():
            row = self._db.execute("SELECT version, bundle FROM weights WHERE active").fetchone()
        return None if row is None else (str(row[0]), int(row[1]))

    def use_weights(self, version: str, bundle: int) -> None:
        """Make a version serve; its file must be on disk already."""
        with self._transaction():
            self._db.execute("UPDATE weights SET active = 0")
            self._db.execute("INSERT OR REPLACE INTO weights VALUES (?, ?, 1)", (version, bundle))

    def passed(self, what: str) -> bool:
        """Whether this combination of bundle, engine and version has passed its self-test."""
        with self._explained():
            return self._db.execute("SELECT 1 FROM self_tests WHERE what = ?", (what,)).fetchone() is not None

    def pass_test(self, what: str) -> None:
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO self_tests VALUES (?)", (what,))

    # -- rounds -------------------------------------------------------------------------------------------------

    def start_round(self, round_id: str, now: float) -> int:
        """Open a round; unfinished ones are marked as interrupted. Returns how many rounds there were before."""
        final = tuple(state for state, onward in TRANSITIONS.items() if not onward)
        with self._transaction():
            marks = ", ".join("?" for _ in final)
            self._db.execute(f"UPDATE rounds SET state = 'interrupted' WHERE state NOT IN ({marks})", final)
            [before] = self._db.execute("SELECT count(*) FROM rounds").fetchone()
            self._db.execute("INSERT INTO rounds (id, state, started) VALUES (?, 'started', ?)", (round_id, now))
            return int(before)

    def advance_round(self, round_id: str, state: str) -> None:
        """Move a round to a state that `TRANSITIONS` allows."""
        with self._transaction():
            self._advance(round_id, state)

    def finish_round(self, round_id: str, state: str, report: RoundReport, traffic: dict[str, tuple[int, int]]) -> None:
        """The last state, the report to deliver, and the bytes by message."""
        with self._transaction():
            self._advance(round_id, state)
            self._db.execute(
                "UPDATE rounds SET report = ?, traffic = ? WHERE id = ?",
                (to_json(report), msgspec.json.encode(traffic), round_id),
            )

    def mark_delivered(self, round_id: str) -> None:
        with self._transaction():
            self._db.execute("UPDATE rounds SET delivered = 1 WHERE id = ?", (round_id,))

    def rounds(self) -> list[RoundRow]:
        """The journal, oldest first."""
        with self._explained():
            rows = self._db.execute("SELECT id, state, started, report, delivered, traffic FROM rounds ORDER BY seq")
            return [
                RoundRow(
                    rid,
                    state,
                    started,
                    from_json(report, RoundReport, f"the report of round {rid}") if report else None,
                    bool(delivered),
                    msgspec.json.decode(traffic, type=dict[str, tuple[int, int]]) if traffic else {},
                )
                for rid, state, started, report, delivered, traffic in rows
            ]

    def _advance(self, round_id: str, state: str) -> None:
        row = self._db.execute("SELECT state FROM rounds WHERE id = ?", (round_id,)).fetchone()
        if row is None or state not in TRANSITIONS[row[0]]:
            raise StoreError(f"round {round_id} cannot go from {row and row[0]} to {state}")
        self._db.execute("UPDATE rounds SET state = ? WHERE id = ?", (state, round_id))

    # -- settings -----------------------------------------------------------------------------------------------

    def setting(self, name: str) -> str | None:
        with self._explained():
            row = self._db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set(self, **values: str) -> None:
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO settings VALUES (?, ?)", list(values.items()))

    # -- errors -------------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            reason = str(error)
            if "full" in reason:
                advice = "free some space; nothing that was stored is lost"
            elif "malformed" in reason or "not a database" in reason:
                advice = "it is damaged: restore a copy, or move it away and import the history again"
            elif "locked" in reason:
                advice = "another program is writing to it; try again when that has ended"
            else:
                advice = "check that the folder can be read and written"
            raise StoreError(f"{self.path}: {reason}; {advice}") from None
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}; check that the folder can be read and written") from None


def labels(events: list[Event], positive_at: float | None) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """float32 [n]: an event's label, else whether its rating reaches `positive_at`; NaN where neither is known."""
    found = np.full(len(events), np.nan, np.float32)
    for i, event in enumerate(events):
        if event.label is not None:
            found[i] = event.label
        elif event.rating is not None and positive_at is not None:
            found[i] = float(event.rating >= positive_at)
    return found
