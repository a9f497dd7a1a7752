"""Nonces: a signed request counts once. Written in groups, because each commit waits for the disk.

Whoever comes while a commit is under way waits for the next one, which takes in all who wait. So the disk is asked once
for many requests when many come, and at once when one comes; and what has been answered is durable in both cases.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from sqlalchemy import Connection, delete, update
from sqlalchemy.dialects import postgresql, sqlite

from cloud.catalog.tables import DEVICES, NONCES

_FORGET_EVERY_S = 5.0
_SEEN_EVERY_S = 60.0
_ADD = {
    name: made(NONCES).on_conflict_do_nothing().returning(NONCES.c.device, NONCES.c.nonce)
    for name, made in (("sqlite", sqlite.insert), ("postgresql", postgresql.insert))
}
"""By dialect; made once, so that it is compiled once."""


@dataclass
class _Use:
    device: str
    nonce: str
    at: float
    window_s: float
    seen: float
    done: bool = False
    fresh: bool = False


class NonceLog:
    """begin: opens a transaction on the catalog's database."""

    def __init__(self, begin: Callable[[], AbstractContextManager[Connection]]) -> None:
        self._begin = begin
        self._adding, self._turn = threading.Lock(), threading.Lock()
        self._waiting: list[_Use] = []
        self._forgotten = 0.0

    def use(self, device: str, nonce: str, now: float, window_s: float, seen: float) -> bool:
        """False if this device's nonce has been used within the window; older ones are forgotten.

        seen: what the catalog has of the device; renewed by the minute, since that is another write.

        Raises:
            StoreError: the database refused; the nonce is not used up.
        """
        mine = _Use(device, nonce, now, window_s, seen)
        with self._adding:
            self._waiting.append(mine)
        with self._turn:
            if not mine.done:
                with self._adding:
                    group, self._waiting = self._waiting, []
                try:
                    self._write(group)
                except BaseException:
                    # the others write theirs themselves: each gets its own error, or luck with the next try
                    with self._adding:
                        self._waiting += [use for use in group if use is not mine]
                    raise
        return mine.fresh

    def _write(self, group: list[_Use]) -> None:
        now, window_s = max(use.at for use in group), max(use.window_s for use in group)
        rows = [{"device": use.device, "nonce": use.nonce, "at": use.at} for use in group]
        with self._begin() as db:
            if abs(now - self._forgotten) >= _FORGET_EVERY_S:
                db.execute(delete(NONCES).where(NONCES.c.at < now - window_s))
            added = {(row.device, row.nonce) for row in db.execute(_ADD[db.dialect.name], rows)}
            if due := {use.device for use in group if use.seen < now - _SEEN_EVERY_S}:
                db.execute(update(DEVICES).where(DEVICES.c.id.in_(due)).values(seen=now))
        self._forgotten = now
        for use in group:
            if (use.device, use.nonce) in added:
                added.remove((use.device, use.nonce))
                use.fresh = True
            use.done = True
