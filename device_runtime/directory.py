"""A directory: what samples look like to the cloud's model, as a few centroids that come with the bundle.

A device that asks by directory says how much of its user is near each centroid, in a byte each, and nothing else: no
vector, sample, item or label leaves it (after Delta, MobiCom 2024; `docs/adr/0018-directory-queries.md`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from device_runtime.errors import InputError, WireError
from device_runtime.samples import Float32

TENSOR = "directory:centroids"
"""Its name among the bundle's weights, float16 [k, width]; no parameter of a model may have a colon in its name."""
MOST = 256
"""Centroids, at most: with a byte for each, a query stays below 1 KB."""
SMALLEST = 8
"""Weights below this, of 255, are sent as 0: they say more about the user than they change about the candidates."""
_AT_ONCE = 1024

Weights = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Directory:
    """centroids: float32 [k, width], about of unit length. id: 16 hex digits, of the centroids as they are stored."""

    centroids: Float32
    id: str

    @classmethod
    def of(cls, stored: npt.NDArray[np.generic], width: int) -> Directory:
        """stored: float16 [k, width]. Raises: WireError: it is not that, or not of finite numbers."""
        shape = stored.shape
        if stored.dtype != np.float16 or len(shape) != 2 or shape[1] != width or not 0 < shape[0] <= MOST:
            raise WireError(
                f"the bundle's directory is {stored.dtype} {list(shape)}; float16 [1 to {MOST}, {width}] expected"
            )
        if not np.isfinite(stored).all():
            raise WireError("the bundle's directory holds numbers that are not finite")
        digest = hashlib.sha256(np.ascontiguousarray(stored.astype("<f2")).tobytes())
        return cls(stored.astype(np.float32), digest.hexdigest()[:16])

    def weights(self, embeddings: Float32, sharpness: float) -> Weights:
        """uint8 [k], the largest 255: the mean of the samples' soft assignments, as shares of the largest.

        embeddings: float32 [n, width]. A sample is assigned by the softmax of its similarities times sharpness. All in
        float64, so that no engine or library rounds a byte another way.

        Raises:
            InputError: there are no samples, or a number is not finite.
        """
        if not len(embeddings) or not np.isfinite(embeddings).all() or not np.isfinite(sharpness):
            raise InputError("a directory query needs local samples, and finite embeddings of them")
        centroids, mass = self.centroids.astype(np.float64), np.zeros(len(self.centroids))
        for start in range(0, len(embeddings), _AT_ONCE):
            similarity = embeddings[start : start + _AT_ONCE].astype(np.float64) @ centroids.T
            soft = np.exp(sharpness * (similarity - similarity.max(1, keepdims=True)))
            mass += (soft / soft.sum(1, keepdims=True)).sum(0)
        found = np.rint(mass / mass.max() * 255)
        found[found < SMALLEST] = 0
        weights: Weights = found.astype(np.uint8)
        return weights
