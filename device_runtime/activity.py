"""What the user does, as the app tells: exposures, clicks, ratings, pages entered and left. Raw material for samples.

Appended in batches, each one transaction: a kill loses at most what had not been flushed, never half a batch. The same
event given twice is kept once, and the order of arrival does not matter: readers sort by time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType

from device_runtime.database import Database
from device_runtime.errors import InputError

KINDS = ("exposure", "click", "rating", "page_enter", "page_exit")
_OF_ITEMS = ("exposure", "click", "rating")
_LATEST_MS = (1 << 33) * 1000
ROW_BYTES = 120
"""What a row takes on disk with its index, about: the measure of retention by bytes. Measured: 71 with keys of five
characters, 146 with pages and items of seventeen to twenty-four."""
_CHUNK = 10_000


@dataclass(frozen=True)
class Activity:
    """One event. kind: of `KINDS`. at_ms: milliseconds since 1970. item: "" of pages. page: where; "" if the app has no
    pages. value: of a rating."""

    kind: str
    at_ms: int
    item: str = ""
    page: str = ""
    value: float = 0.0

    def __post_init__(self) -> None:
        """Raises: InputError: says which field does not fit."""
        if self.kind not in KINDS:
            raise InputError(f"an event's kind is one of {', '.join(KINDS)}; given: {self.kind!r}")
        if not 0 < self.at_ms < _LATEST_MS:
            raise InputError(f"an event's time is in milliseconds since 1970; given: {self.at_ms}")
        if (self.kind in _OF_ITEMS) != bool(self.item):
            wants = "an item" if self.kind in _OF_ITEMS else "no item, but a page"
            raise InputError(f"an event of kind {self.kind} has {wants}; given: {self.item!r}")
        if not math.isfinite(self.value):
            raise InputError(f"a rating is a finite number; given: {self.value}")


class ActivityLog:
    """The stored events of one device."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._db = database.connection

    def append(self, events: Iterable[Activity]) -> int:
        """Store events, all or none; returns how many were not there yet. Raises: StoreError."""
        rows = [(e.at_ms, e.kind, e.item, e.page, e.value) for e in events]
        with self._database.transaction():
            before = self._db.total_changes
            self._db.executemany(
                "INSERT INTO activity (at_ms, kind, item, page, value) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                rows,
            )
            return self._db.total_changes - before

    def read(self, since_ms: int = 0, until_ms: int = _LATEST_MS) -> Iterator[tuple[int, Activity]]:
        """(sequence number, event), by time, from `since_ms` and before `until_ms`; a bounded part is in memory."""
        query = (
            "SELECT seq, kind, at_ms, item, page, value FROM activity"
            " WHERE (at_ms, seq) > (?, ?) AND at_ms < ? ORDER BY at_ms, seq LIMIT ?"
        )
        at, seq = since_ms - 1, _LATEST_MS
        while True:
            with self._database.explained():
                rows = self._db.execute(query, (at, seq, until_ms, _CHUNK)).fetchall()
            for seq, kind, at, item, page, value in rows:
                yield seq, Activity(kind, at, item, page, value)
            if len(rows) < _CHUNK:
                return

    def count(self) -> int:
        with self._database.explained():
            return int(self._db.execute("SELECT count(*) FROM activity").fetchone()[0])

    def last(self) -> int:
        """The sequence number of the event that arrived last; 0 if there is none."""
        with self._database.explained():
            return int(self._db.execute("SELECT coalesce(max(seq), 0) FROM activity").fetchone()[0])

    def earliest_after(self, seq: int) -> int | None:
        """The time of the earliest event that arrived after a sequence number, ms; None if none has."""
        with self._database.explained():
            [at] = self._db.execute("SELECT min(at_ms) FROM activity WHERE seq > ?", (seq,)).fetchone()
        return None if at is None else int(at)

    def newest_ms(self) -> int:
        """The time of the latest event; 0 if there is none."""
        with self._database.explained():
            return int(self._db.execute("SELECT coalesce(max(at_ms), 0) FROM activity").fetchone()[0])

    def retain(self, max_age_s: float, max_bytes: int, now: float) -> int:
        """Remove events older than `max_age_s`, and the oldest ones beyond `max_bytes` (of `ROW_BYTES` each).

        Returns how many went. The newest one's sequence number is never given to another event.
        """
        most = max(max_bytes // ROW_BYTES, 1)
        with self._database.transaction():
            before = self._db.total_changes
            last = self.last()
            self._db.execute("DELETE FROM activity WHERE seq < ? AND at_ms < ?", (last, int((now - max_age_s) * 1000)))
            self._db.execute(
                "DELETE FROM activity WHERE seq < ? AND seq IN"
                " (SELECT seq FROM activity ORDER BY at_ms DESC, seq DESC LIMIT -1 OFFSET ?)",
                (last, most),
            )
            return self._db.total_changes - before


_HOLD_S = 86_400.0


def stamp_ms(now: float, newest_ms: int) -> int:
    """The time to give an event that happens now, ms.

    A clock that was set back by up to a day is overruled by the newest event until it has caught up, so that what
    happens later does not look earlier. Further back than that, the newest event's time was the mistake.
    """
    own = int(now * 1000)
    return newest_ms if own < newest_ms <= own + _HOLD_S * 1000 else own


class Recorder:
    """The app's side: `record` returns at once, and events are stored in batches. Use it in a `with`.

    What is not flushed yet is lost by a kill: at most `batch` events, or those of the last `seconds`.
    """

    def __init__(
        self,
        log: ActivityLog,
        batch: int = 64,
        seconds: float = 1.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """clock: seconds since 1970."""
        self._log, self._batch, self._seconds, self._clock = log, batch, seconds, clock
        self._waiting: list[Activity] = []
        self._since = 0.0
        self._newest_ms = log.newest_ms()

    def record(self, kind: str, item: str = "", page: str = "", value: float = 0.0) -> None:
        """Raises: InputError: not an event. StoreError: the batch could not be stored; it is kept and tried again."""
        at_ms = stamp_ms(self._clock(), self._newest_ms)
        self._newest_ms = max(self._newest_ms, at_ms)
        if not self._waiting:
            self._since = self._clock()
        self._waiting.append(Activity(kind, at_ms, item, page, value))
        if len(self._waiting) >= self._batch or abs(self._clock() - self._since) >= self._seconds:
            self.flush()

    def flush(self) -> None:
        """Store what waits; when it returns, a power cut does not lose it. Raises: StoreError."""
        if self._waiting:
            self._log.append(self._waiting)
            self._waiting = []

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.flush()
