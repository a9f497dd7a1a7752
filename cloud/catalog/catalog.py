"""The catalog: devices, releases, reports and quotas in one database, SQLite or PostgreSQL, by SQLAlchemy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
from sqlalchemy import Connection, Row, and_, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from cloud.catalog.database import connect, explained
from cloud.catalog.evaluations import EvaluationLog
from cloud.catalog.nonces import NonceLog
from cloud.catalog.operators import OperatorLog
from cloud.catalog.records import Device, Release, RoundRow, columns_of, device_class
from cloud.catalog.rollouts import RolloutLog, Voice, hear
from cloud.catalog.tables import CONTRIBUTED, DEVICES, RELEASES, REPORTS
from device_runtime.errors import InputError, TrustError
from device_runtime.identity import device_id
from device_runtime.messages import BundleRef, Profile, RoundReport, from_json, to_json

_DAY_S = 86_400
_EVERYBODY = ""
_KEEP_DAYS = 7
"""Days for which quotas' counts are kept; only the current one counts."""


class Catalog:
    """One database, by SQLAlchemy URL. Safe to use from several threads and processes.

    Raises (from every method):
        StoreError: the database is down, full or damaged; nothing that was acknowledged is lost.
    """

    def __init__(self, url: str) -> None:
        self._engine = connect(url)
        self._nonces = NonceLog(self._begin)
        self.rollouts = RolloutLog(self._begin)
        self.operators = OperatorLog(self._begin)
        self.evaluations = EvaluationLog(self._begin)

    def close(self) -> None:
        self._engine.dispose()

    # -- devices ------------------------------------------------------------------------------------------------

    def enrol(self, public_key: str, capability: dict[str, object], now: float) -> str:
        """Add a device, or renew what is known of it. Returns its id.

        Raises:
            TrustError: the device has another key by now; this one was rotated away.
        """
        found = device_id(public_key)
        try:
            if not self.renew(found, public_key, capability, now):
                with self._begin() as db:
                    row = {"id": found, "public_key": public_key, "enrolled": now, "seen": now, "revoked": False}
                    db.execute(insert(DEVICES).values(**row, capability=capability))
        except IntegrityError:  # the same device, enrolled by another request in the same moment; or an old key
            if not self.renew(found, public_key, capability, now):
                raise TrustError("this key was replaced by a newer one of the same device") from None
        return found

    def renew(self, device: str, public_key: str, capability: dict[str, object], now: float) -> bool:
        """Renew what is known of a device. False if there is none with this id and this key."""
        known = (DEVICES.c.id == device) & (DEVICES.c.public_key == public_key)
        with self._begin() as db:
            done = db.execute(update(DEVICES).where(known).values(capability=capability, seen=now))
        return bool(done.rowcount)

    def device(self, device: str) -> Device | None:
        with self._begin() as db:
            row = db.execute(select(DEVICES).where(DEVICES.c.id == device)).first()
        return None if row is None else _device(row)

    def devices(self, after: str = "", limit: int = 1000) -> list[Device]:
        """A page of devices by id, those behind `after`."""
        page = select(DEVICES).where(DEVICES.c.id > after).order_by(DEVICES.c.id).limit(limit)
        with self._begin() as db:
            return [_device(row) for row in db.execute(page)]

    def count_devices(self, seen_since: float = 0.0) -> int:
        """seen_since: only those that have made a request since, seconds since 1970."""
        with self._begin() as db:
            counted = select(func.count()).select_from(DEVICES).where(DEVICES.c.seen >= seen_since)
            return int(db.execute(counted).scalar_one())

    def note_profile(self, device: str, profile: Profile) -> None:
        """Keep what a device tells of itself."""
        with self._begin() as db:
            told = msgspec.to_builtins(profile)
            db.execute(update(DEVICES).where(DEVICES.c.id == device).values(profile=told))

    def revoke(self, device: str) -> bool:
        """Refuse a device's requests from now on. False if there is none of that id."""
        with self._begin() as db:
            done = db.execute(update(DEVICES).where(DEVICES.c.id == device).values(revoked=True))
        return bool(done.rowcount)

    def rotate(self, device: str, old_key: str, new_key: str, now: float) -> bool:
        """Replace a device's key. True also if that has been done before; False if its key is neither of the two."""
        known = DEVICES.c.id == device
        changed = {"public_key": new_key, "previous_key": old_key, "rotated": now, "rotation_due": False}
        with self._begin() as db:
            if db.execute(update(DEVICES).where(known, DEVICES.c.public_key == old_key).values(**changed)).rowcount:
                return True
            again = and_(known, DEVICES.c.public_key == new_key, DEVICES.c.previous_key == old_key)
            return db.execute(select(DEVICES.c.id).where(again)).first() is not None

    def ask_for_rotation(self, device: str | None) -> int:
        """Have a device (None: every one) make a new key at its next round. Returns how many are asked."""
        which = update(DEVICES).where(DEVICES.c.revoked.is_(False))
        if device is not None:
            which = which.where(DEVICES.c.id == device)
        with self._begin() as db:
            return int(db.execute(which.values(rotation_due=True)).rowcount)

    def use_nonce(self, device: str, nonce: str, now: float, window_s: float, seen: float = 0.0) -> bool:
        """False if this device's nonce has been used within the window; older ones are forgotten.

        seen: `Device.seen`, as the caller knows it.
        """
        return self._nonces.use(device, nonce, now, window_s, seen)

    # -- releases -----------------------------------------------------------------------------------------------

    def release(self, name: str, ref: BundleRef, now: float, staged: bool = False) -> None:
        """Take in a bundle. Unless it is staged for a rollout, it is the current one then.

        Raises:
            InputError: a bundle of this version is out already; a release never changes.
        """
        row = {"version": ref.version, "name": name, "ref": to_json(ref), "published": now, "staged": staged}
        try:
            with self._begin() as db:
                db.execute(insert(RELEASES).values(**row))
        except IntegrityError:
            raise InputError(f"a bundle of version {ref.version} is out already; export it as a later one") from None

    def releases(self) -> list[Release]:
        """Newest first; the first that is not staged is the current one."""
        with self._begin() as db:
            rows = db.execute(select(RELEASES).order_by(RELEASES.c.version.desc())).all()
        return [
            Release(row.name, from_json(row.ref, BundleRef, "a release"), row.published, row.staged) for row in rows
        ]

    def current(self) -> BundleRef | None:
        """What devices get that no rollout means."""
        return next((found.ref for found in self.releases() if not found.staged), None)

    def bundle(self, version: int) -> BundleRef | None:
        with self._begin() as db:
            row = db.execute(select(RELEASES.c.ref).where(RELEASES.c.version == version)).first()
        return None if row is None else from_json(row.ref, BundleRef, "a release")

    # -- reports ------------------------------------------------------------------------------------------------

    def report(self, device: str, report: RoundReport, now: float, voice: Voice | None = None) -> RoundRow | None:
        """Store a round's report, and what it says of a rollout. None if the device has reported this round before; the
        first one stays, and counts."""
        row = {"device": device, "round": report.round, "bundle": report.bundle, "report": to_json(report)}
        known = self.device(device)
        columns = columns_of(report, known.device_class if known else device_class({}))
        line = RoundRow(received=now, device=device, bundle=report.bundle, **columns)
        try:
            with self._begin() as db:
                db.execute(insert(REPORTS).values(**row, received=now, **columns))
                if voice is not None:
                    hear(db, voice)
        except IntegrityError:
            return None
        return line

    def reports_of(self, bundle: int, before: float, limit: int) -> list[RoundReport]:
        """The newest reports of rounds with a bundle that came before a moment, newest first."""
        which = (REPORTS.c.bundle == bundle) & (REPORTS.c.received < before)
        newest = select(REPORTS.c.report).where(which).order_by(REPORTS.c.received.desc()).limit(limit)
        with self._begin() as db:
            return [from_json(row.report, RoundReport, "a report") for row in db.execute(newest)]

    def served_auc(self, device: str, bundle: int) -> float | None:
        """By its judge, of what served after the device's last round with a bundle that had both classes held out."""
        which = (REPORTS.c.device == device) & (REPORTS.c.bundle == bundle) & REPORTS.c.auc_after.is_not(None)
        columns = select(REPORTS.c.outcome, REPORTS.c.auc_before, REPORTS.c.auc_after)
        with self._begin() as db:
            row = db.execute(columns.where(which).order_by(REPORTS.c.received.desc()).limit(1)).first()
        if row is None:
            return None
        found: float | None = row.auc_after if row.outcome == "activated" else row.auc_before
        return found

    def reports(self) -> list[tuple[str, RoundReport]]:
        """(device, report), in the order of their arrival."""
        with self._begin() as db:
            rows = db.execute(select(REPORTS).order_by(REPORTS.c.received, REPORTS.c.device, REPORTS.c.round)).all()
        return [(row.device, from_json(row.report, RoundReport, "a report")) for row in rows]

    def rounds(self, limit: int) -> Sequence[RoundRow]:
        """The newest reports in a line each, newest first."""
        columns = [REPORTS.c[name] for name in RoundRow.__dataclass_fields__]
        with self._begin() as db:
            rows = db.execute(select(*columns).order_by(REPORTS.c.received.desc()).limit(limit)).all()
        return [RoundRow(*row) for row in rows]

    # -- quotas -------------------------------------------------------------------------------------------------

    def take_quota(self, device: str, samples: int, now: float, per_device: int, total: int) -> str:
        """Count samples that a device hands in towards today's quotas, of its own and of all.

        Returns:
            "" if they are within both, and counted; else "device" or "total", whichever is used up: nothing is counted.
        """
        day = int(now // _DAY_S)
        with self._begin() as db:
            made = sqlite.insert if db.dialect.name == "sqlite" else postgresql.insert
            # all in the same order, the total first: its row is the lock that keeps two transactions from deadlock
            for name, most in ((_EVERYBODY, total), (device, per_device)):
                row = {"day": day, "device": name, "samples": samples}
                grown = CONTRIBUTED.c.samples + samples
                statement = (
                    made(CONTRIBUTED)
                    .values(**row)
                    .on_conflict_do_update(index_elements=["day", "device"], set_={"samples": grown})
                    .returning(CONTRIBUTED.c.samples)
                )
                if db.execute(statement).scalar_one() > most:
                    db.rollback()
                    return "device" if name else "total"
            db.execute(delete(CONTRIBUTED).where(CONTRIBUTED.c.day < day - _KEEP_DAYS))
        return ""

    def return_quota(self, device: str, samples: int, now: float) -> None:
        """Give back what was counted for samples that could not be kept after all."""
        which = (CONTRIBUTED.c.day == int(now // _DAY_S)) & CONTRIBUTED.c.device.in_((_EVERYBODY, device))
        with self._begin() as db:
            db.execute(update(CONTRIBUTED).where(which).values(samples=CONTRIBUTED.c.samples - samples))

    def contributors_today(self, now: float) -> tuple[int, int, int]:
        """(devices that handed in samples today, samples of all, samples of the busiest)."""
        today = CONTRIBUTED.c.day == int(now // _DAY_S)
        each = CONTRIBUTED.c.device != _EVERYBODY
        counted = select(func.count(), func.sum(CONTRIBUTED.c.samples), func.max(CONTRIBUTED.c.samples))
        with self._begin() as db:
            devices, samples, most = db.execute(counted.where(today, each)).one()
        return int(devices), int(samples or 0), int(most or 0)

    def forget_reports(self, before: float) -> int:
        """Delete reports that were received before a time, in seconds since 1970. Returns how many. What rollouts have
        made of them stays."""
        with self._begin() as db:
            return int(db.execute(delete(REPORTS).where(REPORTS.c.received < before)).rowcount)

    @contextmanager
    def _begin(self) -> Iterator[Connection]:
        with explained(), self._engine.begin() as connection:
            yield connection


def _device(row: Row[tuple[object, ...]]) -> Device:
    return Device(
        row.id,
        row.public_key,
        row.revoked,
        row.previous_key,
        row.rotation_due,
        row.enrolled,
        row.seen,
        device_class(row.capability),
        str(row.capability.get("system", "")).partition(" ")[0].lower(),
        msgspec.convert(row.profile or {}, Profile),
    )
