"""What a device trains on beside its own samples: which candidates it keeps, and how they enter the training."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from device_runtime import filtering
from device_runtime.bundle import RoundSettings
from device_runtime.candidates import as_own, with_history_of
from device_runtime.filtering import Filtered
from device_runtime.local import Local
from device_runtime.model import Model
from device_runtime.samples import Float32, Float64, Int64, SampleBatch
from device_runtime.tables import LocalTable


@dataclass(frozen=True)
class Augmentation:
    """The kept candidates and their weights. change: float32 [kept], by how much the logits of their labels differ from
    the model's, where that is known (`as_own`)."""

    kept: SampleBatch
    weights: Float32
    change: Float32 | None = None


def chosen(
    model: Model,
    candidates: SampleBatch,
    local: Local,
    embeddings: Float32,
    table: LocalTable,
    rng: np.random.Generator,
) -> tuple[SampleBatch, Float64 | None, Filtered]:
    """The candidates as the user's own samples have them, by how much they would change the model (`as_own`), and what
    the filter says of them.

    embeddings: of the samples that are trained on, float32 [train, width]. table: rows of all items of both.
    """
    settings = model.manifest.settings
    mine, change = as_own(candidates, local.everything, local.train, model, table, settings)
    theirs = model.encode(mine, table) if settings.classifier_epochs else None
    return mine, change, filtered(model, local.train, embeddings, mine, theirs, change, settings, rng)


def filtered(
    model: Model,
    train: SampleBatch,
    embeddings: Float32,
    candidates: SampleBatch,
    theirs: Float32 | None,
    change: Float64 | None,
    settings: RoundSettings,
    rng: np.random.Generator,
) -> Filtered:
    """What the filter says of candidates. embeddings: float32 [train, width]. theirs: of the candidates, float32 [n,
    width]; None leaves the classifier out. change: see `as_own`."""
    if theirs is None:
        return filtering.without_classifier(len(candidates), change, settings)
    start = model.manifest.filter_from
    return filtering.filter_candidates(
        model.graph("classifier_score"),
        model.graph("classifier_step"),
        model.classifier,
        filtering.classifier_inputs(embeddings, train.labels, start),
        filtering.classifier_inputs(theirs, candidates.labels, start),
        change,
        settings,
        rng,
    )


def augmentation(
    model: Model,
    candidates: SampleBatch,
    local: Local,
    kept: Int64,
    labels: Float32,
    weights: Float32,
    change: Float32 | None,
) -> Augmentation:
    """candidates: as they were answered. kept, weights: of a `Filtered`. labels, change: [kept], those that they have
    for this user."""
    samples = candidates.take(kept)
    if model.manifest.settings.matching == "pooled":
        samples = with_history_of(samples, local.everything)
    return Augmentation(dataclasses.replace(samples, labels=labels), weights, change)
