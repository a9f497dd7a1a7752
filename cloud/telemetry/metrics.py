"""Counters and histograms in one block of shared memory: each worker process writes to a part of its own, whoever is
asked adds them up. Nothing is on disk, and a worker that is started anew goes on where the one before stood.

All label values are known beforehand, so every series has a fixed place; one that a client made up cannot appear.
"""

from __future__ import annotations

import bisect
import itertools
import mmap
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Family:
    """A metric. kind: `counter`, `gauge` (the sum over all workers) or `histogram`. labels: name -> its values.
    buckets: upper bounds, ascending, of a histogram; what is above all of them is counted too."""

    name: str
    kind: str
    told: str
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    buckets: Sequence[float] = ()

    @property
    def cells(self) -> int:
        """Numbers of one series: a histogram has a count for each bucket, one beyond, and the sum."""
        return len(self.buckets) + 2 if self.kind == "histogram" else 1

    def series(self) -> list[tuple[str, ...]]:
        """Label values of every series, in their order in memory."""
        return list(itertools.product(*self.labels.values()))


class Metrics:
    """The series of some families. Safe from several threads; use `of` for each process."""

    def __init__(self, families: Iterable[Family], workers: int = 1) -> None:
        self._families = {family.name: family for family in families}
        self._places: dict[tuple[str, ...], int] = {}
        size = 0
        for family in self._families.values():
            for values in family.series():
                self._places[(family.name, *values)] = size
                size += family.cells
        # anonymous and shared: processes that are forked later see the same numbers
        block = mmap.mmap(-1, 8 * size * workers)
        self._cells = np.frombuffer(block, np.float64).reshape(workers, size)
        self._own = self._cells[0]
        self._lock = threading.Lock()

    def of(self, worker: int) -> Metrics:
        """The same series, as this worker (counted from 0) writes them."""
        other = object.__new__(Metrics)
        other.__dict__ |= self.__dict__ | {"_own": self._cells[worker], "_lock": threading.Lock()}
        return other

    def add(self, name: str, *labels: str, by: float = 1.0) -> None:
        """Count. labels: values in the order of the family's labels; raises KeyError for one that is not among them."""
        place = self._places[(name, *labels)]
        with self._lock:
            self._own[place] += by

    def set(self, name: str, *labels: str, to: float) -> None:
        """Set this worker's part of a gauge."""
        self._own[self._places[(name, *labels)]] = to

    def observe(self, name: str, *labels: str, value: float) -> None:
        """Count a value in its histogram."""
        family = self._families[name]
        place = self._places[(name, *labels)]
        bucket = bisect.bisect_left(family.buckets, value)
        with self._lock:
            self._own[place + bucket] += 1
            self._own[place + family.cells - 1] += value

    def total(self, name: str, *labels: str) -> float:
        """A counter's or gauge's value, or how many values a histogram has counted."""
        counts = self._counts(name, *labels)
        return float(counts[:-1].sum() if len(counts) > 1 else counts[0])

    def mean(self, name: str, *labels: str) -> float | None:
        """Of a histogram's values; None if there are none."""
        counts = self._counts(name, *labels)
        seen = counts[:-1].sum()
        return float(counts[-1] / seen) if seen else None

    def quantile(self, name: str, *labels: str, q: float) -> float | None:
        """Of a histogram, between the bounds of the bucket that it falls into, as Prometheus estimates it."""
        counts, bounds = self._counts(name, *labels)[:-1], self._families[name].buckets
        if not counts.sum():
            return None
        rank, cumulated = q * counts.sum(), np.cumsum(counts)
        bucket = int(np.searchsorted(cumulated, rank))
        if bucket >= len(bounds):
            return float(bounds[-1])
        low = bounds[bucket - 1] if bucket else 0.0
        before = cumulated[bucket - 1] if bucket else 0.0
        return float(low + (bounds[bucket] - low) * (rank - before) / max(counts[bucket], 1))

    def distribution(self, name: str, *labels: str) -> tuple[tuple[str, float], ...]:
        """A histogram's counts, not cumulated, each with its bucket's upper bound as text; "" is beyond all bounds."""
        bounds = [*(f"{bound:g}" for bound in self._families[name].buckets), ""]
        return tuple(zip(bounds, self._counts(name, *labels)[:-1].tolist(), strict=True))

    def text(self, gauges: Iterable[tuple[Family, Mapping[tuple[str, ...], float]]] = ()) -> str:
        """Everything in Prometheus' text format 0.0.4. gauges: beside the own families, families with values by their
        labels' values."""
        lines: list[str] = []
        for family in self._families.values():
            lines += _head(family)
            for values in family.series():
                lines += _series(family, values, self._counts(family.name, *values))
        for family, found in gauges:
            lines += _head(family)
            lines += [f"{family.name}{_labels(family, values)} {number:.10g}" for values, number in found.items()]
        return "\n".join(lines) + "\n"

    def _counts(self, name: str, *labels: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        place = self._places[(name, *labels)]
        counts: np.ndarray[tuple[int], np.dtype[np.float64]] = self._cells[
            :, place : place + self._families[name].cells
        ].sum(0)
        return counts


def _head(family: Family) -> list[str]:
    return [f"# HELP {family.name} {family.told}", f"# TYPE {family.name} {family.kind}"]


def _series(family: Family, values: tuple[str, ...], counts: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[str]:
    if family.kind != "histogram":
        return [f"{family.name}{_labels(family, values)} {counts[0]:.10g}"]
    bounds = [*(f"{bound:.10g}" for bound in family.buckets), "+Inf"]
    cumulated = np.cumsum(counts[:-1])
    lines = [
        f"{family.name}_bucket{_labels(family, values, le=bound)} {number:.10g}"
        for bound, number in zip(bounds, cumulated, strict=True)
    ]
    lines.append(f"{family.name}_sum{_labels(family, values)} {counts[-1]:.10g}")
    lines.append(f"{family.name}_count{_labels(family, values)} {cumulated[-1]:.10g}")
    return lines


def _labels(family: Family, values: tuple[str, ...], **more: str) -> str:
    named = {**dict(zip(family.labels, values, strict=True)), **more}
    return "{" + ",".join(f'{name}="{value}"' for name, value in named.items()) + "}" if named else ""
