"""The cloud model: it learns, it stops, it goes on where it was stopped."""

import dataclasses
import signal
import subprocess
import sys
import time

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import save as save_file

from cloud import drift, shrinkage, tastes, training
from cloud.datasets import read
from cloud.training import predict, train
from cloud.training_sets import training_set
from device_runtime.bundle import Found, RoundSettings
from device_runtime.cli import main
from device_runtime.errors import InputError, StoreError
from device_runtime.metrics import auc
from device_runtime.stream import samples
from export.checkpoint import BEYOND, HELD_OUT, TrainSettings, load
from export.models import MODELS
from export.package import Source
from tests.conftest import write_tastes

SETTINGS = TrainSettings(epochs=4, patience=4, history=8, rate=5e-3, seed=1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return read(*write_tastes(tmp_path_factory.mktemp("tastes")))


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    return train(dataset, tmp_path_factory.mktemp("model"), SETTINGS)


def test_it_learns_tastes_it_was_not_told(trained):
    losses = [epoch.loss for epoch in trained.state.history]
    assert losses == sorted(losses, reverse=True)
    assert trained.metrics["validation_auc"] > 0.6, "known tastes, nine likes in ten"


def test_validation_is_later_than_training(dataset, trained):
    cut = np.quantile(dataset.events.timestamp, 1 - SETTINGS.validation)
    newest = dataset.events.timestamp > cut
    held_out = samples(dataset.events, trained.model.schema).take(newest)
    best = trained.state.history[trained.state.best - 1]
    assert auc(held_out.labels, predict(trained.model, held_out)) == pytest.approx(best.auc, abs=1e-6)


def test_what_it_was_validated_on_stays_beside_it(dataset, trained, tmp_path, monkeypatch):
    """For the exporter, which measures on it what narrower weights cost."""
    held_out = training_set(dataset, trained.model.schema, SETTINGS).held_out
    kept = trained.held_out
    assert len(kept) == len(held_out)
    np.testing.assert_array_equal(kept.labels, held_out.labels)
    np.testing.assert_allclose(predict(trained.model, kept), predict(trained.model, held_out), atol=1e-5)
    monkeypatch.setattr(training, "HELD_OUT_SAMPLES", 7)
    some = training._some(held_out, SETTINGS)
    assert len(some) == 7 and set(some.columns["item"]) <= set(held_out.columns["item"])


def test_a_bundle_has_what_training_found_of_the_pool_unless_it_is_told(trained):
    found = dataclasses.replace(trained, found=Found(64.0, shrinkage=3.0, age_shrinkage=400.0, fitted_until=1e9))
    for given, meant in (
        (RoundSettings(), (64, 3, 400, 1e9)),
        (RoundSettings(half_life=0.0), (0, 3, 400, 1e9)),
        (RoundSettings(half_life=0.0, shrinkage=7.0, age_shrinkage=9.0, fitted_until=0.0), (0, 7, 9, 0)),
    ):
        source = Source.of(found, given)
        assert source.settings == given, "what is left open stays so for the next model"
        used = source.found.completing(source.settings)
        assert (used.half_life, used.shrinkage, used.age_shrinkage, used.fitted_until) == meant


def test_what_is_learned_beside_the_model_stays_beside_it_and_damaged_ones_are_refused(trained, dataset, tmp_path):
    out = tmp_path / "model"
    made = train(dataset, out, msgspec.structs.replace(SETTINGS, epochs=1))
    assert (out / BEYOND).exists()
    assert made.tastes is None or made.tastes.shape == (len(dataset.items), tastes.WIDTH)
    events = dataset.events
    days = drift.half_life(events.contributor, events.item, events.timestamp, events.label)
    parts = training_set(dataset, made.model.schema, SETTINGS)
    held_out = parts.held_out
    assert len(held_out) == np.count_nonzero(events.timestamp > parts.fitted_until)
    logits = predict(made.model, held_out)
    count = shrinkage.shrinkage(held_out.columns["item"], held_out.labels, logits)
    assert made.found == Found(days, count, shrinkage.age_shrinkage(events.contributor), parts.fitted_until)
    written = {"taste": torch.ones(len(dataset.items), 2)}
    written |= {"half_life": torch.tensor([64.0]), "shrinkage": torch.tensor([3.0])}
    (out / BEYOND).write_bytes(save_file(written))
    again = load(out)
    assert again.tastes.shape == (len(dataset.items), 2)
    assert again.found == Found(64.0, 3.0), "a folder of before has no shrinkage of ages, nor a time"
    (out / BEYOND).write_bytes(save_file({"taste": torch.ones(3, 2)}))
    with pytest.raises(StoreError, match=r"3 rows for \d+ items; delete it"):
        load(out)
    (out / BEYOND).write_bytes(b"no tensors")
    with pytest.raises(StoreError, match="damaged"):
        load(out)
    (out / BEYOND).unlink()
    older = load(out)
    assert (older.tastes, older.found) == (None, Found())


def test_the_same_seed_gives_the_same_model(dataset, trained, tmp_path):
    again = train(dataset, tmp_path / "again", SETTINGS)
    assert again.state.history == trained.state.history
    other = train(dataset, tmp_path / "other", msgspec.structs.replace(SETTINGS, seed=2))
    assert other.state.history != trained.state.history


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(dataset, trained, tmp_path):
    class Stopped(Exception):
        pass

    def stop(epoch, thousandths, loss):
        if epoch == 3:
            raise Stopped

    with pytest.raises(Stopped):
        train(dataset, tmp_path, SETTINGS, stop)
    resumed = train(dataset, tmp_path, SETTINGS)
    assert resumed.state.history == trained.state.history
    for name, value in trained.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_run_that_is_killed_in_mid_epoch_ends_with_the_same_weights(tmp_path, streamed):
    """SIGKILL from outside, at a moment that nobody chose; saved every few steps as a long epoch is by the minute."""
    table, items = write_tastes(tmp_path)
    data, words = tmp_path / "data", ["--interactions", str(table), "--items", str(items)]
    assert main(["data", "prepare", *words, "--out", str(data), *(["--stream"] if streamed else [])]) == 0

    def command(out):
        return [
            sys.executable, "-m", "device_runtime", "train", "--data", str(data), "--out", str(out),
            "--epochs", "3", "--batch", "16", "--threads", "1", "--history", "8", "--save-every", "0.02",
        ]  # fmt: skip

    whole = tmp_path / "whole"
    subprocess.run(command(whole), check=True, capture_output=True)
    out, kills, marks = tmp_path / "killed", 0, []
    while kills < 3:
        running = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = (out / "newest.safetensors").stat().st_mtime_ns if kills else 0
        while not (out / "newest.safetensors").exists() or (out / "newest.safetensors").stat().st_mtime_ns == before:
            assert running.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
        time.sleep(0.1)
        running.kill()
        assert running.wait() == -signal.SIGKILL, "it ended before it could be killed"
        kills += 1
        marks.append(training._opened((out / "newest.safetensors").read_bytes(), out)[0].position)
    assert any(mark is not None and mark.step > 0 for mark in marks), "no kill met the middle of an epoch"
    subprocess.run(command(out), check=True, capture_output=True)
    one, other = load(whole), load(out)
    assert other.state == one.state
    for name, value in one.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value), name


