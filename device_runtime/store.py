"""What a device keeps: events, the journal of its rounds, which bundle and which weights serve. One SQLite file.

Every public method is one transaction: when it returns, its effect survives a power cut; when it raises, nothing has
changed. Weights themselves are files, whole before the row that names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from device_runtime.database import Database
from device_runtime.errors import StoreError
from device_runtime.journal import FINAL, Inputs, Progress, allowed
from device_runtime.messages import BundleRef, RoundReport, from_json, to_json

if TYPE_CHECKING:
    from device_runtime.samples import Float32

_FOREVER = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Event:
    """One thing the user did with an item. label in [0, 1], or rating, or both. observed: no sampled negative."""

    item: str
    timestamp: int
    label: float | None = None
    rating: float | None = None
    observed: bool = True


@dataclass(frozen=True)
class RoundRow:
    """A round in the journal. progress: None of rounds that version 1 ran. traffic: bytes (up, down) by message."""

    id: str
    state: str
    started: float
    report: RoundReport | None
    delivered: bool
    progress: Progress | None
    traffic: dict[str, tuple[int, int]]


class Store:
    """Opened with `Store(path)`; close it, or use it in a `with`.

    Raises (from every method):
        StoreError: the file is damaged, of another version, locked, or the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = Database(path)
        self._db = self.database.connection
        self._transaction, self._explained = self.database.transaction, self.database.explained

    def close(self) -> None:
        self.database.close()

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

    def add_samples(self, samples: Iterable[Event]) -> int:
        """As `add_events`, for events that triggers made; of two labels for one impression the higher one counts."""
        rows = [(e.item, e.timestamp, e.label, e.rating, int(e.observed)) for e in samples]
        with self._transaction():
            [before] = self._db.execute("SELECT count(*) FROM events").fetchone()
            self._db.executemany(
                "INSERT INTO events (item, timestamp, label, rating, observed) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET label = excluded.label WHERE excluded.label > label",
                rows,
            )
            return int(self._db.execute("SELECT count(*) FROM events").fetchone()[0]) - int(before)

    def retain(self, max_age_s: float, most: int, now: float) -> int:
        """Remove events older than `max_age_s` seconds, and the oldest beyond `most`. Returns how many went."""
        with self._transaction():
            last = self.last_event()
            before = self._db.total_changes
            self._db.execute("DELETE FROM events WHERE seq < ? AND timestamp < ?", (last, int(now - max_age_s)))
            self._db.execute(
                "DELETE FROM events WHERE seq < ? AND seq IN"
                " (SELECT seq FROM events ORDER BY timestamp DESC, seq DESC LIMIT -1 OFFSET ?)",
                (last, most),
            )
            return self._db.total_changes - before

    def events(self, until: int | None = None, newest: int | None = None) -> list[Event]:
        """Events, oldest first; those of the same second in the order of their arrival.

        until: only those that had arrived when `last_event` gave this number. newest: at most so many of them, the
        latest by time.
        """
        with self._explained():
            rows = self._db.execute(
                "SELECT item, timestamp, label, rating, observed FROM events WHERE seq <= ?"
                " ORDER BY timestamp DESC, seq DESC LIMIT ?",
                (_FOREVER if until is None else until, -1 if newest is None else newest),
            ).fetchall()
        return [Event(item, at, label, rating, bool(seen)) for item, at, label, rating, seen in reversed(rows)]

    def items(self) -> list[str]:
        """The items of all events, each once, in no particular order."""
        with self._explained():
            return [item for (item,) in self._db.execute("SELECT DISTINCT item FROM events")]

    def count_events(self, until: int | None = None) -> int:
        with self._explained():
            query = "SELECT count(*) FROM events WHERE seq <= ?"
            return int(self._db.execute(query, (_FOREVER if until is None else until,)).fetchone()[0])

    def last_event(self) -> int:
        """The sequence number of the event that arrived last; 0 if there is none."""
        with self._explained():
            return int(self._db.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0])

    # -- what serves --------------------------------------------------------------------------------------------

    def bundle(self) -> tuple[BundleRef, str] | None:
        """The bundle that serves, and the ETag under which the server announced it."""
        with self._explained():
            row = self._db.execute("SELECT ref, etag FROM bundle").fetchone()
        return None if row is None else (from_json(row[0], BundleRef, "the stored bundle"), row[1])

    def use_bundle(self, ref: BundleRef, etag: str, trusted: str = "") -> None:
        """Let a bundle serve. trusted: the key that its manifest is signed with, if that may have changed."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO bundle VALUES (1, ?, ?)", (to_json(ref), etag))
            if trusted:
                self._db.execute("INSERT OR REPLACE INTO settings VALUES ('trusted', ?)", (trusted,))

    def weights(self) -> tuple[str, int] | None:
        """Version and bundle of the personal weights that serve; None where the bundle's own do."""
        with self._explained():
            row = self._db.execute("SELECT version, bundle FROM weights WHERE active").fetchone()
        return None if row is None else (str(row[0]), int(row[1]))

    def use_weights(self, version: str, bundle: int) -> None:
        """Make a version serve; its file must be on disk already."""
        with self._transaction():
            self._use_weights(version, bundle)

    def _use_weights(self, version: str, bundle: int) -> None:
        self._db.execute("DELETE FROM weights")
        self._db.execute("INSERT INTO weights VALUES (?, ?, 1)", (version, bundle))

    def drop_weights(self) -> None:
        """Let the bundle's own weights serve."""
        with self._transaction():
            self._db.execute("DELETE FROM weights")

    def passed(self, what: str) -> bool:
        """Whether this combination of bundle, engine and version has passed its self-test."""
        with self._explained():
            return self._db.execute("SELECT 1 FROM self_tests WHERE what = ?", (what,)).fetchone() is not None

    def pass_test(self, what: str) -> None:
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO self_tests VALUES (?)", (what,))

    # -- rounds -------------------------------------------------------------------------------------------------

    def start_round(self, round_id: str, now: float, inputs: Callable[[int], Inputs]) -> Progress:
        """Open a round; an unfinished one is marked as interrupted. inputs: given how many rounds there were before."""
        with self._transaction():
            marks = ", ".join("?" for _ in FINAL)
            self._db.execute(f"UPDATE rounds SET state = 'interrupted' WHERE state NOT IN ({marks})", tuple(FINAL))
            [before] = self._db.execute("SELECT count(*) FROM rounds").fetchone()
            progress = Progress(inputs=inputs(int(before)))
            self._db.execute(
                "INSERT INTO rounds (id, state, started, progress) VALUES (?, 'started', ?, ?)",
                (round_id, now, to_json(progress)),
            )
            return progress

    def advance_round(self, round_id: str, state: str, progress: Progress) -> None:
        """Commit a step: its results, and the state that it leads to, which `journal.TRANSITIONS` must allow."""
        with self._transaction():
            self._advance(round_id, state, progress)

    def note_progress(self, round_id: str, progress: Progress) -> None:
        """Commit what a step cost that did not get to its end; the state stays."""
        with self._transaction():
            self._db.execute("UPDATE rounds SET progress = ? WHERE id = ?", (to_json(progress), round_id))

    def activate_round(self, round_id: str, progress: Progress, weights: str) -> None:
        """Let a round's weights serve ("": those that do stay), and commit that it did."""
        with self._transaction():
            if weights:
                self._use_weights(weights, progress.bundle)
            self._advance(round_id, "activated", progress)

    def finish_round(self, round_id: str, state: str, report: RoundReport, progress: Progress) -> None:
        """The last state, and the report to deliver."""
        with self._transaction():
            self._advance(round_id, state, progress)
            self._db.execute("UPDATE rounds SET report = ? WHERE id = ?", (to_json(report), round_id))

    def mark_delivered(self, round_id: str) -> None:
        with self._transaction():
            self._db.execute("UPDATE rounds SET delivered = 1 WHERE id = ?", (round_id,))

    def rounds(self) -> list[RoundRow]:
        """The journal, oldest first."""
        return self._rounds("ORDER BY seq")

    def unfinished(self) -> RoundRow | None:
        """The round that was cut off, if one was."""
        marks = ", ".join("?" for _ in FINAL)
        found = self._rounds(f"WHERE state NOT IN ({marks}) ORDER BY seq DESC LIMIT 1", *FINAL)
        return found[0] if found else None

    def last_round(self) -> RoundRow | None:
        """The round that was started last."""
        found = self._rounds("ORDER BY seq DESC LIMIT 1")
        return found[0] if found else None

    def _rounds(self, which: str, *values: str) -> list[RoundRow]:
        with self._explained():
            rows = self._db.execute(
                f"SELECT id, state, started, report, delivered, traffic, progress FROM rounds {which}", values
            ).fetchall()
        return [
            RoundRow(
                rid,
                state,
                started,
                from_json(report, RoundReport, f"the report of round {rid}") if report else None,
                bool(delivered),
                from_json(progress, Progress, f"the progress of round {rid}") if progress else None,
                msgspec.json.decode(traffic, type=dict[str, tuple[int, int]]) if traffic else {},
            )
            for rid, state, started, report, delivered, traffic, progress in rows
        ]

    def _advance(self, round_id: str, state: str, progress: Progress) -> None:
        row = self._db.execute("SELECT state FROM rounds WHERE id = ?", (round_id,)).fetchone()
        if row is None or not allowed(row[0], state):
            raise StoreError(f"round {round_id} cannot go from {row and row[0]} to {state}")
        self._db.execute(
            "UPDATE rounds SET state = ?, progress = ?, traffic = ? WHERE id = ?",
            (state, to_json(progress), msgspec.json.encode(progress.traffic), round_id),
        )

    # -- settings -----------------------------------------------------------------------------------------------

    def setting(self, name: str) -> str | None:
        with self._explained():
            row = self._db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def settings(self) -> dict[str, str]:
        with self._explained():
            return dict(self._db.execute("SELECT name, value FROM settings ORDER BY name"))

    def set(self, **values: str) -> None:
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO settings VALUES (?, ?)", list(values.items()))


def labels(events: list[Event], positive_at: float | None) -> Float32:
    """float32 [n]: an event's label, else whether its rating reaches `positive_at`; NaN where neither is known."""
    import numpy as np  # not at the top: the idle agent opens the store, and must stay small

    found = np.full(len(events), np.nan, np.float32)
    for i, event in enumerate(events):
        if event.label is not None:
            found[i] = event.label
        elif event.rating is not None and positive_at is not None:
            found[i] = float(event.rating >= positive_at)
    return found
