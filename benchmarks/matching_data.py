"""Vectors that lie like embeddings of a recommender's samples, written once and mapped by everybody who needs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from device_runtime.samples import Float32

TASTES = 4
"""Clusters that a contributor's samples come from."""
PER_CONTRIBUTOR = 100
CENTROIDS = 8
"""Vectors that a device asks with at once."""
_INNER = 16
"""Dimensions in which a cluster extends; it is flat in the others but for a tenth."""
_CHUNK = 250_000


class Mixture:
    """Gaussian clusters on the unit sphere: centres drawn evenly, sizes by Zipf's law, each stretched along 16 random
    directions of its own. One cluster a thousand samples, from 500 to 5,000."""

    def __init__(self, samples: int, dim: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.dim = dim
        self.clusters = int(np.clip(samples // 1000, 500, 5000))
        self.centres = rng.normal(size=(self.clusters, dim)).astype(np.float32)
        self.centres /= np.linalg.norm(self.centres, axis=1, keepdims=True)
        inner = min(_INNER, dim)
        self.spread = rng.normal(size=(self.clusters, inner, dim)).astype(np.float32) * (0.6 / np.sqrt(inner * dim))
        weight = 1 / np.arange(1, self.clusters + 1) ** 0.7
        self.weight = weight / weight.sum()

    def of_contributors(
        self, contributors: int, each: int, rng: np.random.Generator
    ) -> tuple[Float32, npt.NDArray[np.intp]]:
        """(float32 [contributors * each, dim] unit rows, the cluster of each)."""
        tastes = rng.choice(self.clusters, (contributors, TASTES), p=self.weight)
        cluster = tastes[np.repeat(np.arange(contributors), each), rng.integers(0, TASTES, contributors * each)]
        noise = rng.normal(size=(len(cluster), self.spread.shape[1])).astype(np.float32)
        points = np.empty((len(cluster), self.dim), np.float32)
        order = np.argsort(cluster, kind="stable")
        edges = np.flatnonzero(np.diff(cluster[order], prepend=-1))
        for at in np.split(order, edges[1:]):
            points[at] = noise[at] @ self.spread[cluster[at[0]]]
        points += self.centres[cluster] + rng.normal(size=points.shape).astype(np.float32) * (0.06 / np.sqrt(self.dim))
        return points / np.linalg.norm(points, axis=1, keepdims=True), cluster


def make(folder: Path, samples: int, dim: int, devices: int, k: int, seed: int) -> None:
    """Write `vectors.npy` float32 [samples, dim], `queries.npy` [devices, 8, dim], `truth.npy` int64 [devices * 8, k].

    A contributor has 100 samples. Devices are not among them: their centroids are means of 12 samples of one taste.
    """
    mixture = Mixture(samples, dim, seed)
    rng = np.random.default_rng(seed + 1)
    vectors = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.dtype(np.float32), (samples, dim))
    for start in range(0, samples, _CHUNK):
        count = min(_CHUNK, samples - start)
        points, _ = mixture.of_contributors(-(-count // PER_CONTRIBUTOR), PER_CONTRIBUTOR, rng)
        vectors[start : start + count] = points[:count]
    queries = np.empty((devices, CENTROIDS, dim), np.float32)
    for device in range(devices):
        points, cluster = mixture.of_contributors(1, 400, rng)
        for i in range(CENTROIDS):
            taste = rng.choice(np.unique(cluster))
            mean = points[rng.permutation(np.flatnonzero(cluster == taste))[:12]].mean(0)
            queries[device, i] = mean / np.linalg.norm(mean)
    np.save(folder / "queries.npy", queries)
    np.save(folder / "truth.npy", nearest(vectors, queries.reshape(-1, dim), k))
    vectors.flush()


def nearest(vectors: Float32, queries: Float32, k: int) -> npt.NDArray[np.int64]:
    at = np.zeros((len(queries), 0), np.int64)
    best = np.zeros((len(queries), 0), np.float32)
    for start in range(0, len(vectors), 1 << 16):
        similarity = queries @ vectors[start : start + (1 << 16)].T
        few = np.argpartition(-similarity, min(k, similarity.shape[1]) - 1, axis=1)[:, :k]
        at = np.concatenate([at, few + start], 1)
        best = np.concatenate([best, np.take_along_axis(similarity, few, 1)], 1)
        order = np.argsort(-best, axis=1)[:, :k]
        at, best = np.take_along_axis(at, order, 1), np.take_along_axis(best, order, 1)
    return at
