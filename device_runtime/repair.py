"""`coda device repair`: what is damaged in a device's folder, what can be saved of it, and what is lost, in words.

Nothing is reset in silence: a damaged database is kept beside the one that its readable rows are saved into, and every
loss is named. What the server has (bundles, rows) is only removed, and pulled again by the next round.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from device_runtime.bundle import move_durably, read_tensors
from device_runtime.database import Database
from device_runtime.errors import CodaError, StoreError
from device_runtime.home import DeviceHome
from device_runtime.identity import Signer

_BATCH = 500
_FARTHEST = 1 << 24
"""Row numbers to look beyond a damaged page, at most."""


def repair(path: Path) -> list[str]:
    """Mend a device's folder; returns what was found and done, a sentence each; empty where all was well.

    Raises:
        StoreError: the folder cannot be written, is of a newer version, or a round is running in it.
    """
    done = _mend_database(path / "coda.db")
    with DeviceHome(path) as home, home.locked():
        done += _mend_key(home) + _mend_blobs(home) + _mend_weights(home) + _clear_leftovers(home)
    return done


# -- the database -------------------------------------------------------------------------------------------------


def _mend_database(path: Path) -> list[str]:
    if not path.exists() or _is_whole(path):
        return []
    aside = next(p for n in range(1, 1000) if not (p := path.with_name(f"coda.db.damaged-{n}")).exists())
    rescued = path.with_name("coda.db.rescued")
    for left in path.parent.glob("coda.db.rescued*"):
        left.unlink()
    with closing(Database(rescued)) as fresh, closing(_read_only(path)) as damaged:
        saved = {table: _save(damaged, fresh, table) for table in _tables(fresh.connection)}
        fresh.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for suffix in ("-wal", "-shm"):
        if (beside := path.with_name(path.name + suffix)).exists():
            move_durably(beside, aside.with_name(aside.name + suffix))
    move_durably(path, aside)
    move_durably(rescued, path)
    counts = ", ".join(f"{count} {table}" for table, count in saved.items() if count)
    lines = [f"the database was damaged: saved {counts or 'nothing'}; the damaged file is kept as {aside.name}"]
    if not saved.get("settings"):
        lines.append("what server this device belongs to is lost: enrol it again, its key is still the same")
    return lines


def _is_whole(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(path, timeout=10)) as db:
            return bool(db.execute("PRAGMA integrity_check").fetchone() == ("ok",))
    except sqlite3.OperationalError as error:
        raise StoreError(f"{path}: {error}; check that the folder can be read and written") from None
    except sqlite3.DatabaseError:
        return False


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)


def _tables(db: sqlite3.Connection) -> list[str]:
    return [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]


def _save(damaged: sqlite3.Connection, fresh: Database, table: str) -> int:
    """Copy the rows that can be read, and that are what their table takes. Returns how many."""
    wanted = [row[1] for row in fresh.connection.execute(f"PRAGMA table_info({table})")]
    try:
        there = {row[1] for row in damaged.execute(f"PRAGMA table_info({table})")}
    except sqlite3.DatabaseError:
        return 0
    columns = [name for name in wanted if name in there]
    if not columns:
        return 0
    count, marks = 0, ", ".join("?" for _ in columns)
    with fresh.transaction():
        for row in _readable(damaged, table, columns):
            try:
                statement = f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({marks})"
                count += fresh.connection.execute(statement, row).rowcount
            except sqlite3.Error:  # a row of nonsense
                continue
    return count


def _readable(db: sqlite3.Connection, table: str, columns: list[str]) -> Iterator[tuple[object, ...]]:
    """The rows of a table, in order; pages that cannot be read are stepped over, in growing steps.

    A damaged tree may lead anywhere, also in circles: only rows that come later than those before are taken.
    """
    query = f"SELECT rowid, {', '.join(columns)} FROM {table} WHERE rowid > ? ORDER BY rowid LIMIT ?"
    last, step = 0, 0
    while step < _FARTHEST:
        rows = _rows(db, query, last + step, 1 if step else _BATCH)
        if rows is None and not step:  # the batch reaches into the damage: up to there, row by row
            rows = _rows(db, query, last, 1)
        if rows == []:
            return
        taken = last
        for row in rows or ():
            if taken < row[0] < taken + _FARTHEST:
                taken = row[0]
                yield row[1:]
        step = 0 if taken > last else max(1, 2 * step)
        last = taken


def _rows(db: sqlite3.Connection, query: str, after: int, most: int) -> list[Any] | None:
    """None where they cannot be read."""
    try:
        return db.execute(query, (after, most)).fetchall()
    except sqlite3.DatabaseError:
        return None


# -- files --------------------------------------------------------------------------------------------------------


def _mend_key(home: DeviceHome) -> list[str]:
    path = home.path / "device.key"
    if home.store.setting("device") is None:
        return []
    try:
        Signer.open(path)
    except StoreError as error:
        return [f"{error}; restore it from a copy, or remove it and enrol again: the server will see a new device"]
    return []


def _mend_blobs(home: DeviceHome) -> list[str]:
    folder, removed = home.blobs.folder, 0
    for path in folder.glob("*") if folder.is_dir() else ():
        if re.fullmatch("[0-9a-f]{64}", path.name):
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != path.name:
                    path.unlink()
                    removed += 1
    # made from blobs, and engines read them unverified
    shutil.rmtree(folder / "unpacked", ignore_errors=True)
    return [f"removed {removed} damaged bundle files; the next round pulls them again"] if removed else []


def _mend_weights(home: DeviceHome) -> list[str]:
    serving = home.store.weights()
    if serving is None:
        return []
    try:
        path = home.path / "weights" / f"{serving[0]}.safetensors"
        read_tensors(path.read_bytes(), str(path))
    except (CodaError, OSError):
        home.store.drop_weights()
        return [f"the personal weights {serving[0]} are gone or damaged; the bundle's own serve until the next round"]
    return []


def _clear_leftovers(home: DeviceHome) -> list[str]:
    """What killed processes left behind: of no use, and no loss."""
    going = home.store.unfinished()
    folders = list(home.rounds.iterdir()) if home.rounds.is_dir() else []
    stale = [folder for folder in folders if going is None or folder.name != going.id]
    stale += [path for path in home.path.rglob(".new-*") if path.is_file()]
    for path in stale:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    home.drop_superseded()
    return [f"removed {len(stale)} left-over working files"] if stale else []
