"""The example of docs/models.md, from the page to a device: trained, exported, personalized. And what is refused."""

import re
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from cloud.datasets import read
from cloud.training import train
from device_runtime.bundle import BlobStore, RoundSettings, Training
from device_runtime.engines import open_engine
from device_runtime.errors import InputError
from device_runtime.identity import Signer
from device_runtime.model import VOCABULARY, Model, Weights, personal_table
from device_runtime.personalize import tune
from device_runtime.pull import try_engine
from device_runtime.samples import Feature, Schema
from device_runtime.stream import samples
from export import models
from export.checkpoint import TrainSettings
from export.models.base import Catalogue, Recommender
from export.models.din import DIN
from export.package import Source, build
from tests.conftest import REPOSITORY, write_tastes


@pytest.fixture
def documented(tmp_path, monkeypatch):
    """The page's example as a module that can be imported."""
    page = (REPOSITORY / "docs" / "models.md").read_text()
    [code] = re.findall(r"<!-- example: my_models\.py -->\n```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_models.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_models:TwoVectors"
    sys.modules.pop("my_models", None)


def test_the_documented_model_goes_from_training_to_a_device(documented, tmp_path, rng):
    (tmp_path / "tastes").mkdir()
    dataset = read(*write_tastes(tmp_path / "tastes"))
    trained = train(dataset, tmp_path / "model", TrainSettings(model=documented, epochs=1, history=6))
    manifest, bundle = exported(trained, documented, tmp_path, Training("adamw", train="patch"))
    model = Model.open(manifest, open_engine("onnx"), BlobStore(bundle / "blobs"))
    for number, ref in enumerate(manifest.tables[VOCABULARY].shards):
        assert model.blobs.has(ref), number
    try_engine(model)
    mine = samples(dataset.events.take(dataset.events.contributor == 0), manifest.schema)
    table = model.table(mine.ids(VOCABULARY), model.base)
    found = tune(model, model.base, table, mine, None, RoundSettings(rate=0.01), rng).weights
    assert set(found.dense) == {"turn.scale", "turn.shift"}, "the frozen layers are not stored"
    assert found.rows is None
    before = model.logits(mine, table, model.base)
    after = model.logits(mine, personal_table(table, found), found)
    assert np.isfinite(after).all() and not np.allclose(before, after)
    again = Weights.from_tensors(found.tensors(), "w1")
    np.testing.assert_array_equal(model.logits(mine, table, again), after)


def exported(trained, name, folder: Path, training):
    source = Source("own", name, trained.model, trained.state.keys, None, {}, RoundSettings(rate=0.01), training)
    manifest = build(
        source,
        folder / "bundle",
        version=1,
        signer=Signer.create(folder / "release.key"),
        answer_key=Signer.create(folder / "answer.key").public,
        engines=[open_engine("onnx")],
        progress=lambda _: None,
    )
    assert manifest.training == training
    return manifest, folder / "bundle"


CATALOGUE = Catalogue(20, 3, torch.ones(20, 4, dtype=torch.int64))
ITEM, HISTORY = Feature("item", "id", "item"), Feature("history", "ids", "item", 5)


class Sound(DIN):
    def __init__(self, catalogue, history):
        super().__init__(catalogue, history, 4, 5)


class AsksForUser(Sound):
    def __init__(self, catalogue, history):
        super().__init__(catalogue, history)
        self.schema = Schema((ITEM, HISTORY, Feature("user", "id", "user")))


class NoHistory(Sound):
    def __init__(self, catalogue, history):
        super().__init__(catalogue, history)
        self.schema = Schema((ITEM,))


class OtherBound(Sound):
    def __init__(self, catalogue, history):
        super().__init__(catalogue, 9)


class NoSchema(Sound):
    def __init__(self, catalogue, history):
        super().__init__(catalogue, history)
        del self.schema


class WideFilter(Sound):
    def __init__(self, catalogue, history):
        super().__init__(catalogue, history)
        self.filter_from = self.width


class WrongWidth(Sound):
    def __init__(self, catalogue, history):
        super().__init__(catalogue, history)
        self.width += 1


class NothingSliced(Sound):
    sliced: ClassVar = {}


class AbsentSliced(Sound):
    sliced: ClassVar = {"item.weight": "item", "brand.weight": "item"}


class OtherVocabulary(Sound):
    sliced: ClassVar = {"item.weight": "shop"}


class CountsRows(Sound):
    def forward(self, item, history):
        return super().forward(item, history) + self.item.weight.sum()


class NotUnit(Sound):
    def encode(self, item, history):
        return 3 * super().encode(item, history)


class NotFinite(Sound):
    def forward(self, item, history):
        return super().forward(item, history) / (history != 0).sum(1)


class Column(Sound):
    def forward(self, item, history):
        return super().forward(item, history).unsqueeze(1)


class Fails(Sound):
    def encode(self, item, history):
        raise ValueError("out of ideas")


class NoArguments(Sound):
    def __init__(self):
        super().__init__(CATALOGUE, 5)


class NoEncode(Recommender):
    def forward(self, item, history):
        return item.float()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (AsksForUser, r"asks for a feature 'user' \(id\) that no device has: devices make `item`"),
        (NoHistory, "schema lacks history"),
        (OtherBound, "holds 9 ids, but the model was made for 5"),
        (NoSchema, r"NoSchema\.schema must be a"),
        (WideFilter, "filter_from must be a column of the embedding, from 0 to 15; it is 16"),
        (WrongWidth, r"encode must give a tensor of \[4, 17\] for 4 samples, not \[4, 16\]"),
        (NothingSliced, "sliced must name at least one parameter"),
        (AbsentSliced, r"names 'brand\.weight', but the model has only"),
        (OtherVocabulary, "by 'shop'; the only vocabulary is 'item'"),
        (CountsRows, "forward changes with the number of rows in"),
        (NotUnit, "encode must give rows of unit length"),
        (NotFinite, "forward gives numbers that are not finite"),
        (Column, r"forward must give a tensor of \[4\] for 4 samples, not \[4, 1\]"),
        (Fails, "encode.* fails: ValueError: out of ideas"),
        (NoArguments, "cannot be made by NoArguments"),
        (NoEncode, "cannot be made by NoEncode.*: .*abstract method '?encode"),
    ],
)
def test_a_model_that_no_device_could_run_is_refused_when_it_is_made(kind, message):
    with pytest.raises(InputError, match=message):
        models.create(f"{__name__}:{kind.__name__}", CATALOGUE, 5)


def test_a_sound_model_is_made():
    assert isinstance(models.create(f"{__name__}:Sound", CATALOGUE, 5), Sound)
    assert type(models.create("Wide&Deep", CATALOGUE, 5)).__name__ == "WideDeep"
