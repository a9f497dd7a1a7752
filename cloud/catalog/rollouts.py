"""Rollouts, pins, cohorts, evidence and the audit log, in the catalog's database.

What changes a rollout runs alone (`_alone`): it reads, decides and writes before anybody else does, so that of two
workers whose gates say the same at once one acts, and the other finds it done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from sqlalchemy import Connection, Row, delete, func, insert, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from cloud.catalog.records import AuditLine
from cloud.catalog.tables import AUDIT, COHORTS, DEVICES, EVIDENCE, METADATA, PINS, RELEASES, ROLLOUTS, WATCHED
from cloud.rollout.course import COSTS, Course, Judgement, Policy
from cloud.rollout.evidence import Reports, Watched
from cloud.rollout.gates import Gate
from cloud.rollout.ladder import Rollout, Rung
from cloud.rollout.policy import Rule
from device_runtime.errors import InputError

_LOCK = 0x436F4442
"""Any number, the same for every server of a database; not that of migrations."""
_ARMS = ("treatment", "control", "reference")
_REFERS = (EVIDENCE.c.arm == "reference") & EVIDENCE.c.counted.is_(True)
_COLUMNS = {"rule": Rule, "ladder": tuple[Rung, ...], "named": frozenset[str], "gate": Gate, "bounds": dict[str, float]}


@dataclass(frozen=True)
class Voice:
    """What a report says of a rollout. arm: "treatment", "control" or "reference". late: it is only counted. quality:
    None if not told. costs: some of `course.COSTS`."""

    rollout: str
    device: str
    round: str
    arm: str
    received: float
    late: bool
    failed: bool
    quality: float | None
    costs: dict[str, float]


@dataclass(frozen=True)
class Heard:
    """Devices of one group: that count, that sent only late reports; reports that came late, and after the first."""

    devices: int = 0
    late_only: int = 0
    late: int = 0
    further: int = 0


class RolloutLog:
    """begin: opens a transaction on the catalog's database."""

    def __init__(self, begin: Callable[[], AbstractContextManager[Connection]]) -> None:
        self._begin = begin

    # -- courses ------------------------------------------------------------------------------------------------

    def policy(self, base: int | None = None) -> Policy:
        """What holds now. base: of whoever no rule means; None: the current release."""
        with self._begin() as db:
            return _policy(db, base)

    def courses(self) -> list[Course]:
        """Newest first, the retired ones too; without their logs."""
        with self._begin() as db:
            return [_course(row) for row in db.execute(select(ROLLOUTS).order_by(ROLLOUTS.c.created.desc()))]

    def course(self, name: str) -> Course | None:
        with self._begin() as db:
            row = db.execute(select(ROLLOUTS).where(ROLLOUTS.c.name == name)).first()
        return None if row is None else _course(row)

    def add(self, plan: Callable[[Policy], tuple[Course, list[str]]], line: AuditLine) -> Course:
        """Add what `plan` makes of the present policy; the courses that it names are retired.

        Raises:
            InputError: the plan does, or there was a course of this name.
        """
        with self._begin() as db:
            _alone(db)
            course, replaced = plan(_policy(db, None))
            if db.execute(select(ROLLOUTS.c.name).where(ROLLOUTS.c.name == course.name)).first():
                raise InputError(f"there is a release {course.name!r} already; names are not used twice")
            db.execute(insert(ROLLOUTS).values(name=course.name, **_values(course)))
            db.execute(update(ROLLOUTS).where(ROLLOUTS.c.name.in_(replaced)).values(retired=True))
            _log(db, line)
        return course

    def change(self, name: str, act: Callable[[Course], tuple[Course, AuditLine] | None]) -> Course | None:
        """Change a course by what it is at this moment. act: None leaves it as it is. Returns the changed one.

        Raises:
            InputError: there is none of this name, or `act` refuses.
        """
        with self._begin() as db:
            _alone(db)
            row = db.execute(select(ROLLOUTS).where(ROLLOUTS.c.name == name)).first()
            if row is None:
                raise InputError(f"there is no release {name!r}")
            before = _course(row)
            made = act(before)
            if made is None:
                return None
            course, line = made
            db.execute(update(ROLLOUTS).where(ROLLOUTS.c.name == name).values(**_values(course)))
            if course.universal and course.rollout.state != before.rollout.state:
                staged = course.rollout.state != "complete"
                which = RELEASES.c.version == course.rollout.bundle
                db.execute(update(RELEASES).where(which).values(staged=staged))
            _log(db, line)
        return course

    def retire(self, names: Iterable[str]) -> None:
        with self._begin() as db:
            db.execute(update(ROLLOUTS).where(ROLLOUTS.c.name.in_(list(names))).values(retired=True))

    def note_judgement(self, name: str, judgement: Judgement, at: float) -> None:
        with self._begin() as db:
            values = {"finding": msgspec.json.encode(judgement), "judged": at}
            db.execute(update(ROLLOUTS).where(ROLLOUTS.c.name == name).values(**values))

    def audit(self, subject: str = "", limit: int = 1000) -> list[AuditLine]:
        """Newest first. subject: only these lines."""
        lines = select(AUDIT).order_by(AUDIT.c.id.desc()).limit(limit)
        if subject:
            lines = lines.where(AUDIT.c.subject == subject)
        with self._begin() as db:
            return [AuditLine(r.at, r.who, r.subject, r.action, r.rung, r.state, r.why) for r in db.execute(lines)]

    # -- single devices -----------------------------------------------------------------------------------------

    def pin(self, device: str, bundle: int, line: AuditLine) -> None:
        """Give a device a bundle to keep; 0 takes it away."""
        with self._begin() as db:
            _alone(db)
            db.execute(delete(PINS).where(PINS.c.device == device))
            if bundle:
                db.execute(insert(PINS).values(device=device, bundle=bundle))
            _log(db, line)

    def cohorts_of(self, device: str) -> frozenset[str]:
        with self._begin() as db:
            return frozenset(db.execute(select(COHORTS.c.cohort).where(COHORTS.c.device == device)).scalars())

    def has_cohorts(self) -> bool:
        """Whether the operator has put any device into a cohort."""
        with self._begin() as db:
            return db.execute(select(COHORTS.c.device).limit(1)).first() is not None

    def set_cohort(self, devices: Sequence[str], cohort: str, member: bool) -> None:
        with self._begin() as db:
            _alone(db)
            db.execute(delete(COHORTS).where(COHORTS.c.cohort == cohort, COHORTS.c.device.in_(devices)))
            if member:
                db.execute(insert(COHORTS), [{"device": device, "cohort": cohort} for device in devices])

    def cohorts(self) -> dict[str, int]:
        """Cohort -> devices that the operator put there."""
        counted = select(COHORTS.c.cohort, func.count()).group_by(COHORTS.c.cohort).order_by(COHORTS.c.cohort)
        with self._begin() as db:
            return {name: int(count) for name, count in db.execute(counted)}

    # -- evidence -----------------------------------------------------------------------------------------------

    def evidence(self, name: str) -> tuple[Reports, Reports, Reports]:
        """(treatment, control, reference): what counts, in the order of its arrival."""
        columns = select(EVIDENCE.c.failed, EVIDENCE.c.quality, *(EVIDENCE.c[cost] for cost in COSTS))
        order = (EVIDENCE.c.received, EVIDENCE.c.device)
        found = []
        with self._begin() as db:
            for arm in _ARMS:
                which = (EVIDENCE.c.rollout == name) & (EVIDENCE.c.arm == arm) & EVIDENCE.c.counted.is_(True)
                found.append(_reports(db.execute(columns.where(which).order_by(*order)).all()))
        return found[0], found[1], found[2]

    def watch(self, rollout: str, device: str, arm: str, now: float) -> None:
        """Begin to watch a device of a group; nothing if it is watched already."""
        with self._begin() as db:
            row = {"rollout": rollout, "device": device, "arm": arm, "since": now}
            db.execute(_inserting(db)(WATCHED).values(**row).on_conflict_do_nothing())

    def watched(self, name: str, now: float, gate: Gate) -> tuple[Watched, Watched]:
        """Of treatment and control: devices whose window is over, and whether they were heard of again. What is found
        at its end stays, whatever comes later."""
        heard = select(DEVICES.c.seen).where(DEVICES.c.id == WATCHED.c.device).scalar_subquery()
        over = (WATCHED.c.rollout == name) & WATCHED.c.silent.is_(None) & (WATCHED.c.since <= now - gate.silence_s)
        order = (WATCHED.c.since, WATCHED.c.device)
        found = []
        with self._begin() as db:
            db.execute(update(WATCHED).where(over).values(silent=heard < WATCHED.c.since + gate.silence_from_s))
            for arm in ("treatment", "control"):
                which = (WATCHED.c.rollout == name) & (WATCHED.c.arm == arm) & WATCHED.c.silent.is_not(None)
                rows = db.execute(select(WATCHED.c.silent).where(which).order_by(*order)).scalars().all()
                found.append(Watched(np.array(rows, np.bool_)))
        return found[0], found[1]

    def heard(self, name: str) -> dict[str, Heard]:
        """By group: how many spoke, and what was not counted."""
        counted = func.sum(text("CASE WHEN counted THEN 1 ELSE 0 END"))
        sums = select(EVIDENCE.c.arm, func.count(), counted, func.sum(EVIDENCE.c.late), func.sum(EVIDENCE.c.further))
        with self._begin() as db:
            rows = db.execute(sums.where(EVIDENCE.c.rollout == name).group_by(EVIDENCE.c.arm)).all()
        found = {arm: Heard(int(c), int(n) - int(c), int(late), int(more)) for arm, n, c, late, more in rows}
        return {arm: found.get(arm, Heard()) for arm in _ARMS}

    # -- the publisher's documents ------------------------------------------------------------------------------

    def documents(self, role: str) -> dict[int, bytes]:
        """Version -> signed document, ascending."""
        rows = select(METADATA.c.version, METADATA.c.data).where(METADATA.c.role == role).order_by(METADATA.c.version)
        with self._begin() as db:
            return {int(version): data for version, data in db.execute(rows)}

    def newest_documents(self) -> dict[str, tuple[int, bytes]]:
        """Role -> (version, bytes) of the newest."""
        newest = (
            select(METADATA.c.role, func.max(METADATA.c.version).label("version")).group_by(METADATA.c.role).subquery()
        )
        joined = METADATA.join(newest, (METADATA.c.role == newest.c.role) & (METADATA.c.version == newest.c.version))
        with self._begin() as db:
            rows = db.execute(select(METADATA.c.role, METADATA.c.version, METADATA.c.data).select_from(joined)).all()
        return {role: (int(version), data) for role, version, data in rows}

    def document(self, role: str, version: int) -> bytes | None:
        which = (METADATA.c.role == role) & (METADATA.c.version == version)
        with self._begin() as db:
            found: bytes | None = db.execute(select(METADATA.c.data).where(which)).scalar()
        return found

    def add_document(self, role: str, version: int, data: bytes, now: float) -> None:
        with self._begin() as db:
            db.execute(insert(METADATA).values(role=role, version=version, data=data, added=now))


