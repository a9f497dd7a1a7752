"""Federated evaluation, the device's side: try configurations on one's own held-out samples, and tell only how it went.

Nothing of it serves. What leaves the device is, for each configuration, an AUC and a log loss on the samples that are
held out, and how many those are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np

from device_runtime import personalize
from device_runtime.bundle import RoundSettings
from device_runtime.candidates import Augmentation
from device_runtime.errors import EngineError, InputError, TransportError, WireError
from device_runtime.local import Local
from device_runtime.messages import Metrics, Outcome, Task, from_json, to_json
from device_runtime.metrics import auc, log_loss
from device_runtime.model import Model, personal_table
from device_runtime.tables import LocalTable
from device_runtime.transport import Transport

MOST_CONFIGURATIONS = 4
MOST_PASSES = 32
"""Epochs, or row steps."""
TUNABLE = frozenset(
    {
        "epochs",
        "rate",
        "table_rate",
        "row_steps",
        "interpolation",
        "outside_weight",
        "label_correction",
        "freeze_histories",
    }
)
"""What a configuration may set: how tuning goes, and nothing that decides what is asked of the cloud or kept."""
_PASSES = ("epochs", "row_steps")


@dataclass(frozen=True)
class Material:
    """What a round has at hand when it ends. kept: None where nothing was filtered."""

    local: Local
    table: LocalTable
    kept: Augmentation | None


def answer_task(transport: Transport, model: Model, material: Callable[[Task], Material], seed: list[int]) -> None:
    """Do the evaluation that the server has for this device. If it fails, the round is none the worse."""
    try:
        answer = transport.request(
            "GET", "/v1/evaluation", label="evaluation", accept="application/json", accept_status=(200, 204)
        )
        if answer.status == 204:
            return
        task = from_json(answer.body, Task, "the evaluation")
        body = to_json(evaluate(model, task, material(task), seed))
        transport.request("POST", "/v1/evaluation", body, label="evaluation", accept_status=(204,))
        transport.stale = ""
    except (TransportError, WireError, EngineError, InputError):
        return


def settings_of(base: RoundSettings, changes: dict[str, float]) -> RoundSettings:
    """Raises: WireError: a change that no configuration may make, or nonsense."""
    if unknown := sorted(set(changes) - TUNABLE):
        raise WireError(f"an evaluation may not set {', '.join(unknown)}; it may set {', '.join(sorted(TUNABLE))}")
    plain = {name: getattr(base, name) for name in TUNABLE}
    for name, value in changes.items():
        if not math.isfinite(value) or value < 0 or (name in _PASSES and value > MOST_PASSES):
            raise WireError(f"an evaluation cannot set {name} to {value}")
        plain[name] = type(plain[name])(value)
    return msgspec.structs.replace(base, **plain)


def before_the_judged(local: Local, settings: RoundSettings) -> Local:
    """The samples that the judge does not see, the newest of them held out in the same share."""
    train, held_out = personalize.split(len(local.train), settings.holdout)
    return Local(local.train.take(train), local.train.take(held_out), local.times[train], local.unknown)


def evaluate(model: Model, task: Task, material: Material, seed: list[int]) -> Metrics:
    """Tune from the bundle's weights by each configuration, and compare on the held-out samples.

    seed: of the training; the same for each, so that they differ in nothing else. No configuration stops early: what
    is held out here compares them.

    Raises:
        WireError: the task asks for what none may. EngineError: the engine fails.
    """
    if not 1 <= len(task.configurations) <= MOST_CONFIGURATIONS:
        raise WireError(
            f"an evaluation has 1 to {MOST_CONFIGURATIONS} configurations; this one has {len(task.configurations)}"
        )
    made = {name: settings_of(model.manifest.settings, changes) for name, changes in task.configurations.items()}
    held, found = material.local.held_out, {}
    if not len(held):
        untold = {name: Outcome() for name in made}
        return Metrics(task=task.name, samples=0, outcomes=untold, period=task.period)
    for name, settings in made.items():
        try:
            tuned = personalize.tune(
                model, model.base, material.table, material.local.train, material.kept, settings,
                np.random.default_rng(seed),
            ).weights  # fmt: skip
        except EngineError:  # it diverged: that is what is to be told of this configuration
            found[name] = Outcome(diverged=True)
            continue
        logits = model.logits(held, personal_table(material.table, tuned), tuned)
        found[name] = Outcome(auc=auc(held.labels, logits), log_loss=round(log_loss(held.labels, logits), 6))
    return Metrics(task=task.name, samples=len(held), outcomes=found, period=task.period)
