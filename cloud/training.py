"""The cloud model: trained on everybody's samples, validated on the newest, saved as a checkpoint folder.

Each minibatch sees only the rows that it mentions, as a device's step graph does: a step costs the batch, not the
catalogue.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor
from torch.func import functional_call

from cloud import tastes
from cloud.datasets import Dataset
from device_runtime.bundle import write_atomically
from device_runtime.errors import InputError
from device_runtime.metrics import auc, mean_user_auc
from device_runtime.samples import Float32, Int32, SampleBatch
from device_runtime.stream import samples
from device_runtime.tables import LocalTable, features
from device_runtime.wire import encode_contribution
from export import models
from export.checkpoint import (
    CATEGORIES,
    FORMAT,
    HELD_OUT,
    HELD_OUT_SAMPLES,
    TASTES,
    EpochMetrics,
    Trained,
    TrainSettings,
    TrainState,
    load,
    read_state,
)
from export.models.base import Catalogue, Recommender
from export.step import weighted_log_loss

Progress = Callable[[int, int, float], None]
"""Called with (epoch, share of the epoch done in thousandths, running loss)."""


def train(dataset: Dataset, out: Path, settings: TrainSettings, progress: Progress = lambda *_: None) -> Trained:
    """Train, or go on from the checkpoint in `out` if it is of the same data and settings.

    Raises:
        InputError: too few events, validation events of one class only, or a checkpoint of something else.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    fit, held_out, held_users = _split(dataset, settings)
    model = _new_model(dataset, settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.rate, weight_decay=settings.weight_decay)
    state = TrainState(
        FORMAT,
        settings,
        _fingerprint(dataset),
        dataset.name,
        dataset.positive_at,
        dataset.items,
        len(dataset.categories),
        (),
        0,
        False,
    )
    if (out / "state.json").exists():
        state = _resume(out, state, model, optimizer)
    write_atomically(out / HELD_OUT, encode_contribution(_some(held_out, settings)))
    for epoch in range(len(state.history) + 1, settings.epochs + 1):
        if state.finished:
            break
        loss = _epoch(model, optimizer, fit, settings, epoch, progress)
        scores = predict(model, held_out)
        found = EpochMetrics(
            epoch, loss, auc(held_out.labels, scores) or 0.5, mean_user_auc(held_users, held_out.labels, scores) or 0.5
        )
        history = (*state.history, found)
        best = max(history, key=lambda m: m.auc).epoch
        finished = epoch - best >= settings.patience or epoch == settings.epochs
        state = msgspec.structs.replace(state, history=history, best=best, finished=finished)
        _save(out, state, model, optimizer, _catalogue(dataset), better=best == epoch)
    if not (out / TASTES).exists():
        _save_tastes(out, dataset)
    return load(out)


def _save_tastes(out: Path, dataset: Dataset) -> None:
    best, events = load(out).model, dataset.events
    logits = predict(best, samples(events, best.schema))
    found = tastes.learn(events.contributor, events.item, events.label, logits, len(dataset.items))
    held = {} if found is None else {"taste": torch.from_numpy(found)}
    write_atomically(out / TASTES, save_safetensors(held))


def predict(model: Recommender, held_out: SampleBatch, batch: int = 1024) -> Float32:
    """Logits, float32 [n]."""
    found = []
    model.eval()
    with torch.no_grad():
        for start in range(0, len(held_out), batch):
            found.append(_logits(model, held_out.take(slice(start, start + batch))).numpy())
    return np.concatenate(found) if found else np.zeros(0, np.float32)


def _epoch(
    model: Recommender,
    optimizer: torch.optim.Optimizer,
    fit: SampleBatch,
    settings: TrainSettings,
    epoch: int,
    progress: Progress,
) -> float:
    rng = np.random.default_rng([settings.seed, epoch])
    order = rng.permutation(len(fit))
    model.train()
    total = done = 0.0
    for start in range(0, len(order), settings.batch):
        part = fit.take(order[start : start + settings.batch])
        optimizer.zero_grad()
        labels = torch.from_numpy(part.labels)
        loss = weighted_log_loss(_logits(model, part, settings.item_dropout, rng), labels, torch.ones_like(labels))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += float(loss.detach()) * len(part)
        done += len(part)
        progress(epoch, int(1000 * done / len(fit)), total / done)
    return total / max(done, 1)


