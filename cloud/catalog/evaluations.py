"""Federated evaluations in the catalog: what is asked of devices, and what they answered, each once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, Row, func, insert, select
from sqlalchemy.exc import IntegrityError

from cloud.catalog.tables import EVALUATED, EVALUATIONS
from cloud.rollout.policy import Rule
from device_runtime.errors import InputError
from device_runtime.messages import Metrics

Period = Literal["judged", "validation"]


@dataclass(frozen=True)
class Evaluation:
    """rule: whom it means. configurations, period: as in `messages.Task`, but of all devices together. most: devices
    that answer, at most. created, until: seconds since 1970."""

    name: str
    rule: Rule
    configurations: dict[str, dict[str, float]]
    most: int
    created: float
    until: float
    period: Period = "judged"


class EvaluationLog:
    """begin: opens a transaction on the catalog's database."""

    def __init__(self, begin: Callable[[], AbstractContextManager[Connection]]) -> None:
        self._begin = begin

    def add(self, evaluation: Evaluation) -> None:
        """Raises: InputError: there was one of this name."""
        row = {
            "name": evaluation.name,
            "rule": msgspec.json.encode(evaluation.rule, order="deterministic"),
            "configurations": msgspec.json.encode(evaluation.configurations),
            "most": evaluation.most,
            "created": evaluation.created,
            "until": evaluation.until,
            "period": evaluation.period,
        }
        try:
            with self._begin() as db:
                db.execute(insert(EVALUATIONS).values(**row))
        except IntegrityError:
            raise InputError(f"there is an evaluation {evaluation.name!r} already; names are not used twice") from None

    def all(self) -> list[Evaluation]:
        """Newest first."""
        with self._begin() as db:
            rows = db.execute(select(EVALUATIONS).order_by(EVALUATIONS.c.created.desc())).all()
        return [_evaluation(row) for row in rows]

    def open(self, now: float) -> list[Evaluation]:
        """That have not ended, and that fewer devices than wanted have answered; oldest first."""
        answers = select(func.count()).where(EVALUATED.c.evaluation == EVALUATIONS.c.name).scalar_subquery()
        which = select(EVALUATIONS).where(EVALUATIONS.c.until > now, answers < EVALUATIONS.c.most)
        with self._begin() as db:
            return [_evaluation(row) for row in db.execute(which.order_by(EVALUATIONS.c.created))]

    def answered(self, device: str) -> set[str]:
        """The evaluations that a device has answered."""
        with self._begin() as db:
            return set(db.execute(select(EVALUATED.c.evaluation).where(EVALUATED.c.device == device)).scalars())

    def answer(self, device: str, metrics: Metrics, now: float) -> bool:
        """Keep a device's answer. False if it has answered before; the first one stays."""
        row = {"evaluation": metrics.task, "device": device, "metrics": msgspec.json.encode(metrics), "received": now}
        try:
            with self._begin() as db:
                db.execute(insert(EVALUATED).values(**row))
        except IntegrityError:
            return False
        return True

    def answers(self, name: str) -> list[Metrics]:
        """In the order of their arrival."""
        which = select(EVALUATED.c.metrics).where(EVALUATED.c.evaluation == name)
        with self._begin() as db:
            rows = db.execute(which.order_by(EVALUATED.c.received, EVALUATED.c.device)).scalars().all()
        return [msgspec.json.decode(row, type=Metrics) for row in rows]


def _evaluation(row: Row[Any]) -> Evaluation:
    rule = msgspec.json.decode(row.rule, type=Rule)
    configurations = msgspec.json.decode(row.configurations, type=dict[str, dict[str, float]])
    return Evaluation(row.name, rule, configurations, row.most, row.created, row.until, row.period)