def test_what_a_kill_kept_from_being_written_is_written_by_the_next_run(dataset, tmp_path):
    once = msgspec.structs.replace(SETTINGS, epochs=1)
    before = train(dataset, tmp_path, once).state
    (tmp_path / "state.json").unlink()
    assert train(dataset, tmp_path, once).state == before


def test_a_checkpoint_that_is_damaged_or_of_an_older_version_is_not_continued(dataset, tmp_path):
    once = msgspec.structs.replace(SETTINGS, epochs=1)
    train(dataset, tmp_path, once)
    newest = tmp_path / "newest.safetensors"
    newest.write_bytes(save_file({"weights:x": torch.ones(1)}))
    with pytest.raises(StoreError, match="written by an older version"):
        train(dataset, tmp_path, once)
    newest.write_bytes(b"nonsense")
    with pytest.raises(StoreError, match="is damaged"):
        train(dataset, tmp_path, once)


def test_a_checkpoint_of_something_else_is_not_continued(dataset, tmp_path):
    train(dataset, tmp_path, msgspec.structs.replace(SETTINGS, epochs=1))
    with pytest.raises(InputError, match="other data or settings"):
        train(dataset, tmp_path, SETTINGS)


def test_it_stops_when_it_gets_no_better(dataset, tmp_path):
    settings = msgspec.structs.replace(SETTINGS, epochs=30, patience=1, rate=0.05)
    state = train(dataset, tmp_path, settings).state
    assert state.finished and len(state.history) < 30
    assert state.best == len(state.history) - 1


def test_damage_and_absence_are_said(tmp_path, dataset):
    with pytest.raises(InputError, match="run `coda train` first"):
        load(tmp_path)
    train(dataset, tmp_path, msgspec.structs.replace(SETTINGS, epochs=1))
    (tmp_path / HELD_OUT).write_bytes(b"nonsense")
    with pytest.raises(StoreError, match=r"held-out\.frame is damaged"):
        load(tmp_path)
    (tmp_path / HELD_OUT).unlink()
    assert load(tmp_path).held_out is None
    (tmp_path / "best.safetensors").write_bytes(b"nonsense")
    with pytest.raises(StoreError, match="damaged"):
        load(tmp_path)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(StoreError, match="another version"):
        load(tmp_path)


def test_too_little_to_learn_from_is_refused(dataset, tmp_path):
    few = dataset.take(np.arange(len(dataset.events)) < 50)
    with pytest.raises(InputError, match="50 events are too few"):
        train(few, tmp_path, SETTINGS)
    liked = dataset.take(dataset.events.label == 1)
    with pytest.raises(InputError, match="do not hold both labels"):
        train(liked, tmp_path, SETTINGS)


def test_a_model_is_found_by_its_name_and_an_absent_one_is_explained(dataset, tmp_path):
    for name, why in [
        ("Nothing", "there are LR, WideDeep, .*, DIN, .*or give"),
        ("no_such_module:Model", "cannot be imported"),
        ("export.models.din:relu", "not a subclass"),
    ]:
        with pytest.raises(InputError, match=why):
            train(dataset, tmp_path, msgspec.structs.replace(SETTINGS, model=name))
    named = msgspec.structs.replace(SETTINGS, model="export.models.din:DIN", epochs=1)
    assert type(train(dataset, tmp_path, named).model).__name__ == "DIN"


@pytest.mark.parametrize("name", [name for name in MODELS if name != "DIN"])
def test_every_model_trains_and_comes_back(dataset, tmp_path, name):
    trained = train(dataset, tmp_path, msgspec.structs.replace(SETTINGS, model=name, epochs=2))
    first, second = trained.state.history
    assert second.loss < first.loss
    again = load(tmp_path)
    for tensor, value in trained.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[tensor], value)
