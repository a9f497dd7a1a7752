"""The SQLite file of a device: opened safely, upgraded from older versions, and its errors in our words.

Write-ahead log and `synchronous = FULL`: what a transaction committed survives a kill and a power cut, and what it had
not committed was never there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from device_runtime.errors import StoreError

_EVENTS = """
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

_PROGRESS_AND_ACTIVITY = """
ALTER TABLE rounds ADD COLUMN progress BLOB;
CREATE TABLE activity (
    seq INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    kind TEXT NOT NULL,
    item TEXT NOT NULL,
    page TEXT NOT NULL,
    value REAL NOT NULL,
    UNIQUE (at_ms, kind, item, page, value)
);
CREATE TABLE usage (day TEXT NOT NULL, what TEXT NOT NULL, amount REAL NOT NULL, PRIMARY KEY (day, what));
"""

UPGRADES = (_EVENTS, _PROGRESS_AND_ACTIVITY)
"""Version n of the file is what the first n of these make. An older file is brought up to date when it is opened."""

VERSION = len(UPGRADES)


class Database:
    """One connection. Close it, or use it in a `with`.

    Raises (from every method):
        StoreError: the file is damaged, of a newer version, locked, not writable, or the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self.explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(path, timeout=10, isolation_level=None)
            try:
                self._open()
            except BaseException:
                self.connection.close()
                raise

    def _open(self) -> None:
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")
        if self._version() == VERSION:
            return
        with self.transaction():
            version = self._version()
            if version == 0 and self.connection.execute("SELECT name FROM sqlite_master").fetchall():
                raise StoreError(f"{self.path} is an SQLite file of another program; use another --home")
            if version > VERSION:
                raise StoreError(
                    f"{self.path} is of version {version}; this program reads versions up to {VERSION}. "
                    "Use the program that wrote it, or another --home"
                )
            for statements in UPGRADES[version:]:
                for statement in statements.split(";"):
                    self.connection.execute(statement)
            self.connection.execute(f"PRAGMA user_version = {VERSION}")

    def _version(self) -> int:
        return int(self.connection.execute("PRAGMA user_version").fetchone()[0])

    def close(self) -> None:
        self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; durable when it returns."""
        with self.explained():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Errors of SQLite and of the disk, with what to do."""
        try:
            yield
        except sqlite3.Error as error:
            reason = str(error)
            if "full" in reason:
                advice = "free some space; nothing that was stored is lost"
            elif "malformed" in reason or "not a database" in reason or "no such" in reason:
                home = self.path.parent
                advice = f"it is damaged: `coda device repair --home {home}` saves what can be read, or restore a copy"
            elif "locked" in reason:
                advice = "another program is writing to it; try again when that has ended"
            elif "readonly" in reason:
                advice = "the disk or the file is read-only: make it writable, or use another --home"
            else:
                advice = "check that the folder can be read and written"
            raise StoreError(f"{self.path}: {reason}; {advice}") from None
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}; check that the folder can be read and written") from None
