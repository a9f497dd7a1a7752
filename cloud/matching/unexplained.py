"""What a model does not explain of a pool: predicted once a segment, and kept beside it.

A segment never changes, whatever becomes hidden of it, and neither does a released model. So each sample is predicted
once, by whichever process is first, and the predictions lie beside the segment for all processes to map, as do the
profiles of its contributors. Where they cannot be written they are kept in memory.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cloud.matching.profiles import Profiles, stretches
from cloud.pool import Segment
from device_runtime.samples import Float32, Float64, Ragged, SampleBatch

Predict = Callable[[SampleBatch], Float32]
"""The cloud model's probability of a like for each sample, float32 [n]."""
_KEPT = 4
"""Predictions of so many models stay beside a segment: releases come and go, and may be rolled back."""
_log = logging.getLogger("coda.matching")


@dataclass(frozen=True)
class Unexplained:
    """Of a segment. predicted: float32 [n], the model's probabilities p. met, sums, mass: float64 [items]: samples of
    each item, and the sums of their residuals, label minus p, and of their variances, p (1 - p)."""

    predicted: Float32
    labels: Float32
    met: Float64
    sums: Float64
    mass: Float64

    @staticmethod
    def of(segment: Segment, predicted: Float32) -> Unexplained:
        item, labels = items_of(segment), segment.samples.labels
        met = np.bincount(item).astype(np.float64)
        variances = predicted * (1 - predicted)
        return Unexplained(predicted, labels, met, total(item, labels - predicted), total(item, variances))

    def residuals(self, rows: npt.NDArray[np.integer]) -> Float32:
        found: Float32 = self.labels[rows] - self.predicted[rows]
        return found

    def variances(self, rows: npt.NDArray[np.integer]) -> Float32:
        p = self.predicted[rows]
        found: Float32 = p * (1 - p)
        return found


class Knowledge:
    """`Unexplained` and `Profiles` of segments: made when first asked for, and kept as long as anybody has the
    segment's samples.

    key: a name for the model, the same for the same predictions. columns: of an embedding, that describe the person.
    """

    def __init__(self, predict: Predict, key: str, columns: int) -> None:
        self._predict, self._key, self.columns = predict, key, columns
        self._computing = threading.Lock()
        self._known: dict[int, tuple[weakref.ref[SampleBatch], Unexplained, Profiles]] = {}

    def residuals(self, segment: Segment) -> Unexplained:
        return self._of(segment)[0]

    def profiles(self, segment: Segment) -> Profiles:
        return self._of(segment)[1]

    def prepare(self, segment: Segment) -> None:
        """Put beside a segment what matching will need. For `Pool.compact`."""
        self._of(segment)

    def _of(self, segment: Segment) -> tuple[Unexplained, Profiles]:
        found = self._known.get(segment.base)
        if found is not None and found[0]() is segment.samples:
            return found[1:]
        with self._computing:
            found = self._known.get(segment.base)
            if found is None or found[0]() is not segment.samples:
                known = {base: one for base, one in self._known.items() if one[0]() is not None}
                predicted = _kept(
                    segment,
                    f"predicted-{self._key}",
                    (len(segment),),
                    lambda: predictions(segment.samples, self._predict),
                )
                ends = stretches(segment)
                vectors = _kept(
                    segment,
                    f"profiles-{self.columns}",
                    (len(ends), self.columns),
                    lambda: Profiles.of(segment, self.columns).vectors,
                )
                found = weakref.ref(segment.samples), Unexplained.of(segment, predicted), Profiles(vectors, ends)
                self._known = known | {segment.base: found}
            return found[1:]


def predictions(samples: SampleBatch, predict: Predict, at_once: int = 8192) -> Float32:
    """float32 [n]: of any number of samples."""
    parts = [predict(samples.take(slice(at, at + at_once))) for at in range(0, len(samples), at_once)]
    return np.concatenate([np.zeros(0, np.float32), *parts])


def items_of(segment: Segment) -> npt.NDArray[np.int32]:
    column = segment.samples.columns["item"]
    assert not isinstance(column, Ragged)
    return np.asarray(column, np.int32)


def total(item: npt.NDArray[np.integer], values: npt.NDArray[np.floating], count: int = 0) -> Float64:
    """float64 [items]: the sum of each item's values."""
    return np.bincount(item, values, count).astype(np.float64)


def _kept(segment: Segment, name: str, shape: tuple[int, ...], make: Callable[[], Float32]) -> Float32:
    """The array of that name beside the segment, mapped; made, and left there, if there is none. One process makes it
    while others wait."""
    if segment.folder is None or 0 in shape:
        return make()
    path = segment.folder / f"{name}.npy"
    try:
        with (segment.folder / f".{name}").open("ab") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if (found := _mapped(path, shape)) is not None:
                return found
            made = make()
            try:
                _write(path, made)
            except OSError as error:
                _log.warning("kept in memory", extra={"facts": {"file": name, "reason": error.strerror}})
                return made
            mapped = _mapped(path, shape)
            return made if mapped is None else mapped
    except OSError:  # the segment has been compacted away, and this process still has it
        return make()


def _mapped(path: Path, shape: tuple[int, ...]) -> Float32 | None:
    """None: there is none, or it is not whole."""
    try:
        found = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == np.float32 else None


def _write(path: Path, array: Float32) -> None:
    """Whole or not at all; what other models made long ago goes. Raises: OSError."""
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    alike = sorted(path.parent.glob(f"{path.stem.partition('-')[0]}-*.npy"), key=lambda one: one.stat().st_mtime)
    for old in alike[:-_KEPT]:
        old.unlink()
