"""The query: the user's profile, a few centroids of the embedded local samples, or how much of them lies in each part
of the bundle's directory. It is all that the cloud learns."""

from __future__ import annotations

import numpy as np

from device_runtime.bundle import Manifest, RoundSettings
from device_runtime.directory import Directory
from device_runtime.errors import InputError
from device_runtime.samples import Float32, Int32
from device_runtime.wire import DirectoryQuery, MatchQuery, encode_directory_query, encode_query

_ITERATIONS = 10


def frame(
    manifest: Manifest,
    embeddings: Float32,
    settings: RoundSettings,
    held: Int32,
    rng: np.random.Generator,
    directory: Directory | None,
) -> bytes:
    """The query's frame, as the settings ask for it.

    embeddings: of the local samples, oldest first. held: shards of item rows that are on the device. directory: needed
    where the settings ask by it.

    Raises:
        InputError: there is no directory, or there are no local samples to ask by it.
    """
    if settings.matching == "directory":
        if directory is None:
            raise InputError("the bundle has no directory to ask by")
        weights = directory.weights(embeddings, settings.sharpness)
        asked = DirectoryQuery(manifest.encoder, directory.id, weights, settings.candidates, held)
        return encode_directory_query(asked)
    asked_by = vectors(embeddings, manifest.filter_from, settings, rng)
    return encode_query(MatchQuery(manifest.encoder, asked_by, settings.candidates, held))


def vectors(embeddings: Float32, filter_from: int, settings: RoundSettings, rng: np.random.Generator) -> Float32:
    """What is sent where no directory is asked by, float32 [k, width], unit rows: see `RoundSettings.matching`.

    embeddings: of the local samples, oldest first. filter_from: the first column that describes the impression.
    """
    if settings.matching == "nearest":
        return centroids(embeddings, settings.centroids, rng)
    return profile(embeddings, filter_from)


def profile(embeddings: Float32, filter_from: int) -> Float32:
    """float32 [1, width]: the person behind the newest sample, without its impression; no row if nothing is known.

    Against it, samples of the pool compare by their contributors alone.
    """
    found = embeddings[-1:].copy()
    found[:, filter_from:] = 0
    norm = np.linalg.norm(found, axis=1, keepdims=True)
    known: Float32 = (found / np.maximum(norm, 1e-6))[norm[:, 0] > 1e-6].astype(np.float32)
    return known


def centroids(embeddings: Float32, k: int, rng: np.random.Generator) -> Float32:
    """Spherical k-means (Dhillon & Modha, 2001) from a k-means++ start.

    embeddings: float32 [n, width], unit rows. Returns float32 [at most k, width], unit rows; fewer than k where
    there are fewer distinct samples.
    """
    # in the order of the samples, and rounded for comparing: engines differ in the last bits, and sorting by those
    # would let the same seed start from other samples on each engine
    _, first = np.unique(np.round(embeddings, 4), axis=0, return_index=True)
    distinct = embeddings[np.sort(first)]
    if len(distinct) <= k:
        return distinct.astype(np.float32)
    centres = _spread(distinct, k, rng)
    for _ in range(_ITERATIONS):
        nearest = (embeddings @ centres.T).argmax(1)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, embeddings)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(norms > 1e-6, sums / np.maximum(norms, 1e-6), centres)
    return centres.astype(np.float32)


def _spread(points: Float32, k: int, rng: np.random.Generator) -> Float32:
    chosen = [int(rng.integers(len(points)))]
    distance = 1 - points @ points[chosen[0]]
    while len(chosen) < k:
        weight = np.maximum(distance, 0) + 1e-12
        chosen.append(int(rng.choice(len(points), p=weight / weight.sum())))
        distance = np.minimum(distance, 1 - points @ points[chosen[-1]])
    picked: Float32 = points[chosen]
    return picked
