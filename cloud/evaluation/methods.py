"""The methods that are compared. Each is a small function from a device to the weights that would serve.

To add one: write such a function over `Device`'s stages and name it in `METHODS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np

from cloud.evaluation import mpda
from cloud.evaluation.cloud_side import unit_rows
from cloud.evaluation.device import ANSWERED, Device
from cloud.shrinkage import MOST
from device_runtime.bundle import RoundSettings
from device_runtime.candidates import Augmentation
from device_runtime.errors import InputError
from device_runtime.metrics import auc
from device_runtime.model import Weights


@dataclass(frozen=True)
class Method:
    """about: one line for the tables. reference: not a method to be used, but a bound."""

    run: Callable[[Device], Weights]
    about: str
    reference: bool = False


def cloud(device: Device) -> Weights:
    return device.model.base


def plain(device: Device) -> RoundSettings:
    """Fine-tuning as it is usually done, at a rate that did best in trials without candidates."""
    return msgspec.structs.replace(device.settings, **PLAIN)


def local(device: Device) -> Weights:
    return device.tuned("local", device.parts.local, settings=plain(device)).weights


def local_judged(device: Device) -> Weights:
    """What a round does that has no candidates."""
    settings = plain(device)
    return device.judged("local", device.tuned("local part", device.parts.train, settings=settings), settings)


def local_and_random(device: Device) -> Weights:
    others = Augmentation.of(device.random(), None)
    return device.tuned("local+random", device.parts.local, others, plain(device)).weights


def local_and_strangers(device: Device) -> Weights:
    """The control of matching: the same candidates, pooled around a profile that is nobody's."""
    start, width = device.model.manifest.filter_from, device.model.manifest.width
    profile = np.zeros((1, width), np.float32)
    profile[0, :start] = device.rng("strangers").normal(size=start)
    others = Augmentation.of(*device.offered(profile=unit_rows(profile)))
    return device.tuned("local+strangers", device.parts.local, others).weights


def local_and_matched(device: Device) -> Weights:
    others = Augmentation.of(*device.offered())
    return device.tuned("local+matched", device.parts.local, others).weights


def matched_only(device: Device) -> Weights:
    others, none = Augmentation.of(*device.offered()), device.parts.local.take(slice(0, 0))
    return device.tuned("matched", none, others).weights if len(others.samples) else device.model.base


def coda(device: Device, name: str = "coda", *, by_chance: bool = False, **off: Any) -> Weights:
    """As in `device_runtime.round`: match, filter, tune on the training part, judge on the held-out one.

    by_chance: as many candidates as the filter may keep are kept at random. off: round settings that differ.
    """
    if not device.enough:
        return device.model.base
    off = {setting: value for setting, value in off.items() if getattr(device.settings, setting) != value}
    if not off and not by_chance:
        name = "coda"  # what is to be off is off for this data anyway
    settings = msgspec.structs.replace(device.settings, **off)
    tuning = name if by_chance or set(off) - AFTER_TUNING else "coda"
    same = all(getattr(settings, n) == getattr(device.settings, n) for n in (*ANSWERED, "tastes"))
    candidates, change = device.offered(None if same else settings)
    if not by_chance:
        found = device.filtered(candidates, change, settings, "" if same else name)
        kept = Augmentation.of(candidates, change, found.kept, found.weights)
    else:
        most = math.ceil(settings.keep * len(candidates))
        kept = Augmentation.of(candidates, change, np.sort(device.rng("keep").permutation(len(candidates))[:most]))
    tuned = device.tuned(tuning, device.parts.train, kept, settings)
    return device.judged(name, tuned, settings, kept)


def oracle(device: Device) -> Weights:
    """A judge that sees the test rows: the best of cloud, local and CoDA for this user."""
    test = device.parts.test
    offered = [
        device.model.base,
        local(device),
        coda(device),
        coda(device, "coda-no-judge", judge=False),
    ]
    return max(offered, key=lambda weights: auc(test.labels, device.logits(test, weights)) or 0.0)


AFTER_TUNING = {"judge", "tolerance", "partial", "learn_held_out"}
"""Settings that decide what becomes of tuned weights: methods that differ in nothing else share these."""
PLAIN: dict[str, Any] = {
    "rate": 0.05,
    "table_rate": 0.05,
    "epochs": 3,
    "interpolation": 1.0,
    "freeze_histories": False,
    "label_correction": False,
    "row_steps": 0,
    "learn_held_out": True,
}
JOINT: dict[str, Any] = {
    "row_steps": 0,
    "epochs": 4,
    "rate": 0.1,
    "table_rate": 1.0,
    "label_correction": True,
}
"""Kept samples in the same passes as local ones, by settings that do as well as the best within noise, in half the
time (docs/accuracy/tune/joint-ml-1m-fresh.json)."""
NEAREST: dict[str, Any] = {
    "matching": "nearest",
    "candidates": 400,
    "threshold": 0.5,
    "keep": 0.25,
    "density_weights": True,
    "ratio_bound": 1.5,
    "outside_weight": 0.3,
    **JOINT,
    "epochs": 8,
    "table_rate": 0.5,
}
"""Single samples of single strangers: few of them, and only those inside the boundary."""

