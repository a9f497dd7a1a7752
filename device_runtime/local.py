"""What a device's own events come to: samples for a round."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from device_runtime import personalize
from device_runtime.home import DeviceHome
from device_runtime.model import Model
from device_runtime.samples import Int64, SampleBatch
from device_runtime.store import Event, labels
from device_runtime.stream import Events, samples

NEWEST = 20_000
"""Events that rounds and rankings look at, the newest: of a user's years, more would cost minutes and teach little."""


@dataclass(frozen=True)
class Local:
    """Local samples, oldest first: those to train on and those that only the judge sees. times: int64 [train], seconds.
    unknown: events of items that the catalogue does not have."""

    train: SampleBatch
    held_out: SampleBatch
    times: Int64
    unknown: int

    @property
    def everything(self) -> SampleBatch:
        return SampleBatch.concatenate([self.train, self.held_out])


def local_samples(home: DeviceHome, model: Model, until: int | None = None) -> Local:
    """The device's labelled events as samples, cut in time into a training and a held-out part.

    until: see `known_events`.

    Raises:
        StoreError: the rows of their items have not been pulled.
    """
    stream, unknown = known_events(home, model, until)
    everything = samples(stream, model.manifest.schema)
    train, held_out = personalize.split(len(everything), model.manifest.settings.holdout)
    return Local(everything.take(train), everything.take(held_out), stream.timestamp[train], unknown)


def known_events(home: DeviceHome, model: Model, until: int | None = None) -> tuple[Events, int]:
    """The labelled events whose items the catalogue knows, ordered, and how many it does not know.

    Of the newest `NEWEST` events only. until: of those that had arrived by then (`Store.last_event`).
    """
    return as_stream(model, home.store.events(until, NEWEST))


def as_stream(model: Model, events: list[Event]) -> tuple[Events, int]:
    """Stored events as a stream; see `known_events`."""
    label = labels(events, model.manifest.positive_at)
    known = model.ids_of([event.item for event in events])
    item = np.array([known.get(event.item, 0) for event in events], np.int32)
    stream = Events(
        np.zeros(len(events), np.int32),
        item,
        np.array([event.timestamp for event in events], np.int64),
        label,
        np.array([event.observed for event in events], bool),
    )
    return stream.take((item > 0) & ~np.isnan(label)).ordered(), int((item == 0).sum())
