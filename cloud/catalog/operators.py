"""Operators: who may look at releases, who may act on them, and their sessions in a browser.

Tokens and cookies are random and long, so their SHA-256 is as good as a slow hash of a password would be; the catalog
keeps nothing that could be used in their place.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager

from sqlalchemy import Connection, delete, insert, select, update

from cloud.catalog.records import Operator
from cloud.catalog.tables import OPERATORS, SESSIONS
from device_runtime.errors import InputError

ROLES = ("viewer", "releaser")
SESSION_S = 12 * 3600.0


class OperatorLog:
    """begin: opens a transaction on the catalog's database."""

    def __init__(self, begin: Callable[[], AbstractContextManager[Connection]]) -> None:
        self._begin = begin

    def add(self, name: str, role: str, now: float) -> str:
        """Add an operator, or give one a new token, which ends its sessions. Returns the token: it is told only here.

        Raises:
            InputError: not a name or a role.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,99}", name) or name == "gate":
            raise InputError(f"{name[:100]!r} is not an operator's name: letters, digits and ._@- are; 'gate' is taken")
        if role not in ROLES:
            raise InputError(f"there is no role {role!r}; there are {' and '.join(ROLES)}")
        token = secrets.token_urlsafe(24)
        values = {"role": role, "secret": _hash(token), "added": now}
        with self._begin() as db:
            if not db.execute(update(OPERATORS).where(OPERATORS.c.name == name).values(**values)).rowcount:
                db.execute(insert(OPERATORS).values(name=name, **values))
            db.execute(delete(SESSIONS).where(SESSIONS.c.operator == name))
        return token

    def remove(self, name: str) -> bool:
        """False if there is none of that name."""
        with self._begin() as db:
            db.execute(delete(SESSIONS).where(SESSIONS.c.operator == name))
            return bool(db.execute(delete(OPERATORS).where(OPERATORS.c.name == name)).rowcount)

    def all(self) -> list[Operator]:
        with self._begin() as db:
            return [Operator(row.name, row.role) for row in db.execute(select(OPERATORS).order_by(OPERATORS.c.name))]

    def by_token(self, token: str) -> Operator | None:
        with self._begin() as db:
            row = db.execute(select(OPERATORS).where(OPERATORS.c.secret == _hash(token))).first()
        return None if row is None else Operator(row.name, row.role)

    def log_in(self, token: str, now: float) -> str | None:
        """A new session's cookie; None: no such token. Sessions that have run out are forgotten."""
        operator = self.by_token(token)
        if operator is None:
            return None
        cookie = secrets.token_urlsafe(24)
        with self._begin() as db:
            db.execute(delete(SESSIONS).where(SESSIONS.c.until < now))
            row = {"secret": _hash(cookie), "operator": operator.name, "until": now + SESSION_S}
            db.execute(insert(SESSIONS).values(**row))
        return cookie

    def by_cookie(self, cookie: str, now: float) -> Operator | None:
        whose = SESSIONS.join(OPERATORS, SESSIONS.c.operator == OPERATORS.c.name)
        which = (SESSIONS.c.secret == _hash(cookie)) & (SESSIONS.c.until >= now)
        with self._begin() as db:
            row = db.execute(select(OPERATORS.c.name, OPERATORS.c.role).select_from(whose).where(which)).first()
        return None if row is None else Operator(row.name, row.role)

    def log_out(self, cookie: str) -> None:
        with self._begin() as db:
            db.execute(delete(SESSIONS).where(SESSIONS.c.secret == _hash(cookie)))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
