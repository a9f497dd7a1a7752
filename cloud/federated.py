"""Federated evaluation: configurations are sent to a cohort, devices try them on their own, only figures come back."""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cloud.catalog import Catalog
from cloud.catalog.evaluations import Evaluation
from cloud.rollout import Facts, Rule
from device_runtime.bundle import RoundSettings
from device_runtime.errors import InputError, WireError
from device_runtime.evaluating import MOST_CONFIGURATIONS, settings_of
from device_runtime.messages import Metrics, Outcome, Task

_FRESH_S = 5.0
_MOST_LOSS = 100.0
_CUT = 0.5
"""A device's difference of AUC is cut at this, as in the gates: a forged one should not weigh."""


@dataclass(frozen=True)
class Compared:
    """A configuration over devices. auc: mean. difference: mean over devices of its AUC less that of the first
    configuration on the same samples, and its 95 % interval; None with fewer than two devices that tell both."""

    name: str
    devices: int
    diverged: int
    auc: float | None
    log_loss: float | None
    difference: tuple[float, float, float] | None


class Federated:
    """clock: seconds since 1970. Other processes' evaluations are seen within some seconds."""

    def __init__(self, catalog: Catalog, clock: Callable[[], float]) -> None:
        self._log, self._clock = catalog.evaluations, clock
        self._lock = threading.Lock()
        self._known: tuple[float, list[Evaluation]] = -math.inf, []

    def create(
        self, name: str, configurations: Mapping[str, Mapping[str, float]], rule: Rule, most: int, days: float
    ) -> Evaluation:
        """Ask devices that a rule means. The first configuration is what others are compared with.

        Raises:
            InputError: what devices would refuse, or a name that was used.
        """
        if not name or len(name) > 100 or not name.isprintable():
            raise InputError("an evaluation's name has 1 to 100 printable characters")
        if not 1 <= len(configurations) <= MOST_CONFIGURATIONS or any(len(one) > 32 for one in configurations):
            raise InputError(f"an evaluation has 1 to {MOST_CONFIGURATIONS} configurations, with short names")
        if not 1 <= most <= 1_000_000 or not 0 < days <= 365:
            raise InputError("an evaluation wants 1 to 1,000,000 devices, and ends within a year")
        for changes in configurations.values():
            try:
                settings_of(RoundSettings(), dict(changes))
            except WireError as error:
                raise InputError(str(error)) from None
        now = self._clock()
        plain = {label: dict(changes) for label, changes in configurations.items()}
        made = Evaluation(name, rule, plain, most, now, now + days * 86_400)
        self._log.add(made)
        with self._lock:
            self._known = -math.inf, []
        return made

    def asked(self, facts: Facts) -> Task | None:
        """The oldest evaluation that means a device and that it has not answered."""
        means = [one for one in self._open() if not one.rule.misses(facts)]
        if not means:
            return None
        done = self._log.answered(facts.device)
        return next((Task(name=o.name, configurations=o.configurations) for o in means if o.name not in done), None)

    def take(self, facts: Facts, metrics: Metrics) -> None:
        """Keep an answer, once a device; figures that cannot be are refused.

        Raises:
            InputError: not an answer to what this device was asked.
        """
        asked = next((one for one in self._open() if one.name == metrics.task and not one.rule.misses(facts)), None)
        if asked is None:
            raise InputError("this device is not asked for such an evaluation, or it has ended")
        if set(metrics.outcomes) != set(asked.configurations) or not 0 <= metrics.samples < 1 << 31:
            raise InputError("the answer has an outcome for each configuration that was asked for, and no other")
        if not all(map(_possible, metrics.outcomes.values())):
            raise InputError("an AUC is between 0 and 1, and a log loss is not negative")
        self._log.answer(facts.device, metrics, self._clock())

    def compared(self, evaluation: Evaluation) -> list[Compared]:
        """Each configuration over the devices that have answered."""
        answers = self._log.answers(evaluation.name)
        first = next(iter(evaluation.configurations))
        return [_compared(name, first, answers) for name in evaluation.configurations]

    def all(self) -> list[Evaluation]:
        return self._log.all()

    def _open(self) -> list[Evaluation]:
        now = self._clock()
        with self._lock:
            if not 0 <= now - self._known[0] < _FRESH_S:
                self._known = now, self._log.open(now)
            return self._known[1]


def _possible(outcome: Outcome) -> bool:
    auc, loss = outcome.auc, outcome.log_loss
    return (auc is None or 0 <= auc <= 1) and (loss is None or 0 <= loss <= _MOST_LOSS)


def _compared(name: str, first: str, answers: list[Metrics]) -> Compared:
    mine = [answer.outcomes[name] for answer in answers]
    aucs = [one.auc for one in mine if one.auc is not None]
    losses = [one.log_loss for one in mine if one.log_loss is not None]
    pairs = [(answer.outcomes[name].auc, answer.outcomes[first].auc) for answer in answers]
    apart = [max(-_CUT, min(_CUT, a - b)) for a, b in pairs if a is not None and b is not None]
    difference = None
    if len(apart) > 1 and name != first:
        mean, half = statistics.fmean(apart), 1.96 * statistics.stdev(apart) / math.sqrt(len(apart))
        difference = mean, mean - half, mean + half
    return Compared(
        name,
        len(mine),
        sum(one.diverged for one in mine),
        statistics.fmean(aucs) if aucs else None,
        statistics.fmean(losses) if losses else None,
        difference,
    )
