"""Events -> samples. The cloud builds its pool with the same function, so both sides mean the same by a history.

An event's history is what its contributor liked strictly before it: an event of the same second is not yet known.
Sampled negatives are labelled impressions that nobody saw, so they never enter a history.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from device_runtime.samples import Column, Float32, Int32, Int64, Ragged, SampleBatch, Schema


@dataclass(frozen=True)
class Events:
    """n labelled events of one or many contributors.

    contributor: int32 [n]. item: int32 [n], global ids. timestamp: int64 [n], seconds. label: float32 [n].
    observed: bool [n], False for sampled negatives.
    """

    contributor: Int32
    item: Int32
    timestamp: Int64
    label: Float32
    observed: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.item)

    def take(self, at: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> Events:
        return Events(self.contributor[at], self.item[at], self.timestamp[at], self.label[at], self.observed[at])

    def ordered(self) -> Events:
        """By contributor, then time; the order of events of the same second is kept."""
        return self.take(np.lexsort((self.timestamp, self.contributor)))


def histories(events: Events, bound: int) -> Ragged:
    """The history of each event; events must be `ordered`. Rows of one contributor share their values."""
    liked = (events.label >= 0.5) & events.observed
    before = np.concatenate(([0], np.cumsum(liked)))  # liked events before position i
    n = len(events)
    if not n:
        empty = np.zeros(0, np.int32)
        return Ragged(empty, empty, empty)
    new_contributor = np.concatenate(([True], events.contributor[1:] != events.contributor[:-1]))
    new_second = new_contributor | np.concatenate(([True], events.timestamp[1:] != events.timestamp[:-1]))
    first_of_contributor = np.maximum.accumulate(np.where(new_contributor, np.arange(n), 0))
    first_of_second = np.maximum.accumulate(np.where(new_second, np.arange(n), 0))
    start, end = before[first_of_contributor], before[first_of_second]
    return Ragged(events.item[liked], start.astype(np.int32), (end - start).astype(np.int32)).newest(bound)


def samples(events: Events, schema: Schema) -> SampleBatch:
    """Every event as a sample of the schema (features `item` and `history`); events must be `ordered`."""
    columns: dict[str, Column] = {"item": events.item, "history": histories(events, schema["history"].bound)}
    return SampleBatch(schema, columns, events.label.astype(np.float32))
