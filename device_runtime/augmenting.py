"""What a device trains on beside its own samples: which candidates it keeps, and how they enter the training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from device_runtime import filtering
from device_runtime.bundle import RoundSettings
from device_runtime.candidates import Augmentation, as_own, with_history_of
from device_runtime.filtering import Filtered
from device_runtime.journal import FilterView
from device_runtime.local import Local
from device_runtime.model import Model
from device_runtime.samples import Float32, Float64, SampleBatch
from device_runtime.tables import LocalTable

_BINS = np.linspace(0, 1, 21)


@dataclass(frozen=True)
class Chosen:
    """candidates: as the user's own samples have them. change: see `as_own`. filtered: what the filter says of them."""

    candidates: SampleBatch
    change: Float64 | None
    filtered: Filtered

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation.of(self.candidates, self.change, self.filtered.kept, self.filtered.weights)

    @property
    def view(self) -> FilterView:
        scores, kept = self.filtered.scores, self.filtered.kept
        labels = self.candidates.labels
        return FilterView(
            _BINS.tolist(),
            np.histogram(scores[kept], _BINS)[0].tolist(),
            np.histogram(np.delete(scores, kept), _BINS)[0].tolist(),
            float(labels[kept].mean()) if len(kept) else None,
            float(labels.mean()),
        )

    def tensors(self) -> dict[str, npt.NDArray[np.generic]]:
        """What `restored` needs beside the answer, which holds the candidates."""
        kept = self.augmentation
        found: dict[str, npt.NDArray[np.generic]] = {"kept": self.filtered.kept, "weights": kept.weights}
        found["labels"] = kept.samples.labels
        if kept.change is not None:
            found["change"] = kept.change.astype(np.float32)
        return found


def chosen(
    model: Model,
    candidates: SampleBatch,
    local: Local,
    embeddings: Float32,
    table: LocalTable,
    rng: np.random.Generator,
) -> Chosen:
    """What the filter keeps of candidates.

    embeddings: of the samples that are trained on, float32 [train, width]. table: rows of all items of both.
    """
    settings = model.manifest.settings
    mine, change = as_own(candidates, local.everything, local.train, model, table, settings)
    theirs = model.encode(mine, table) if settings.classifier_epochs else None
    return Chosen(mine, change, filtered(model, local.train, embeddings, mine, theirs, change, settings, rng))


def restored(
    model: Model, candidates: SampleBatch, local: Local, found: Mapping[str, npt.NDArray[np.generic]]
) -> Augmentation:
    """What `Chosen.tensors` tells of. candidates: as they were answered."""
    samples = candidates.take(found["kept"].astype(np.int64))
    if model.manifest.settings.matching == "pooled":
        samples = with_history_of(samples, local.everything)
    return Augmentation(
        dataclasses.replace(samples, labels=found["labels"].astype(np.float32)),
        found["weights"].astype(np.float32),
        found["change"].astype(np.float32) if "change" in found else None,
    )


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
