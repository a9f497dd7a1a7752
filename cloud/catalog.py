"""What the server knows: devices, releases, reports, and which requests it has seen. SQLAlchemy over any database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    delete,
    event,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from device_runtime.errors import InputError, StoreError
from device_runtime.identity import device_id
from device_runtime.messages import BundleRef, RoundReport, from_json, to_json

_TABLES = MetaData()
_DEVICES = Table(
    "devices",
    _TABLES,
    Column("id", String(32), primary_key=True),
    Column("public_key", String(64), nullable=False),
    Column("capability", JSON, nullable=False),
    Column("enrolled", Float, nullable=False),
    Column("seen", Float, nullable=False),
    Column("revoked", Boolean, nullable=False, default=False),
)
_RELEASES = Table(
    "releases",
    _TABLES,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("name", String(200), nullable=False),
    Column("ref", LargeBinary, nullable=False),
    Column("published", Float, nullable=False),
)
_REPORTS = Table(
    "reports",
    _TABLES,
    Column("device", String(32), primary_key=True),
    Column("round", String(64), primary_key=True),
    Column("bundle", Integer, nullable=False),
    Column("report", LargeBinary, nullable=False),
    Column("received", Float, nullable=False),
)
_NONCES = Table(
    "nonces",
    _TABLES,
    Column("device", String(32), primary_key=True),
    Column("nonce", String(16), primary_key=True),
    Column("at", Float, nullable=False),
    Index("nonces_at", "at"),
)


@dataclass(frozen=True)
class Device:
    """id follows from the public key. revoked: its requests are refused."""

    id: str
    public_key: str
    revoked: bool


@dataclass(frozen=True)
class Release:
    """published: seconds since 1970."""

    name: str
    ref: BundleRef
    published: float


class Catalog:
    """One database, by SQLAlchemy URL. Safe to use from several threads.

    Raises (from every method):
        StoreError: the database is down, full or damaged; nothing that was acknowledged is lost.
    """

    def __init__(self, url: str) -> None:
        with _explained():
            self._engine = create_engine(url)
            if self._engine.dialect.name == "sqlite":
                event.listen(self._engine, "connect", _tune_sqlite)
            _TABLES.create_all(self._engine)

    def close(self) -> None:
        self._engine.dispose()

    # -- devices ------------------------------------------------------------------------------------------------

    def enrol(self, public_key: str, capability: dict[str, object], now: float) -> str:
        """Add a device, or renew what is known of it. Returns its id."""
        found = device_id(public_key)
        known = {"capability": capability, "seen": now}
        renewal = update(_DEVICES).where(_DEVICES.c.id == found).values(**known)
        try:
            with self._begin() as db:
                if not db.execute(renewal).rowcount:
                    row = {"id": found, "public_key": public_key, "enrolled": now, "revoked": False}
                    db.execute(insert(_DEVICES).values(**row, **known))
        except IntegrityError:  # the same device, enrolled by another request in the same moment
            with self._begin() as db:
                db.execute(renewal)
        return found

    def device(self, device: str) -> Device | None:
        with self._begin() as db:
            row = db.execute(select(_DEVICES).where(_DEVICES.c.id == device)).first()
        return None if row is None else Device(row.id, row.public_key, row.revoked)

    def revoke(self, device: str) -> None:
        with self._begin() as db:
            db.execute(update(_DEVICES).where(_DEVICES.c.id == device).values(revoked=True))

    def use_nonce(self, device: str, nonce: str, now: float, window_s: float) -> bool:
        """False if this device's nonce has been used within the window; older ones are forgotten."""
        try:
            with self._begin() as db:
                db.execute(delete(_NONCES).where(_NONCES.c.at < now - window_s))
                db.execute(insert(_NONCES).values(device=device, nonce=nonce, at=now))
                db.execute(update(_DEVICES).where(_DEVICES.c.id == device).values(seen=now))
        except IntegrityError:
            return False
        return True

    # -- releases -----------------------------------------------------------------------------------------------

    def release(self, name: str, ref: BundleRef, now: float) -> None:
        """Make a bundle the current one.

        Raises:
            InputError: a bundle of this version is out already; a release never changes.
        """
        row = {"version": ref.version, "name": name, "ref": to_json(ref), "published": now}
        try:
            with self._begin() as db:
                db.execute(insert(_RELEASES).values(**row))
        except IntegrityError:
            raise InputError(f"a bundle of version {ref.version} is out already; export it as a later one") from None

    def releases(self) -> list[Release]:
        """Newest first; the first is the current one."""
        with self._begin() as db:
            rows = db.execute(select(_RELEASES).order_by(_RELEASES.c.version.desc())).all()
        return [Release(row.name, from_json(row.ref, BundleRef, "a release"), row.published) for row in rows]

    def current(self) -> BundleRef | None:
        found = self.releases()
        return found[0].ref if found else None

    # -- reports ------------------------------------------------------------------------------------------------

    def report(self, device: str, report: RoundReport, now: float) -> bool:
        """Store a round's report. False if the device has reported this round before; the first one stays."""
        row = {"device": device, "round": report.round, "bundle": report.bundle, "report": to_json(report)}
        try:
            with self._begin() as db:
                db.execute(insert(_REPORTS).values(**row, received=now))
        except IntegrityError:
            return False
        return True

    def reports(self) -> list[tuple[str, RoundReport]]:
        """(device, report), in the order of their arrival."""
        with self._begin() as db:
            rows = db.execute(select(_REPORTS).order_by(_REPORTS.c.received, _REPORTS.c.device, _REPORTS.c.round)).all()
        return [(row.device, from_json(row.report, RoundReport, "a report")) for row in rows]

    @contextmanager
    def _begin(self) -> Iterator[Connection]:
        with _explained(), self._engine.begin() as connection:
            yield connection


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except IntegrityError:
        raise
    except ImportError as error:
        raise StoreError(f"the catalog's database needs a driver that is not installed: {error.name}") from None
    except (SQLAlchemyError, OSError) as error:
        # drivers quote the statement after the first line
        cause = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise StoreError(f"the catalog's database cannot be used: {cause}; check that it runs and has space") from None


def _tune_sqlite(connection: object, _: object) -> None:
    cursor = connection.cursor()  # type: ignore[attr-defined]
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "busy_timeout = 10000", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
