"""Scores for the app, by the weights that serve; and how well they rank a user's later events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from device_runtime import personalize
from device_runtime.errors import InputError
from device_runtime.home import DeviceHome
from device_runtime.local import as_stream, known_events, local_samples
from device_runtime.metrics import auc, log_loss
from device_runtime.model import VOCABULARY, Model, Weights, personal_table
from device_runtime.samples import Column, Float32, Int32, Ragged, SampleBatch
from device_runtime.store import Event
from device_runtime.stream import Events, samples


@dataclass(frozen=True)
class Ranked:
    """rank: from 1. score: probability of a like."""

    rank: int
    item: str
    score: float


class Accuracy(msgspec.Struct, frozen=True):
    """auc: None where only one class is present."""

    auc: float | None
    log_loss: float


class Evaluation(msgspec.Struct, frozen=True):
    """The user's later events under three sets of weights: the bundle's, those tuned on local samples alone by the same
    settings, and those that serve. unknown: events of items that the catalogue does not have; they do not count."""

    held_out: int
    unknown: int
    cloud: Accuracy
    local: Accuracy
    coda: Accuracy


def rank(home: DeviceHome, model: Model, weights: Weights, items: Sequence[str] | None, top: int) -> list[Ranked]:
    """The best `top` of the given items, or of all whose rows are on the device and that the user has no event of.

    Raises:
        InputError: none of the given items is known here.
    """
    stream, _ = known_events(home, model)
    catalogue: dict[str, int] = {}
    if items is None:
        for number in model.held():
            shard = model.shard(number)
            catalogue |= dict(zip(shard.keys, shard.ids.tolist(), strict=True))
        seen = set(home.store.items())
        catalogue = {key: i for key, i in catalogue.items() if key not in seen}
    else:
        held = set(model.held())
        catalogue = model.ids_of([key for key in items if set(model.shards_for([key])) <= held])
    if not catalogue:
        raise InputError("there is nothing to rank: none of these items has its row on this device")
    keys = list(catalogue)
    batch = _for_user(model, stream, np.array([catalogue[key] for key in keys], np.int32))
    table = model.table(batch.ids(VOCABULARY), weights)
    logit = model.logits(batch, table, weights)
    best = np.argsort(-logit, kind="stable")[:top]
    return [Ranked(n + 1, keys[i], float(1 / (1 + np.exp(-logit[i])))) for n, i in enumerate(best.tolist())]


def _for_user(model: Model, stream: Events, items: Int32) -> SampleBatch:
    """Each item with the user's newest history, which is stored once."""
    liked = stream.item[(stream.label >= 0.5) & stream.observed][-model.manifest.schema["history"].bound :]
    zeros = np.zeros(len(items), np.int32)
    columns: dict[str, Column] = {
        "item": items,
        "history": Ragged(liked, zeros, np.full(len(items), len(liked), np.int32)),
    }
    return SampleBatch(model.manifest.schema, columns, np.zeros(len(items), np.float32))


def evaluate(home: DeviceHome, model: Model, later: list[Event], seed: int) -> Evaluation:
    """How well later events are ranked. Their histories are the local ones and what was liked strictly before each.

    Raises:
        InputError: no later event can be used, or one is not later than the device's newest.
    """
    stored = home.store.events()
    newest = max((event.timestamp for event in stored), default=0)
    if any(event.timestamp <= newest for event in later):
        raise InputError("a held-out event is not later than the device's own newest; that would be a leak")
    stream, _ = as_stream(model, stored + later)
    everything = samples(stream, model.manifest.schema)
    tested = everything.take(stream.timestamp > newest)
    if not len(tested):
        raise InputError("none of the held-out events has a label and an item that the catalogue knows")
    local = local_samples(home, model)
    active = home.active_weights(model)
    ids = everything.ids(VOCABULARY)
    base = model.table(ids, model.base)
    rng = np.random.default_rng(seed)
    settings = model.manifest.settings
    alone = personalize.tune(model, model.base, base, local.train, None, settings, rng, local.held_out).weights
    return Evaluation(
        len(tested),
        len(later) - len(tested),
        _accuracy(tested.labels, model.logits(tested, base, model.base)),
        _accuracy(tested.labels, model.logits(tested, personal_table(base, alone), alone)),
        _accuracy(tested.labels, model.logits(tested, model.table(ids, active), active)),
    )


def _accuracy(labels: Float32, logits: Float32) -> Accuracy:
    return Accuracy(auc(labels, logits), log_loss(labels, logits))
