"""Federated evaluation: configurations are sent to a cohort, devices try them on their own, only figures come back.

The same asks for settings: configurations are compared on the period before the one that the judge sees, and the one
that is better for sure is proposed. It is for a release then to bring them to devices, by its ladder and gate.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cloud.catalog import Catalog
from cloud.catalog.evaluations import Evaluation, Period
from cloud.rollout import Facts, Rule
from cloud.rollout.buckets import place
from cloud.rollout.gates import radius
from device_runtime.bundle import RoundSettings
from device_runtime.errors import InputError, WireError
from device_runtime.evaluating import MOST_CONFIGURATIONS, settings_of
from device_runtime.messages import Metrics, Outcome, Task

MOST_ARMS = 16
"""Configurations of an evaluation: a device tries the first, and as many others as it may."""
_FRESH_S = 5.0
_MOST_LOSS = 100.0
_CUT = 0.5
"""A device's difference of AUC is cut at this, as in the gates: a forged one should not weigh."""
_ALPHA = 0.05
"""The probability that any interval of an evaluation ever misses, over all configurations and all looks together."""
_TUNED_AT = 0.005
_LEAST = 30
"""Devices that have compared a configuration with the first, before it may be proposed: the intervals are normal."""
_DIVERGING = 0.01


@dataclass(frozen=True)
class Compared:
    """A configuration over devices. auc: mean. difference: mean over devices of its AUC less that of the first
    configuration on the same samples, and its interval; None with fewer than two devices that tell both. pairs: how
    many do."""

    name: str
    devices: int
    diverged: int
    auc: float | None
    log_loss: float | None
    difference: tuple[float, float, float] | None
    pairs: int


@dataclass(frozen=True)
class Proposal:
    """name: of the configuration; "" if none is better for sure. settings: what it sets. why: in words."""

    name: str
    settings: dict[str, float]
    why: str


class Federated:
    """clock: seconds since 1970. Other processes' evaluations are seen within some seconds."""

    def __init__(self, catalog: Catalog, clock: Callable[[], float]) -> None:
        self._log, self._clock = catalog.evaluations, clock
        self._lock = threading.Lock()
        self._known: tuple[float, list[Evaluation]] = -math.inf, []

    def create(
        self,
        name: str,
        configurations: Mapping[str, Mapping[str, float]],
        rule: Rule,
        most: int,
        days: float,
        period: Period = "judged",
    ) -> Evaluation:
        """Ask devices that a rule means. The first configuration is what others are compared with.

        Raises:
            InputError: what devices would refuse, or a name that was used.
        """
        if not name or len(name) > 100 or not name.isprintable() or "/" in name:
            raise InputError("an evaluation's name has 1 to 100 printable characters, and no slash")
        if not 1 <= len(configurations) <= MOST_ARMS or any(not 0 < len(one) <= 32 for one in configurations):
            raise InputError(f"an evaluation has 1 to {MOST_ARMS} configurations, with names of 1 to 32 characters")
        if not 1 <= most <= 1_000_000 or not 0 < days <= 365:
            raise InputError("an evaluation wants 1 to 1,000,000 devices, and ends within a year")
        for changes in configurations.values():
            try:
                settings_of(RoundSettings(), dict(changes))
            except WireError as error:
                raise InputError(str(error)) from None
        now = self._clock()
        plain = {label: dict(changes) for label, changes in configurations.items()}
        made = Evaluation(name, rule, plain, most, now, now + days * 86_400, period)
        self._log.add(made)
        with self._lock:
            self._known = -math.inf, []
        return made

    def asked(self, facts: Facts) -> Task | None:
        """The oldest evaluation that means a device and that it has not answered, with its share of configurations."""
        means = [one for one in self._open() if not one.rule.misses(facts)]
        if not means:
            return None
        done = self._log.answered(facts.device)
        return next(
            (Task(name=o.name, configurations=share_of(o, facts.device), period=o.period)
             for o in means if o.name not in done), None,
        )  # fmt: skip

    def take(self, facts: Facts, metrics: Metrics) -> None:
        """Keep an answer, once a device; figures that cannot be are refused.

        Raises:
            InputError: not an answer to what this device was asked.
        """
        asked = next((one for one in self._open() if one.name == metrics.task and not one.rule.misses(facts)), None)
        if asked is None:
            raise InputError("this device is not asked for such an evaluation, or it has ended")
        if set(metrics.outcomes) != set(share_of(asked, facts.device)) or not 0 <= metrics.samples < 1 << 31:
            raise InputError("the answer has an outcome for each configuration that was asked for, and no other")
        if metrics.period != asked.period:
            raise InputError(f"the answer is of the {metrics.period} samples; asked for are the {asked.period} ones")
        if not all(map(_possible, metrics.outcomes.values())):
            raise InputError("an AUC is between 0 and 1, and a log loss is not negative")
        self._log.answer(facts.device, metrics, self._clock())

    def compared(self, evaluation: Evaluation) -> list[Compared]:
        """Each configuration over the devices that have answered. Intervals hold at all looks, and all together."""
        answers = self._log.answers(evaluation.name)
        first, *others = evaluation.configurations
        alpha = _ALPHA / max(len(others), 1)
        return [_compared(name, first, answers, alpha) for name in evaluation.configurations]

    def proposal(self, evaluation: Evaluation) -> Proposal:
        """The configuration to bring to devices: of those that are better than the first for sure, the best.

        Raises:
            InputError: it was not on the period before the judged one: what pleases the judge's rows proves nothing.
        """
        if evaluation.period != "validation":
            raise InputError(
                f"{evaluation.name} compared on the rows that the judge sees; settings are chosen on those before: "
                "`coda federated create --tune`"
            )
        found = self.compared(evaluation)
        better = [
            (one.difference, one)
            for one in found[1:]
            if one.difference is not None
            and one.pairs >= _LEAST
            and one.difference[1] > 0
            and one.diverged <= _DIVERGING * one.devices
        ]
        if not better:
            most = max((one.pairs for one in found[1:]), default=0)
            return Proposal("", {}, f"no configuration is better than {found[0].name} for sure, by {most} devices")
        (mean, low, high), best = max(better, key=lambda pair: pair[0][0])
        why = f"{best.name}: {mean:+.4f} AUC against {found[0].name} by {best.pairs} devices, {low:+.4f} to {high:+.4f}"
        return Proposal(best.name, dict(evaluation.configurations[best.name]), why)

    def named(self, name: str) -> Evaluation:
        """Raises: InputError: there is none of this name."""
        found = next((one for one in self.all() if one.name == name), None)
        if found is None:
            raise InputError(f"there is no evaluation {name[:100]!r}")
        return found

    def all(self) -> list[Evaluation]:
        return self._log.all()

    def _open(self) -> list[Evaluation]:
        now = self._clock()
        with self._lock:
            if not 0 <= now - self._known[0] < _FRESH_S:
                self._known = now, self._log.open(now)
            return self._known[1]