def hear(db: Connection, voice: Voice) -> None:
    """Let a device speak once about a rollout: its first report in time counts, others are only counted. One of the
    reference that has become the control's speaks once more, as that; its quality is counted already."""
    made = _inserting(db)
    told = {name: voice.costs.get(name) for name in COSTS}
    said = {"round": voice.round, "arm": voice.arm, "received": voice.received, "failed": voice.failed}
    said |= {"quality": voice.quality, **told}
    row = {"rollout": voice.rollout, "device": voice.device, "counted": not voice.late, "late": 0, "further": 0}
    first = made(EVIDENCE).values(**row, **said).on_conflict_do_nothing().returning(EVIDENCE.c.device)
    mine = (EVIDENCE.c.rollout == voice.rollout) & (EVIDENCE.c.device == voice.device)
    new = db.execute(first).first() is not None
    if voice.late:
        db.execute(update(EVIDENCE).where(mine).values(late=EVIDENCE.c.late + 1))
    elif not new:
        if voice.arm == "control":
            kept = func.coalesce(EVIDENCE.c.quality, voice.quality)
            if db.execute(update(EVIDENCE).where(mine, _REFERS).values(**said | {"quality": kept})).rowcount:
                return
        unheard = mine & EVIDENCE.c.counted.is_(False)
        if not db.execute(update(EVIDENCE).where(unheard).values(counted=True, **said)).rowcount:
            db.execute(update(EVIDENCE).where(mine).values(further=EVIDENCE.c.further + 1))


