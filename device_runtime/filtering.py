"""The personal sample classifier: which candidates lie inside the boundary of the user's own samples.

CoDA (arXiv 2201.10382) trains it on the device, local samples against outside ones. The candidates are both the
outside class and what is to be judged, so they are cross-fitted: each half is scored by a classifier that was
trained against the other half, and none is pushed out merely because it was itself a negative.

Its logit is that of the ratio of densities between the user and the outside (Sugiyama et al., 2008): how many times as
likely this user is to meet a sample. Single samples are preferred by that ratio alone. Pooled ones change the model by
as much as their labels differ from its predictions, so what such a candidate is worth is the ratio times the square of
that change: the squared error, in logits, that it takes from what the user will meet.

That logit is overconfident where local samples are few: the classifier knows them by heart. So it may be calibrated
(`RoundSettings.calibration`): local samples are cross-fitted too, and of scores that were given to samples not seen, on
either side, a line is drawn through the odds (Platt, 1999). Its slope has a prior around 0, so that a classifier that
shows nothing on what it has not seen is not believed.

A candidate with a soft label m stands for two: one liked, of mass m, and one not, of mass 1 - m. The classifier judges
both, and the candidate's ratio is their mean. Soft labels themselves are never shown to it: local labels are hard, so
it could tell the sides apart at a glance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from device_runtime.bundle import RoundSettings
from device_runtime.engines import Array, Graph
from device_runtime.samples import Float32, Float64, Int64
from device_runtime.trainer import initial_state, scores, train

_FOLDS = 2
_LEAST = 8
"""Local samples that are cross-fitted, at least: of fewer, a half is too few to train on."""
_NEWTON = 20
_PRIOR = np.array([0.1, 1.0])
"""Precisions of the calibration's slope and level."""


@dataclass(frozen=True)
class Filtered:
    """kept: int64 positions among the candidates, ascending. scores: float32 [candidates], the probability of being
    the user's own, calibrated if that was asked for. weights: float32 [kept]: that probability, or ones."""

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
    change: Float64 | None,
    settings: RoundSettings,
    rng: np.random.Generator,
) -> Filtered:
    """Train the classifier and keep the candidates inside its boundary that are worth most, at most a share `keep`.

    local_x, candidate_x: from `classifier_inputs`. initial: the classifier's weights as shipped. change: float64 [n],
    by how much the logits of candidates' labels differ from the model's; None where they are other users' samples.
    """
    count = len(candidate_x)
    liked = np.clip(candidate_x[:, -1] + 0.5, 0, 1)
    if count < _FOLDS or not settings.classifier_epochs:
        return without_classifier(count, change, settings)
    halves = np.concatenate([_labelled(candidate_x, 0.5), _labelled(candidate_x, -0.5)])
    if not settings.classifier_label:
        local_x, halves = _labelled(local_x, 0), _labelled(halves, 0)  # a label that says nothing
    mass = np.concatenate([liked, 1 - liked])
    logit = np.zeros(2 * count, np.float32)
    fold = np.tile(rng.permutation(count) % _FOLDS, 2)
    unseen = settings.calibration and len(local_x) >= _LEAST
    own_fold = rng.permutation(len(local_x)) % _FOLDS if unseen else np.full(len(local_x), _FOLDS)
    own_logit = np.zeros(len(local_x), np.float32)
    for number in range(_FOLDS):
        against, mine = (fold != number) & (mass > 0), own_fold == number
        weights = _fit(step, initial, local_x[~mine], halves[against], mass[against], settings, rng)
        judged = {"x": np.concatenate([halves[fold == number], local_x[mine]])}
        found = scores(score, {n: weights[n] for n in initial}, judged)
        logit[fold == number], own_logit[mine] = np.split(found, [int((fold == number).sum())])
    if unseen:
        slope, level = calibration(own_logit, logit, mass)
        logit = (slope * logit + level).astype(np.float32)
    bound = float(np.log(settings.ratio_bound))
    ratio = np.exp(np.clip(logit, -bound, bound))
    density = liked * ratio[:count] + (1 - liked) * ratio[count:]
    probability = (density / (1 + density)).astype(np.float32)
    kept = _foremost(density, change, probability >= settings.threshold, settings.keep)
    weights_kept = probability[kept] if settings.density_weights else np.ones(len(kept), np.float32)
    return Filtered(kept, probability, weights_kept)


def calibration(own: Float32, outside: Float32, mass: Float32) -> tuple[float, float]:
    """(slope, level): slope * score + level is the logit of a sample's being the user's own.

    The mode, under normal priors around 0, of a logistic regression in which either class weighs as much as there are
    local samples. A slope is at least 0: what is less like the user is not preferred.
    own, outside: float32 [n] and [m], scores of samples that the classifier had not seen. mass: float32 [m].
    """
    score = np.concatenate([own, outside]).astype(np.float64)
    label = np.concatenate([np.ones(len(own)), np.zeros(len(outside))])
    weight = np.concatenate([np.ones(len(own)), len(own) * mass / max(float(mass.sum()), 1e-9)]).astype(np.float64)
    x, w = np.column_stack([score, np.ones(len(score))]), np.zeros(2)
    for _ in range(_NEWTON):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        slope = x.T @ (weight * (label - p)) - _PRIOR * w
        w = w + np.linalg.solve((x * (weight * p * (1 - p))[:, None]).T @ x + np.diag(_PRIOR), slope)
    return max(float(w[0]), 0.0), float(w[1]) if w[0] > 0 else 0.0


def without_classifier(count: int, change: Float64 | None, settings: RoundSettings) -> Filtered:
    """Those that change the model most; in the order that they came in, where that is not known."""
    kept = _foremost(np.ones(count), change, np.ones(count, np.bool_), settings.keep)
    return Filtered(kept, np.full(count, 0.5, np.float32), np.ones(len(kept), np.float32))


def _foremost(density: Float64, change: Float64 | None, inside: npt.NDArray[np.bool_], share: float) -> Int64:
    """Positions, ascending, of those inside that are worth most, at most this share of all; of equals, the first
    ones.

    Ascending, so that a difference in the last digit of what two of them are worth changes nothing afterwards.
    """
    worth = density if change is None else density * change**2
    best = np.argsort(-worth, kind="stable")
    return np.sort(best[inside[best]][: math.ceil(share * len(best))])


def _labelled(x: Float32, label: float) -> Float32:
    found = x.copy()
    found[:, -1] = label
    return found


def _fit(
    step: Graph,
    initial: Mapping[str, Array],
    local: Float32,
    outside: Float32,
    mass: Float32,
    settings: RoundSettings,
    rng: np.random.Generator,
) -> Mapping[str, Array]:
    """Both classes weigh the same in total, so that 0.5 is the boundary whatever their sizes."""
    x = np.concatenate([local, outside])
    label = np.concatenate([np.ones(len(local)), np.zeros(len(outside))]).astype(np.float32)
    own = np.full(len(local), 0.5 / len(local))
    weight = np.concatenate([own, 0.5 * mass / mass.sum()]) * len(x)
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