def share_of(evaluation: Evaluation, device: str) -> dict[str, dict[str, float]]:
    """What a device is asked to try: the first configuration, which the others are compared with, and some others by
    the device's place for each; the same whenever it asks."""
    first, *others = evaluation.configurations
    near = sorted(others, key=lambda name: place(device, f"{evaluation.name}\n{name}"))[: MOST_CONFIGURATIONS - 1]
    return {name: evaluation.configurations[name] for name in evaluation.configurations if name in (first, *near)}


def _possible(outcome: Outcome) -> bool:
    auc, loss = outcome.auc, outcome.log_loss
    return (auc is None or 0 <= auc <= 1) and (loss is None or 0 <= loss <= _MOST_LOSS)


def _compared(name: str, first: str, answers: Sequence[Metrics], alpha: float) -> Compared:
    tried = [answer.outcomes for answer in answers if name in answer.outcomes]
    mine = [outcomes[name] for outcomes in tried]
    aucs = [one.auc for one in mine if one.auc is not None]
    losses = [one.log_loss for one in mine if one.log_loss is not None]
    pairs = [(outcomes[name].auc, outcomes[first].auc) for outcomes in tried if first in outcomes]
    apart = [max(-_CUT, min(_CUT, a - b)) for a, b in pairs if a is not None and b is not None]
    difference = None
    if len(apart) > 1 and name != first:
        # a floor under the variance: that all devices say the same happens with few of them
        mean, variance = statistics.fmean(apart), max(statistics.variance(apart), 1e-6) / len(apart)
        half = radius(1 / variance, alpha, _TUNED_AT)
        difference = mean, mean - half, mean + half
    return Compared(
        name,
        len(mine),
        sum(one.diverged for one in mine),
        statistics.fmean(aucs) if aucs else None,
        statistics.fmean(losses) if losses else None,
        difference,
        len(apart),
    )
