from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from device_runtime.bundle import Manifest, RoundSettings
from device_runtime.engines import Engine, open_engine
from device_runtime.identity import Signer
from export.models.base import Catalogue
from export.models.din import DIN
from export.package import Source, build

ITEMS, CATEGORIES, HISTORY = 300, 7, 6


@pytest.fixture(scope="session")
def small_din() -> DIN:
    torch.manual_seed(3)
    categories = torch.randint(0, CATEGORIES, (ITEMS, 4))
    categories[0] = 0
    return DIN(Catalogue(ITEMS, CATEGORIES, categories), history=HISTORY, embedding=4, attention=5)


@pytest.fixture(scope="session")
def engines() -> list[Engine]:
    """Both engines that bundles are lowered for; a missing one is a failure, not a skip."""
    return [open_engine("onnx"), open_engine("executorch")]


@pytest.fixture(scope="session")
def bundle(small_din: DIN, engines: list[Engine], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """A signed bundle of a small, untrained model, and its manifest."""
    folder = tmp_path_factory.mktemp("bundle")
    keys = ["", *(f"item-{i}" for i in range(1, ITEMS))]
    source = Source("toy", "DIN", small_din, keys, 4.0, {"validation_auc": 0.5}, RoundSettings())
    signer = Signer.create(folder / "release.key")
    manifest = build(
        source,
        folder / "bundle",
        version=3,
        signer=signer,
        answer_key=Signer.create(folder / "answer.key").public,
        engines=engines,
        progress=lambda _: None,
    )
    return folder / "bundle", manifest


def random_features(rng: np.random.Generator, count: int, rows: int = ITEMS) -> dict[str, np.ndarray]:
    history = rng.integers(1, rows, (count, HISTORY))
    history[np.arange(HISTORY) >= rng.integers(0, HISTORY + 1, (count, 1))] = 0
    return {"item": rng.integers(1, rows, count), "history": history}