METHODS: dict[str, Method] = {
    "cloud": Method(cloud, "the cloud's model as it is"),
    "local": Method(local, "fine-tuned on all local samples"),
    "local-judged": Method(local_judged, "fine-tuned on local samples, and judged"),
    "local+random": Method(local_and_random, "local samples and random ones of others"),
    "local+strangers": Method(local_and_strangers, "local samples and candidates pooled around nobody's profile"),
    "local+matched": Method(local_and_matched, "local samples and all candidates"),
    "matched-only": Method(matched_only, "all candidates, no local sample"),
    "mpda-random": Method(partial(mpda.run, choose=mpda.randomly), "MPDA over random users"),
    "mpda-similar": Method(partial(mpda.run, choose=mpda.by_similarity), "MPDA over the most similar users"),
    "coda": Method(coda, "matched, filtered, weighted, tuned, judged"),
    "coda-nearest": Method(partial(coda, name="coda-nearest", **NEAREST), "CoDA that matches single samples"),
    "coda-directory": Method(
        partial(coda, name="coda-directory", **{**NEAREST, "matching": "directory"}),
        "CoDA that tells the cloud how much of the user is in each part of a directory, and no vector",
    ),
    "coda-no-filter": Method(
        partial(coda, name="coda-no-filter", by_chance=True), "CoDA that keeps as many candidates at random"
    ),
    "coda-no-classifier": Method(
        partial(coda, name="coda-no-classifier", classifier_epochs=0),
        "CoDA that keeps the candidates that change the model most",
    ),
    "coda-no-label": Method(
        partial(coda, name="coda-no-label", classifier_label=False), "CoDA whose classifier does not see labels"
    ),
    "coda-calibrated": Method(
        partial(coda, name="coda-calibrated", calibration=True),
        "CoDA whose classifier's scores are calibrated on local samples that it has not seen",
    ),
    "coda-no-tastes": Method(
        partial(coda, name="coda-no-tastes", tastes=False), "CoDA without what own labels say of other items"
    ),
    "coda-no-drift": Method(
        partial(coda, name="coda-no-drift", half_life=0.0), "CoDA whose pool's samples count alike, however old"
    ),
    "coda-no-ages": Method(
        partial(coda, name="coda-no-ages", age_shrinkage=1e9),
        "CoDA whose offsets are shrunk toward nothing, whatever their age",
    ),
    "coda-fitted-alike": Method(
        partial(coda, name="coda-fitted-alike", fitted_weight=1.0),
        "CoDA whose pool's samples count alike, also those that the model was fitted on",
    ),
    "coda-fixed-shrinkage": Method(
        partial(coda, name="coda-fixed-shrinkage", shrinkage=MOST), "CoDA whose offsets are shrunk alike on all data"
    ),
    "coda-no-row-steps": Method(
        partial(coda, name="coda-no-row-steps", **JOINT), "CoDA that passes over local and kept samples at once"
    ),
    "coda-weights": Method(
        partial(coda, name="coda-weights", density_weights=True, ratio_bound=1.5),
        "CoDA whose kept samples weigh by their probability of being the user's own",
    ),
    "coda-label-correction": Method(
        partial(coda, name="coda-label-correction", label_correction=True),
        "CoDA that moves the labels' mean to that of the model's predictions before it tunes",
    ),
    "coda-early-stop": Method(
        partial(coda, name="coda-early-stop", epochs=12, patience=3),
        "CoDA whose local passes end when held-out samples are predicted no better: 12 at most",
    ),
    "coda-no-held-out": Method(
        partial(coda, name="coda-no-held-out", learn_held_out=False), "CoDA that never trains on what its judge saw"
    ),
    "coda-all-or-nothing": Method(
        partial(coda, name="coda-all-or-nothing", partial=0.0), "CoDA whose judge knows no part of the way"
    ),
    "coda-no-judge": Method(partial(coda, name="coda-no-judge", judge=False), "CoDA whose result always serves"),
    "oracle": Method(oracle, "best of cloud, local and CoDA by the test rows: an upper bound", reference=True),
}
"""By name, in the order of the tables."""


def chosen(names: str) -> list[str]:
    """The methods of a comma-separated list, or of `all`; cloud and local are always among them, for the differences.

    Raises:
        InputError: there is no such method.
    """
    if names == "all":
        return list(METHODS)
    asked = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in asked if name not in METHODS]:
        raise InputError(f"no method is called {unknown[0]!r}; there are {', '.join(METHODS)}, or `all`")
    return [name for name in METHODS if name in {"cloud", "local", *asked}]