def _inserting(db: Connection) -> Any:
    """The dialect's `insert`, which can leave what is there as it is."""
    return sqlite.insert if db.dialect.name == "sqlite" else postgresql.insert


def _alone(db: Connection) -> None:
    """Until the transaction ends, no other one gets past this."""
    if db.dialect.name == "postgresql":
        db.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK})
    else:  # any write takes SQLite's lock
        db.execute(update(ROLLOUTS).where(ROLLOUTS.c.name == "").values(retired=False))


def _policy(db: Connection, base: int | None) -> Policy:
    if base is None:
        newest = select(func.max(RELEASES.c.version)).where(RELEASES.c.staged.is_(False))
        base = int(db.execute(newest).scalar() or 0)
    rows = db.execute(select(ROLLOUTS).where(ROLLOUTS.c.retired.is_(False))).all()
    pins = {device: int(bundle) for device, bundle in db.execute(select(PINS.c.device, PINS.c.bundle))}
    return Policy(courses={row.name: _course(row) for row in rows}, pins=pins, base=base)


def _log(db: Connection, line: AuditLine) -> None:
    db.execute(insert(AUDIT).values(**{name: getattr(line, name) for name in AuditLine.__dataclass_fields__}))


def _values(course: Course) -> dict[str, Any]:
    rollout = course.rollout
    plain = {name: getattr(rollout, name) for name in ("bundle", "previous", "salt", "rung", "since", "state")}
    plain |= {name: getattr(course, name) for name in ("automatic", "created", "begun", "judged", "retired")}
    held = {"rule": course.rule, "ladder": rollout.ladder, "named": rollout.named}
    held |= {"gate": course.gate, "bounds": course.bounds}
    packed = {name: msgspec.json.encode(value, order="deterministic") for name, value in held.items()}
    return plain | packed | {"finding": None if course.judgement is None else msgspec.json.encode(course.judgement)}


def _course(row: Row[Any]) -> Course:
    held: dict[str, Any] = {name: msgspec.json.decode(getattr(row, name), type=kind) for name, kind in _COLUMNS.items()}
    return Course(
        rollout=Rollout(
            name=row.name,
            bundle=row.bundle,
            previous=row.previous,
            salt=row.salt,
            ladder=held["ladder"],
            named=held["named"],
            rung=row.rung,
            since=row.since,
            state=row.state,
        ),
        rule=held["rule"],
        gate=held["gate"],
        automatic=row.automatic,
        created=row.created,
        begun=row.begun,
        bounds=held["bounds"],
        judgement=None if row.finding is None else msgspec.json.decode(row.finding, type=Judgement),
        judged=row.judged,
        retired=row.retired,
    )


def _reports(rows: Sequence[Row[Any]]) -> Reports:
    def column(name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        values = [getattr(row, name) for row in rows]
        return np.array([np.nan if value is None else value for value in values], np.float64)

    failed = np.array([row.failed for row in rows], np.bool_)
    return Reports(failed, column("quality"), {name: column(name) for name in COSTS})
