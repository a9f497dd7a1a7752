"""The cloud model: trained on everybody's samples, validated on the newest, saved as a checkpoint folder.

Each minibatch sees only the rows that it mentions, as a device's step graph does; the optimizer moves all of them.

FOLDER/newest.safetensors   weights, optimizer, random state and, as metadata, where training was: one file, so that a
                            run which is killed goes on from a moment that was
FOLDER/best.safetensors     the weights of the best epoch
FOLDER/state.json           what is known of the epochs that are done
FOLDER/held-out.frame       samples that it was validated on
FOLDER/tastes.safetensors   what `cloud.tastes`, `drift` and `shrinkage` have learned beyond the best weights
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor
from torch.func import functional_call

from cloud import drift, shrinkage, tastes
from cloud.datasets import Dataset, StreamedDataset
from cloud.distributed import ALONE, Team
from cloud.training_sets import TrainingSet, some_events, training_set
from device_runtime.bundle import Found, write_atomically
from device_runtime.errors import InputError, StoreError
from device_runtime.metrics import auc, mean_user_auc
from device_runtime.samples import Float32, SampleBatch
from device_runtime.stream import samples
from device_runtime.tables import LocalTable, features
from device_runtime.wire import encode_contribution
from export import models
from export.checkpoint import (
    BEYOND,
    CATEGORIES,
    FORMAT,
    HELD_OUT,
    HELD_OUT_SAMPLES,
    EpochMetrics,
    Position,
    Trained,
    TrainSettings,
    TrainState,
    load,
)
from export.models.base import Catalogue, Recommender
from export.step import weighted_log_loss

Progress = Callable[[int, int, float], None]
"""Called with (epoch, share of the epoch done in thousandths, running loss)."""
SAVE_EVERY = 300.0
"""Seconds between checkpoints within an epoch, at least."""
TASTED = 1_000_000
"""Events of a data set on disk that tastes are learned from, at most, about: of contributors drawn."""
_NEWEST, _BEST, _STATE = "newest.safetensors", "best.safetensors", "state.json"
_RANDOM = "random"


def train(
    dataset: Dataset | StreamedDataset,
    out: Path,
    settings: TrainSettings,
    progress: Progress = lambda *_: None,
    *,
    team: Team = ALONE,
    initial: Mapping[str, Tensor] | None = None,
    save_every: float = SAVE_EVERY,
) -> Trained:
    """Train, or go on from the checkpoint in `out` if it is of the same data and settings.

    team: the processes that train together; all call this with the same arguments, and only its leader touches `out`.
    initial: weights to start from, by name; default: drawn by the seed. save_every: seconds between checkpoints within
    an epoch, at least.

    Raises:
        InputError: too few events, validation events of one class only, or a checkpoint of something else.
        StoreError: the checkpoint or the data set is damaged, or the disk refuses. Unreachable: another process ended.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    model = new_model(dataset, settings)
    if initial is not None:
        model.load_state_dict(dict(initial))
    parts = training_set(dataset, model.schema, settings)
    # fused: one pass over the catalogue a step instead of a dozen
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.rate, weight_decay=settings.weight_decay, fused=True)
    fresh = TrainState(
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
    team.check_same("the data or the settings", msgspec.json.encode(fresh))
    run = _Run(model, optimizer, parts, _catalogue(dataset), fresh, out, team, save_every, progress)
    run.take_up(_saved(out) if team.leads else None)
    if team.leads:
        write_atomically(out / HELD_OUT, encode_contribution(_some(parts.held_out, settings)))
    while not run.state.finished and len(run.state.history) < settings.epochs:
        run.epoch()
    team.check_same("the trained model", *(t.numpy().tobytes() for t in model.state_dict().values()))
    if not team.leads:
        return Trained(model.eval(), run.state)
    if not (out / BEYOND).exists():
        _save_beyond(out, dataset, parts)
    return load(out)


def _save_beyond(out: Path, dataset: Dataset | StreamedDataset, parts: TrainingSet) -> None:
    best, held_out = load(out).model, parts.held_out
    events = some_events(dataset, TASTED) if isinstance(dataset, StreamedDataset) else dataset.events
    logits = predict(best, samples(events, best.schema))
    found = tastes.learn(events.contributor, events.item, events.label, logits, len(dataset.items))
    days = drift.half_life(events.contributor, events.item, events.timestamp, events.label)
    count = shrinkage.shrinkage(np.asarray(held_out.columns["item"]), held_out.labels, predict(best, held_out))
    crowd = shrinkage.age_shrinkage(events.contributor)
    numbers = msgspec.structs.asdict(Found(days, count, crowd, float(parts.fitted_until)))
    held = {name: torch.tensor([n], dtype=torch.float64) for name, n in numbers.items()}
    if found is not None:
        held["taste"] = torch.from_numpy(found)
    write_atomically(out / BEYOND, save_safetensors(held))


def predict(model: Recommender, held_out: SampleBatch, batch: int = 1024) -> Float32:
    """Logits, float32 [n]."""
    found = []
    model.eval()
    with torch.no_grad():
        for start in range(0, len(held_out), batch):
            found.append(_forward(model, held_out.take(slice(start, start + batch)))[0].numpy())
    return np.concatenate(found) if found else np.zeros(0, np.float32)


@dataclass
class _Run:
    """A training under way. state: as of the last checkpoint, or of none."""

    model: Recommender
    optimizer: torch.optim.Optimizer
    parts: TrainingSet
    catalogue: Catalogue
    state: TrainState
    out: Path
    team: Team
    save_every: float
    progress: Progress

    def take_up(self, saved: bytes | None) -> None:
        """Go on from what the leader has saved; without it, all start from the leader's weights.

        Raises: InputError: it is of something else. StoreError: it is damaged.
        """
        found = self.team.handed_out(saved)
        if found is None:
            weights = self.team.handed_out(save_safetensors(_copied(self.model)) if self.team.leads else None)
            assert weights is not None
            self.model.load_state_dict(load_safetensors(weights))
            return
        state, tensors = _opened(found, self.out)
        if (state.settings, state.data) != (self.state.settings, self.state.data):
            raise InputError(
                f"{self.out} holds a checkpoint of other data or settings; choose another folder, or delete it"
            )
        if state.position is not None and state.position.processes != self.team.share.of:
            raise InputError(
                f"{self.out} was left in mid-epoch by {state.position.processes} processes, which divide an epoch in "
                f"their own way; start as many, not {self.team.share.of}"
            )
        self.model.load_state_dict(_part(tensors, "weights:"))
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(tensors, "state:").items():
            index, slot = name.split(":")
            slots.setdefault(int(index), {})[slot] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": slots})
        torch.set_rng_state(tensors[_RANDOM])
        self.state = state
        if self.team.leads and state.history:  # it may have been killed before it wrote this
            write_atomically(self.out / _STATE, msgspec.json.encode(msgspec.structs.replace(state, position=None)))

    def epoch(self) -> None:
        """One epoch from where it stands, its validation, and a checkpoint."""
        number = len(self.state.history) + 1
        loss = self._steps(number)
        scores = self._validation()
        held_out, settings = self.parts.held_out, self.state.settings
        found = EpochMetrics(
            number,
            loss,
            auc(held_out.labels, scores) or 0.5,
            mean_user_auc(self.parts.held_users, held_out.labels, scores) or 0.5,
        )
        history = (*self.state.history, found)
        best = max(history, key=lambda m: m.auc).epoch
        finished = number - best >= settings.patience or number == settings.epochs
        self.state = msgspec.structs.replace(self.state, history=history, best=best, finished=finished, position=None)
        if self.team.leads:
            if best == number:
                kept = {**_copied(self.model), CATEGORIES: self.catalogue.item_categories}
                write_atomically(self.out / _BEST, save_safetensors(kept))
            self._save(self.state)
            write_atomically(self.out / _STATE, msgspec.json.encode(self.state))

    def _steps(self, number: int) -> float:
        """Train for the rest of an epoch; gives its mean loss."""
        settings, share = self.state.settings, self.team.share
        rng = np.random.default_rng([settings.seed, number])
        order = self.parts.epoch(rng, settings.batch, share)
        first, total, done = 0, 0.0, 0
        if (at := self.state.position) is not None:
            first, total, done = at.step, at.loss, at.samples
            if self.team.alone:
                rng.bit_generator.state = json.loads(at.rng)
        saved = time.monotonic()
        batches = order.batches(first)
        self.model.train()
        for step in range(first, order.steps):
            if self.team.leads and step > first and time.monotonic() - saved >= self.save_every:
                self._save(msgspec.structs.replace(self.state, position=self._position(step, total, done, rng)))
                saved = time.monotonic()
            if not self.team.alone:  # no process knows the others' random state, so all can tell it from the step
                rng = np.random.default_rng([settings.seed, number, step, share.rank])
                # torch.manual_seed also seeds accelerators, and notes a stack for each: a tenth of a step
                torch.default_generator.manual_seed(int(rng.integers(1 << 62)))
            loss, count = self._step(next(batches, None), rng)
            total, done = total + loss, done + count
            self.progress(number, int(1000 * done / order.samples), total / max(done, 1))
        return total / max(done, 1)

    def _step(self, part: SampleBatch | None, rng: np.random.Generator) -> tuple[float, int]:
        """One update. part: None where this process has no samples left, but others have. Gives (sum of losses,
        samples) of all processes."""
        model, sliced = self.model, self.model.sliced
        self.optimizer.zero_grad()
        dense = [p for n, p in model.named_parameters() if n not in sliced]
        tables = {n: p for n, p in model.named_parameters() if n in sliced}
        if part is None:
            nothing = [torch.zeros((0, *p.shape[1:])) for p in tables.values()]
            found = self.team.average(dense, list(tables.values()), torch.zeros(0, dtype=torch.int64), nothing, 0.0, 0)
        else:
            logits, rows, at = _forward(model, part, self.state.settings.item_dropout, rng)
            labels = torch.from_numpy(part.labels)
            loss = weighted_log_loss(logits, labels, torch.ones_like(labels))
            loss.backward()  # type: ignore[no-untyped-call]
            slopes = [_slope(rows[n]) for n in tables]
            found = self.team.average(
                dense, list(tables.values()), at, slopes, float(loss.detach()), len(part)
            )  # fmt: skip
        self.optimizer.step()
        return found

    def _validation(self) -> Float32:
        """Logits of all that is held out, each process having computed its share."""
        held_out, share = self.parts.held_out, self.team.share
        start, stop = (len(held_out) * rank // share.of for rank in (share.rank, share.rank + 1))
        return self.team.gathered(predict(self.model, held_out.take(slice(start, stop))))

    def _position(self, step: int, loss: float, samples: int, rng: np.random.Generator) -> Position:
        state = json.dumps(rng.bit_generator.state) if self.team.alone else ""
        return Position(step, loss, samples, self.team.share.of, state)

    def _save(self, state: TrainState) -> None:
        held = {f"weights:{n}": t for n, t in _copied(self.model).items()} | {_RANDOM: torch.get_rng_state()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            held |= {f"state:{index}:{slot}": value.clone() for slot, value in slots.items()}
        data = save_safetensors(held, {"state": msgspec.json.encode(state).decode()})
        write_atomically(self.out / _NEWEST, data)


def _forward(
    model: Recommender, part: SampleBatch, item_dropout: float = 0.0, rng: np.random.Generator | None = None
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """(logits, rows of sliced tensors that were looked at, their ids).

    item_dropout: share of the rows whose own embedding is hidden, so that the model learns to judge an item that it has
    not seen by its categories.
    """
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    wanted = part.ids("item")
    table = LocalTable(np.concatenate(([0], wanted)).astype(np.int32), {})
    at = torch.from_numpy(table.ids.astype(np.int64))
    rows = {n: tensors[n].detach().index_select(0, at).requires_grad_(tensors[n].requires_grad) for n in model.sliced}
    sliced = rows
    if item_dropout and rng is not None:
        shown = torch.from_numpy((rng.random((len(table), 1)) >= item_dropout).astype(np.float32))
        sliced = {n: t * shown if t.is_floating_point() else t for n, t in rows.items()}
    given = {n: torch.from_numpy(v) for n, v in features(part, {"item": table}).items()}
    output: Tensor = functional_call(model, sliced, (), given)
    return output, rows, at


def _slope(rows: Tensor) -> Tensor:
    return torch.zeros_like(rows) if rows.grad is None else rows.grad


def _some(held_out: SampleBatch, settings: TrainSettings) -> SampleBatch:
    """What an exporter measures the loss of narrower weights on."""
    count = min(len(held_out), HELD_OUT_SAMPLES)
    chosen = np.random.default_rng(settings.seed).choice(len(held_out), count, replace=False)
    return held_out.take(np.sort(chosen))


def _catalogue(dataset: Dataset | StreamedDataset) -> Catalogue:
    return Catalogue(
        len(dataset.items), len(dataset.categories), torch.from_numpy(dataset.item_categories.astype(np.int64))
    )


def new_model(dataset: Dataset | StreamedDataset, settings: TrainSettings) -> Recommender:
    """A model for this vocabulary, its weights drawn by the seed. Raises: InputError: there is no such model."""
    torch.manual_seed(settings.seed)
    return models.create(settings.model, _catalogue(dataset), settings.history)


def _fingerprint(dataset: Dataset | StreamedDataset) -> str:
    if isinstance(dataset, StreamedDataset):
        return dataset.fingerprint if dataset.until is None else f"{dataset.fingerprint}-until-{dataset.until}"
    digest = hashlib.sha256()
    events = dataset.events
    arrays: tuple[npt.NDArray[np.generic], ...] = (events.contributor, events.item, events.timestamp, events.label)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _copied(model: Recommender) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


def _saved(out: Path) -> bytes | None:
    try:
        return (out / _NEWEST).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot read {out / _NEWEST}: {error.strerror}") from None


def _opened(data: bytes, out: Path) -> tuple[TrainState, dict[str, Tensor]]:
    """Raises: StoreError: damaged, or of another version."""
    try:
        tensors = load_safetensors(data)
        length = int.from_bytes(data[:8], "little")  # safetensors gives metadata of files only
        state = json.loads(data[8 : 8 + length]).get("__metadata__", {}).get("state")
        if state is None:
            raise StoreError(f"{out / _NEWEST} was written by an older version; choose another folder, or delete it")
        return msgspec.json.decode(state, type=TrainState), tensors
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(f"{out / _NEWEST} is damaged: {error}; delete {out}, and train again") from None


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