def _logits(
    model: Recommender, part: SampleBatch, item_dropout: float = 0.0, rng: np.random.Generator | None = None
) -> Tensor:
    """item_dropout: share of the rows whose own embedding is hidden, so that the model learns to judge an item that
    it has not seen by its categories."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    wanted = part.ids("item")
    table = LocalTable(np.concatenate(([0], wanted)).astype(np.int32), {})
    at = torch.from_numpy(table.ids.astype(np.int64))
    sliced = {name: tensors[name].index_select(0, at) for name in model.sliced}
    if item_dropout and rng is not None:
        shown = torch.from_numpy((rng.random((len(table), 1)) >= item_dropout).astype(np.float32))
        sliced = {n: t * shown if t.is_floating_point() else t for n, t in sliced.items()}
    given = {n: torch.from_numpy(v) for n, v in features(part, {"item": table}).items()}
    output: Tensor = functional_call(model, sliced, (), given)
    return output


def _split(dataset: Dataset, settings: TrainSettings) -> tuple[SampleBatch, SampleBatch, Int32]:
    events = dataset.events
    if len(events) < 100:
        raise InputError(f"{len(events)} events are too few to train on; at least 100 are needed")
    schema = models.create(settings.model, _catalogue(dataset), settings.history).schema
    everything = samples(events, schema)
    cut = np.quantile(events.timestamp, 1 - settings.validation)
    newest = events.timestamp > cut
    for name, part in (("training", ~newest), ("validation", newest)):
        labels = events.label[part]
        if not len(labels) or labels.min() == labels.max():
            raise InputError(
                f"the {name} events ({len(labels)}) do not hold both labels; "
                "give more data, or another --validation share"
            )
    return everything.take(~newest), everything.take(newest), events.contributor[newest]


def _some(held_out: SampleBatch, settings: TrainSettings) -> SampleBatch:
    """What an exporter measures the loss of narrower weights on."""
    count = min(len(held_out), HELD_OUT_SAMPLES)
    chosen = np.random.default_rng(settings.seed).choice(len(held_out), count, replace=False)
    return held_out.take(np.sort(chosen))


def _catalogue(dataset: Dataset) -> Catalogue:
    return Catalogue(
        len(dataset.items), len(dataset.categories), torch.from_numpy(dataset.item_categories.astype(np.int64))
    )


def _new_model(dataset: Dataset, settings: TrainSettings) -> Recommender:
    torch.manual_seed(settings.seed)
    return models.create(settings.model, _catalogue(dataset), settings.history)


def _fingerprint(dataset: Dataset) -> str:
    digest = hashlib.sha256()
    events = dataset.events
    arrays: tuple[npt.NDArray[np.generic], ...] = (events.contributor, events.item, events.timestamp, events.label)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _save(
    out: Path,
    state: TrainState,
    model: Recommender,
    optimizer: torch.optim.Optimizer,
    catalogue: Catalogue,
    *,
    better: bool,
) -> None:
    weights = {n: t.detach().clone() for n, t in model.state_dict().items()}
    moments: dict[str, Tensor] = {}
    for index, slots in optimizer.state_dict()["state"].items():
        moments |= {f"{index}:{slot}": value.clone() for slot, value in slots.items()}
    if better:
        write_atomically(out / "best.safetensors", save_safetensors({**weights, CATEGORIES: catalogue.item_categories}))
    newest = {f"weights:{n}": t for n, t in weights.items()} | {f"state:{n}": t for n, t in moments.items()}
    write_atomically(out / "newest.safetensors", save_safetensors(newest))
    write_atomically(out / "state.json", msgspec.json.encode(state))


def _resume(out: Path, fresh: TrainState, model: Recommender, optimizer: torch.optim.Optimizer) -> TrainState:
    state = read_state(out)
    if (state.settings, state.data) != (fresh.settings, fresh.data):
        raise InputError(f"{out} holds a checkpoint of other data or settings; choose another folder, or delete it")
    tensors = load_safetensors((out / "newest.safetensors").read_bytes())
    model.load_state_dict(_part(tensors, "weights:"))
    whole = optimizer.state_dict()
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in _part(tensors, "state:").items():
        index, slot = name.split(":")
        slots.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({**whole, "state": slots})
    return state


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
