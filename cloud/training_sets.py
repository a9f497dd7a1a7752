"""What training reads: batches in a seeded order, of a data set in memory or of one that is larger than it.

In memory an epoch is one permutation of all samples. On disk its order is drawn in two steps: blocks are permuted, and
the samples of every `BUFFER` blocks in turn are permuted together. So the disk is read in runs, memory is bound by the
buffer, and where all fits into one buffer the order is again uniform. Of several processes each reads its own blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cloud.datasets import Dataset, StreamedDataset
from device_runtime.errors import InputError
from device_runtime.samples import Column, Int32, Int64, Ragged, SampleBatch, Schema
from device_runtime.stream import Events, samples
from export.checkpoint import TrainSettings

BUFFER = 64
"""Blocks whose samples are shuffled together: about a million samples, some 20 bytes each."""
HELD_OUT = 1_000_000
"""Samples that a data set on disk is validated on, at most, about: of contributors drawn by the seed where there are
more."""
LEAST = 100
_BINS = 1 << 16


@dataclass(frozen=True)
class Share:
    """Process `rank` of so many."""

    rank: int = 0
    of: int = 1


@dataclass(frozen=True)
class Epoch:
    """steps: of the process that has most. samples: of all processes. batches: this process' batches from a step on;
    it may have fewer than others."""

    steps: int
    samples: int
    batches: Callable[[int], Iterator[SampleBatch]]


class TrainingSet(Protocol):
    """fitted_until: seconds, up to which samples are trained on. held_out: the later ones; held_users: int32, whose
    each is."""

    fitted_until: int
    held_out: SampleBatch
    held_users: Int32

    def epoch(self, rng: np.random.Generator, batch: int, share: Share) -> Epoch:
        """The order is drawn from `rng`, the same in every process. batch: samples of one process in a step."""


def training_set(dataset: Dataset | StreamedDataset, schema: Schema, settings: TrainSettings) -> TrainingSet:
    """Raises: InputError: too few events, or those to train or to validate on are of one class only."""
    if isinstance(dataset, StreamedDataset):
        return OnDisk(dataset, schema, settings)
    return InMemory(dataset, schema, settings)


class InMemory:
    """Raises (from the constructor): InputError: as `training_set`."""

    def __init__(self, dataset: Dataset, schema: Schema, settings: TrainSettings) -> None:
        events = dataset.events
        _refuse_few(len(events))
        everything = samples(events, schema)
        self.fitted_until = int(np.quantile(events.timestamp, 1 - settings.validation))
        newest = events.timestamp > self.fitted_until
        for name, part in (("training", ~newest), ("validation", newest)):
            _refuse_one_class(name, events.label[part])
        self.fit, self.held_out = everything.take(~newest), everything.take(newest)
        self.held_users = events.contributor[newest]

    def epoch(self, rng: np.random.Generator, batch: int, share: Share) -> Epoch:
        """Samples of a step are divided among the processes: n of batch b are trained on what one of n*b is."""
        order = rng.permutation(len(self.fit))
        stride = batch * share.of

        def batches(step: int) -> Iterator[SampleBatch]:
            for start in range(step * stride + share.rank * batch, len(order), stride):
                yield self.fit.take(order[start : start + batch])

        return Epoch(-(-len(order) // stride), len(order), batches)


class OnDisk:
    """Reads all events once, and keeps those to validate on. Raises (from the constructor): InputError: as
    `training_set`. StoreError: the data set is damaged."""

    def __init__(self, dataset: StreamedDataset, schema: Schema, settings: TrainSettings) -> None:
        _refuse_few(len(dataset))
        self._dataset, self._schema = dataset, schema
        last = int(dataset.report.last) if dataset.until is None else dataset.until
        self.fitted_until = newest_from(dataset, settings.validation, last)
        self._fit = np.zeros(dataset.blocks, np.int64)
        held, ends = 0, [np.zeros(0, np.float32)]
        for number in range(dataset.blocks):
            events = dataset.block(number)
            early = events.timestamp <= self.fitted_until
            self._fit[number] = np.count_nonzero(early)
            held += int(np.count_nonzero(~early & (events.timestamp <= last)))
            labels = events.label[early]
            ends.append(np.array([labels.min(initial=1), labels.max(initial=0)] if len(labels) else [], np.float32))
        _refuse_one_class("training", np.concatenate(ends))
        self.held_out, self.held_users = read_between(
            dataset, schema, self.fitted_until, last, min(1.0, HELD_OUT / max(held, 1)), settings.seed
        )
        _refuse_one_class("validation", self.held_out.labels)

    def epoch(self, rng: np.random.Generator, batch: int, share: Share) -> Epoch:
        present = np.flatnonzero(self._fit)
        if len(present) < share.of:
            raise InputError(
                f"{share.of} processes cannot divide {len(present)} blocks of events among them; start fewer"
            )
        order, seed = rng.permutation(present), int(rng.integers(1 << 62))

        def buffers(rank: int) -> list[Int64]:
            mine = order[rank :: share.of]
            return [mine[at : at + BUFFER] for at in range(0, len(mine), BUFFER)]

        def steps(rank: int) -> list[int]:
            return [-(-int(self._fit[blocks].sum()) // batch) for blocks in buffers(rank)]

        def batches(step: int) -> Iterator[SampleBatch]:
            for number, (blocks, count) in enumerate(zip(buffers(share.rank), steps(share.rank), strict=True)):
                if step >= count:
                    step -= count
                    continue
                buffer = self._read(blocks.tolist())
                shuffled = np.random.default_rng([seed, share.rank, number]).permutation(len(buffer))
                for start in range(step * batch, len(shuffled), batch):
                    yield buffer.take(shuffled[start : start + batch])
                step = 0

        return Epoch(max(sum(steps(rank)) for rank in range(share.of)), int(self._fit.sum()), batches)

    def _read(self, blocks: Sequence[int]) -> SampleBatch:
        parts = []
        for number in blocks:
            events = self._dataset.block(number)
            parts.append(compact(samples(events, self._schema).take(events.timestamp <= self.fitted_until)))
        return SampleBatch.concatenate(parts)


def newest_from(dataset: StreamedDataset, share: float, last: int) -> int:
    """The second after which lies this share of the events until `last`, or less where many share one second."""
    low, high = int(dataset.report.first), last
    before, total = 0, sum(int(np.count_nonzero(time <= last)) for time in dataset.timestamps())
    wanted = (1 - share) * total
    while low < high:  # each time in bins 65,536 times narrower: two or three times in all
        width = -(-(high - low + 1) // _BINS)
        count = np.zeros(_BINS, np.int64)
        for time in dataset.timestamps():
            inside = time[(time >= low) & (time <= high)]
            count += np.bincount((inside - low) // width, minlength=_BINS)
        reached = before + np.cumsum(count)
        at = int(np.searchsorted(reached, wanted))
        before = int(reached[at - 1]) if at else before
        low, high = low + at * width, min(low + (at + 1) * width - 1, high)
        if width == 1:
            break
    return low


def read_between(
    dataset: StreamedDataset, schema: Schema, after: int, last: int, share: float = 1.0, seed: int = 0
) -> tuple[SampleBatch, Int32]:
    """Samples later than `after` and not later than `last`, and whose each is; of this share of the contributors."""
    parts, users = [samples(dataset.block(0).take(np.zeros(0, np.intp)), schema)], [np.zeros(0, np.int32)]
    for number in range(dataset.blocks):
        events = dataset.block(number)
        wanted = (events.timestamp > after) & (events.timestamp <= last)
        if share < 1:
            first = int(events.contributor[0])
            drawn = np.random.default_rng([seed, number]).random(int(events.contributor[-1]) - first + 1) < share
            wanted &= drawn[events.contributor - first]
        if wanted.any():
            parts.append(compact(samples(events, schema).take(wanted)))
            users.append(events.contributor[wanted])
    return SampleBatch.concatenate(parts), np.concatenate(users)


def some_events(dataset: StreamedDataset, most: int) -> Events:
    """About so many events at most, ordered: all those that may be trained on, of contributors drawn by chance."""
    share, parts = min(1.0, most / len(dataset)), []
    last = dataset.report.last if dataset.until is None else dataset.until
    for number in range(dataset.blocks):
        events = dataset.block(number)
        first = int(events.contributor[0])
        drawn = np.random.default_rng(number).random(int(events.contributor[-1]) - first + 1) < share
        parts.append(events.take(drawn[events.contributor - first] & (events.timestamp <= last)))
    columns = ("contributor", "item", "timestamp", "label", "observed")
    return Events(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))


def compact(batch: SampleBatch) -> SampleBatch:
    """The same samples over only those values of histories that they use."""
    columns: dict[str, Column] = {n: c.compact() if isinstance(c, Ragged) else c for n, c in batch.columns.items()}
    return dataclasses.replace(batch, columns=columns)


def _refuse_few(events: int) -> None:
    if events < LEAST:
        raise InputError(f"{events} events are too few to train on; at least {LEAST} are needed")


def _refuse_one_class(name: str, labels: npt.NDArray[np.floating]) -> None:
    if not len(labels) or labels.min() == labels.max():
        raise InputError(
            f"the {name} events ({len(labels)}) do not hold both labels; give more data, or another --validation share"
        )
