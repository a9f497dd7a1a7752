"""A small, untrained DIN and its bundle, for what needs a real exported graph and no taste.

`make_bundle` lowers it, which takes minutes on a slow machine: tests share one, through the fixture `bundle`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from device_runtime.bundle import RoundSettings
from device_runtime.engines import open_engine
from device_runtime.identity import Signer
from device_runtime.model import VOCABULARY, Model
from device_runtime.samples import Ragged, SampleBatch
from device_runtime.tables import LocalTable

if TYPE_CHECKING:  # the ground floor's tests run where there is no torch
    from export.models.din import DIN

ITEMS, CATEGORIES, HISTORY = 300, 7, 6


def din() -> DIN:
    import torch

    from export.models.base import Catalogue
    from export.models.din import DIN

    torch.manual_seed(3)
    categories = torch.randint(0, CATEGORIES, (ITEMS, 4))
    categories[0] = 0
    return DIN(Catalogue(ITEMS, CATEGORIES, categories), history=HISTORY, embedding=4, attention=5)


def make_bundle(folder: Path) -> None:
    """`folder/bundle`, signed, for both engines."""
    from export.package import Source, build

    keys = ["", *(f"item-{i}" for i in range(1, ITEMS))]
    build(
        Source("toy", "DIN", din(), keys, 4.0, {"validation_auc": 0.5}, RoundSettings()),
        folder / "bundle",
        version=3,
        signer=Signer.create(folder / "release.key"),
        answer_key=Signer.create(folder / "answer.key").public,
        engines=[open_engine("onnx"), open_engine("executorch")],
        progress=lambda _: None,
    )


def random_features(rng: np.random.Generator, count: int, rows: int = ITEMS) -> dict[str, np.ndarray]:
    history = rng.integers(1, rows, (count, HISTORY))
    history[np.arange(HISTORY) >= rng.integers(0, HISTORY + 1, (count, 1))] = 0
    return {"item": rng.integers(1, rows, count), "history": history}


def samples(model: Model, rng: np.random.Generator, count: int, liked: float | None = None) -> SampleBatch:
    """Labels follow the item's parity, or are given."""
    item = rng.integers(1, ITEMS, count).astype(np.int32)
    label = (item % 2).astype(np.float32) if liked is None else np.full(count, liked, np.float32)
    past = rng.integers(1, ITEMS, count + 3).astype(np.int32)
    history = Ragged(past, np.arange(count, dtype=np.int32), np.full(count, 3, np.int32))
    return SampleBatch(model.manifest.schema, {"item": item, "history": history}, label)


def base_table(model: Model, *batches: SampleBatch) -> LocalTable:
    return model.table(SampleBatch.concatenate(list(batches)).ids(VOCABULARY), model.base)
