"""The directory of a bundle: centroids of what the model makes of samples that it was validated on.

These are the newest that the cloud has, so nearest to what devices hold; and they lie beside the trained model, so an
export needs nothing else.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from device_runtime.directory import MOST
from device_runtime.query import centroids
from device_runtime.samples import Float32, SampleBatch
from export.models.base import Recommender
from export.quantize import inputs_of

EACH = 32
"""Samples for each centroid, about, where there are too few for as many centroids as there may be."""
LEAST = 8
"""A centroid of fewer samples is left out: every device gets the directory, and it should show nobody's sample."""
_BATCH = 1024


def directory_of(model: Recommender, held_out: SampleBatch | None) -> npt.NDArray[np.float16] | None:
    """float16 [k, width], about of unit length; the same for the same model and samples. None: there are too few."""
    if held_out is None or len(held_out) < LEAST:
        return None
    given = inputs_of(model, held_out)
    parts = []
    with torch.no_grad():
        for start in range(0, len(held_out), _BATCH):
            batch = {name: value[start : start + _BATCH] for name, value in given.items()}
            parts.append(model.encode(**batch).numpy())
    return clustered(np.concatenate(parts).astype(np.float32))


def clustered(embeddings: Float32) -> npt.NDArray[np.float16] | None:
    """Spherical k-means (`device_runtime.query.centroids`). embeddings: float32 [n, width], unit rows."""
    count = min(MOST, max(1, len(embeddings) // EACH))
    found = centroids(embeddings, count, np.random.default_rng(0))
    members = np.bincount((embeddings @ found.T).argmax(1), minlength=len(found))
    stay = found[members >= LEAST].astype(np.float16)
    return stay if len(stay) else None
