"""Trained models on disk: what `coda train` writes and `coda export` reads.

Nothing is pickled: weights and optimizer state are safetensors, the rest is JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from safetensors.torch import load as load_safetensors

from device_runtime.bundle import Found
from device_runtime.errors import InputError, StoreError, WireError
from device_runtime.samples import Float32, SampleBatch
from device_runtime.wire import decode_contribution
from export import models
from export.models.base import Catalogue, Recommender

FORMAT = 1
CATEGORIES = "catalogue:item_categories"
"""Beside the model's own tensors in `best.safetensors`: a model can be made again only with its catalogue."""


HELD_OUT = "held-out.frame"
"""Samples that the model was validated on, as a contribution frame (docs/wire.md)."""
HELD_OUT_SAMPLES = 10_000
"""At most: drawn by the seed where there are more."""
BEYOND = "tastes.safetensors"
"""What is learned beside the model. `taste` float32 [items, width] (`cloud/tastes.py`), unless devices are better off
without; `half_life` float64 [1], days (`cloud/drift.py`); `shrinkage` and `age_shrinkage` float64 [1], samples
(`cloud/shrinkage.py`); `fitted_until` float64 [1], seconds, up to which samples were trained on."""


class TrainSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the cloud model is trained.

    validation: share of the newest events held out, by time. patience: epochs without a better validation metric
    before stopping. history: items in a history, at most.
    """

    model: str = "DIN"
    history: int = 50
    epochs: int = 12
    patience: int = 2
    batch: int = 256
    rate: float = 1e-3
    weight_decay: float = 0.5
    item_dropout: float = 0.3
    validation: float = 0.1
    seed: int = 0
    threads: int = 0


class EpochMetrics(msgspec.Struct, frozen=True):
    """epoch counts from 1. loss: mean training log loss. auc: over all validation samples; user_auc: mean of users'."""

    epoch: int
    loss: float
    auc: float
    user_auc: float


class Position(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where in an epoch a checkpoint was taken: before this step. loss: sum over the samples so far. processes: that
    divide an epoch among them; rng: JSON of the bit generator's state, of a process on its own."""

    step: int
    loss: float
    samples: int
    processes: int
    rng: str = ""


class TrainState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a checkpoint folder holds beside the tensors. data: fingerprint of the events trained on. position: in the
    epoch after those of the history; None at its beginning."""

    format: int
    settings: TrainSettings
    data: str
    dataset: str
    positive_at: float | None
    keys: tuple[str, ...]
    categories: int
    history: tuple[EpochMetrics, ...]
    best: int
    finished: bool
    position: Position | None = None


@dataclass
class Trained:
    """A trained model and what is known of it. held_out: samples that it was validated on, or some of them. tastes:
    float32 [items, width], see `cloud/tastes.py`; None where there are none. found: of the pool's offsets; the
    defaults where a folder of an older version does not say."""

    model: Recommender
    state: TrainState
    held_out: SampleBatch | None = None
    tastes: Float32 | None = None
    found: Found = field(default_factory=Found)

    @property
    def metrics(self) -> dict[str, float]:
        best = self.state.history[self.state.best - 1]
        return {"validation_auc": best.auc, "validation_user_auc": best.user_auc, "epochs": float(best.epoch)}


def load(folder: Path) -> Trained:
    """The best model of a checkpoint folder.

    Raises:
        InputError: the folder holds no checkpoint. StoreError: it is damaged.
    """
    state = read_state(folder)
    try:
        tensors = load_safetensors((folder / "best.safetensors").read_bytes())
    except OSError:
        raise InputError(f"{folder} holds no trained model; run `coda train` first") from None
    except Exception as error:
        raise StoreError(f"{folder / 'best.safetensors'} is damaged: {error}") from None
    if CATEGORIES not in tensors:
        raise StoreError(f"{folder} was written by an older version, without {CATEGORIES!r}; train again")
    catalogue = Catalogue(len(state.keys), state.categories, tensors.pop(CATEGORIES))
    model = models.create(state.settings.model, catalogue, state.settings.history)
    model.load_state_dict(tensors)
    return Trained(model.eval(), state, _held_out(folder / HELD_OUT, model), *_beyond(folder / BEYOND, state))


def _beyond(path: Path, state: TrainState) -> tuple[Float32 | None, Found]:
    """(tastes, what was found). Raises: StoreError: damaged. A folder of an older version has none."""
    if not path.exists():
        return None, Found()
    try:
        tensors = load_safetensors(path.read_bytes())
        found = Found(**{name: float(tensors[name][0]) for name in Found.__struct_fields__ if name in tensors})
    except Exception as error:
        raise StoreError(f"{path} is damaged: {error}") from None
    taste = tensors.get("taste")
    if taste is not None and len(taste) != len(state.keys):
        raise StoreError(f"{path} has {len(taste)} rows for {len(state.keys)} items; delete it and train again")
    return None if taste is None else np.asarray(taste.numpy(), np.float32), found


def _held_out(path: Path, model: Recommender) -> SampleBatch | None:
    """Raises: StoreError: damaged. A folder of an older version has none."""
    try:
        return decode_contribution(path.read_bytes(), model.schema)
    except FileNotFoundError:
        return None
    except WireError as error:
        raise StoreError(f"{path} is damaged: {error}") from None


def read_state(folder: Path) -> TrainState:
    try:
        state = msgspec.json.decode((folder / "state.json").read_bytes(), type=TrainState)
    except OSError:
        raise InputError(f"{folder} holds no trained model; run `coda train` first") from None
    except msgspec.DecodeError as error:
        raise StoreError(f"{folder / 'state.json'} is damaged or of another version: {error}") from None
    if state.format != FORMAT:
        raise StoreError(f"{folder} was written in format {state.format}; this program reads format {FORMAT}")
    return state
