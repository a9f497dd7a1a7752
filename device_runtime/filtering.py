"""The personal sample classifier: which candidates lie inside the boundary of the user's own samples.

CoDA (arXiv 2201.10382) trains it on the device, local samples against outside ones. The candidates are both the
outside class and what is to be judged, so they are cross-fitted: each half is scored by a classifier that was
trained against the other half, and none is pushed out merely because it was itself a negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from device_runtime.bundle import RoundSettings
from device_runtime.engines import Array, Graph
from device_runtime.samples import Float32, Int64
from device_runtime.trainer import initial_state, scores, train

_FOLDS = 2


@dataclass(frozen=True)
class Filtered:
    """kept: int64 positions among the candidates, best first. scores: float32 [candidates], the probability of being
    the user's own. weights: float32 [kept]: that probability, so at least one half."""

    kept: Int64
    scores: Float32
    weights: Float32


def classifier_inputs(embeddings: Float32, labels: Float32, filter_from: int) -> Float32:
    """float32 [n, width - filter_from + 1]: what of a sample's embedding describes the impression, and its label."""
    return np.concatenate([embeddings[:, filter_from:], labels[:, None] - 0.5], 1).astype(np.float32)


def filter_candidates(
    score: Graph,
    step: Graph,
    initial: Mapping[str, Array],
    local_x: Float32,
    candidate_x: Float32,
    settings: RoundSettings,
    rng: np.random.Generator,
) -> Filtered:
    """Train the classifier and keep the candidates inside its boundary, at most `keep_per_local` per local sample.

    local_x, candidate_x: from `classifier_inputs`. initial: the classifier's weights as shipped.
    """
    probability = np.zeros(len(candidate_x), np.float32)
    fold = rng.permutation(len(candidate_x)) % _FOLDS
    for number in range(_FOLDS if len(candidate_x) >= _FOLDS else 0):
        against = candidate_x[fold != number]
        weights = _fit(step, initial, local_x, against, settings, rng)
        logit = scores(score, {n: weights[n] for n in initial}, {"x": candidate_x[fold == number]})
        probability[fold == number] = 1 / (1 + np.exp(-np.clip(logit, -30, 30)))
    kept = _inside(probability, round(settings.keep_per_local * len(local_x)))
    return Filtered(kept, probability, probability[kept])


def _fit(
    step: Graph,
    initial: Mapping[str, Array],
    local: Float32,
    outside: Float32,
    settings: RoundSettings,
    rng: np.random.Generator,
) -> Mapping[str, Array]:
    """Both classes weigh the same in total, so that 0.5 is the boundary whatever their sizes."""
    x = np.concatenate([local, outside])
    label = np.concatenate([np.ones(len(local)), np.zeros(len(outside))]).astype(np.float32)
    weight = np.where(label > 0, 0.5 / len(local), 0.5 / len(outside)) * len(x)
    values = {**initial, **initial_state(step.spec, initial)}
    trained, _ = train(
        step,
        values,
        {"x": x},
        label,
        weight.astype(np.float32),
        rate=settings.classifier_rate,
        epochs=settings.classifier_epochs,
        rng=rng,
    )
    return trained


def _inside(probability: Float32, most: int) -> npt.NDArray[np.int64]:
    order = np.argsort(-probability, kind="stable")
    return order[probability[order] >= 0.5][:most]
