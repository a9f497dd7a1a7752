"""What training reads: every sample once an epoch, in an order that the seed decides, from data larger than memory."""

import dataclasses
import itertools
import json
import subprocess
import sys

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cloud import training_sets
from cloud.datasets import columnar, prepare, preparing, read
from cloud.training import train
from cloud.training_sets import OnDisk, Share, newest_from, training_set
from device_runtime.errors import InputError
from export.checkpoint import TrainSettings
from export.models import MODELS, Catalogue
from tests.conftest import SEED, write_tastes

ALONE = Share()
SETTINGS = TrainSettings(epochs=3, patience=3, history=8, rate=5e-3, seed=1)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same events on disk, in many blocks, and in memory."""
    folder = tmp_path_factory.mktemp("both")
    tastes = write_tastes(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columnar, "BLOCK", 100)
        patch.setattr(preparing, "_ROWS", 500)
        return prepare(str(tastes[0]), folder / "out", tastes[1]), read(*tastes)


@pytest.fixture
def schema(both):
    import torch

    whole = both[1]
    categories = torch.from_numpy(whole.item_categories.astype(np.int64))
    return MODELS["DIN"](Catalogue(len(whole.items), len(whole.categories), categories), 8).schema


def rows(batches, dataset):
    """(item, history, label) of every sample, by the items' keys."""
    found = []
    for batch in batches:
        for i in range(len(batch)):
            history = tuple(dataset.items[j] for j in batch.columns["history"].row(i))
            found.append((dataset.items[batch.columns["item"][i]], history, float(batch.labels[i])))
    return found


def test_it_has_the_samples_that_memory_has(both, schema):
    streamed, whole = both
    on_disk, in_memory = (training_set(data, schema, SETTINGS) for data in both)
    disk, memory = (s.epoch(np.random.default_rng(1), 32, Share()) for s in (on_disk, in_memory))
    assert disk.samples == pytest.approx(memory.samples, abs=2), "quantiles may differ by an event"

    def all_of(source, data):
        epoch = source.epoch(np.random.default_rng(1), 32, Share())
        return sorted(rows([*epoch.batches(0), source.held_out], data))

    assert all_of(on_disk, streamed) == all_of(in_memory, whole)


@pytest.mark.parametrize("buffer", [1, 5, 1000])
def test_an_epoch_is_every_sample_once_however_many_read_it(both, schema, monkeypatch, buffer):
    monkeypatch.setattr(training_sets, "BUFFER", buffer)
    streamed, _ = both
    source = OnDisk(streamed, schema, SETTINGS)

    def epoch(seed, share=ALONE):
        return source.epoch(np.random.default_rng(seed), 32, share)

    alone = rows(epoch(1).batches(0), streamed)
    assert len(alone) == epoch(1).samples
    assert rows(epoch(1).batches(0), streamed) == alone != rows(epoch(2).batches(0), streamed)
    for of in (2, 3):
        shares = [epoch(1, Share(rank, of)) for rank in range(of)]
        counts = [len(list(share.batches(0))) for share in shares]
        assert {share.steps for share in shares} == {max(counts)}
        found = itertools.chain.from_iterable(rows(share.batches(0), streamed) for share in shares)
        assert sorted(found) == sorted(alone)


@pytest.mark.parametrize("step", [0, 1, 7, 30])
@pytest.mark.parametrize("where", [0, 1])
def test_an_epoch_can_be_entered_at_any_step(both, schema, monkeypatch, step, where):
    monkeypatch.setattr(training_sets, "BUFFER", 5)
    source = training_set(both[where], schema, SETTINGS)

    def batches(at):
        epoch = source.epoch(np.random.default_rng(3), 32, Share())
        return [rows([batch], both[where]) for batch in epoch.batches(at)]

    assert batches(step) == batches(0)[step:]


def test_the_newest_share_is_counted_exactly(both):
    streamed, whole = both
    time = whole.events.timestamp
    for share in (0.01, 0.1, 0.5):
        cut = newest_from(streamed, share, int(time.max()))
        assert np.count_nonzero(time > cut) <= share * len(time) < np.count_nonzero(time >= cut)


def test_what_lies_after_a_moment_is_neither_trained_nor_validated_on(both, schema):
    streamed, whole = both
    until = int(np.quantile(whole.events.timestamp, 0.8))
    source = OnDisk(dataclasses.replace(streamed, until=until), schema, SETTINGS)
    epoch = source.epoch(np.random.default_rng(1), 32, Share())
    assert epoch.samples + len(source.held_out) == np.count_nonzero(whole.events.timestamp <= until)


def test_validation_is_bounded_by_drawing_contributors(both, schema, monkeypatch):
    streamed, _ = both
    whole = OnDisk(streamed, schema, SETTINGS)
    monkeypatch.setattr(training_sets, "HELD_OUT", len(whole.held_out) // 4)
    some = OnDisk(streamed, schema, SETTINGS)
    assert 0 < len(some.held_out) < len(whole.held_out) / 2
    for user in np.unique(some.held_users):
        assert (some.held_users == user).sum() == (whole.held_users == user).sum()


def test_more_processes_than_blocks_are_refused(both, schema):
    with pytest.raises(InputError, match="start fewer"):
        OnDisk(both[0], schema, SETTINGS).epoch(np.random.default_rng(1), 32, Share(0, 10_000))


def test_it_learns_from_disk_what_it_learns_from_memory(both, tmp_path):
    disk, memory = (train(data, tmp_path / str(i), SETTINGS) for i, data in enumerate(both))
    assert disk.metrics["validation_auc"] == pytest.approx(memory.metrics["validation_auc"], abs=0.05)
    assert disk.metrics["validation_auc"] > 0.6
    settings = msgspec.structs.replace(SETTINGS, seed=2)
    with pytest.raises(InputError, match="other data or settings"):
        train(both[0], tmp_path / "0", settings)


MEASURED = """
import json, resource, sys
from pathlib import Path
from cloud import training, training_sets
from cloud.datasets import prepare, preparing
from cloud.training import train
from export.checkpoint import TrainSettings

table, folder, allowed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
warm = sys.argv[4]
# what is held at once; by default more, and as bounded
preparing._ROWS, training_sets.BUFFER, training_sets.HELD_OUT, training.TASTED = 50_000, 8, 50_000, 50_000
settings = TrainSettings("LR", epochs=1, batch=4096, history=20, threads=1)
train(prepare(warm, folder / "warm"), folder / "warm-model", settings)  # what libraries take for themselves

def held():  # private memory, in bytes: what RLIMIT_DATA bounds
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmData"].split()[0]) * 1024

resource.setrlimit(resource.RLIMIT_DATA, (held() + allowed,) * 2)
data = prepare(table, folder / "data")
trained = train(data, folder / "model", settings)
size = sum(path.stat().st_size for path in (folder / "data" / "events").iterdir())
print(json.dumps({"events": len(data), "bytes": size, "loss": trained.state.history[0].loss}))
"""


def test_data_larger_than_memory_is_prepared_and_trained_on(tmp_path):
    """The kernel refuses the process private memory beyond what libraries take and a part of what its data does."""
    rng, count = np.random.default_rng(SEED), 3_000_000
    schema = pa.schema({"user_id": pa.int32(), "item_id": pa.int32(), "timestamp": pa.int64(), "label": pa.float32()})

    def write(path, rows):
        with pq.ParquetWriter(path, schema) as writer:
            for start in range(0, rows, 100_000):
                n = min(100_000, rows - start)
                user, item = rng.integers(0, 40_000, n), rng.integers(0, 500, n)
                liked = ((user + item) % 2).astype(np.float32)
                time = 1_600_000_000 + start + np.arange(n)
                columns = [user.astype(np.int32), item.astype(np.int32), time, liked]
                writer.write_table(pa.table(columns, schema=schema))

    write(tmp_path / "table.parquet", count)
    write(tmp_path / "warm.parquet", 300_000)
    allowed = 48 << 20  # what threads and arenas take on a busy machine is some MiB of it
    words = [str(tmp_path / "table.parquet"), str(tmp_path), str(allowed), str(tmp_path / "warm.parquet")]
    done = subprocess.run([sys.executable, "-c", MEASURED, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["events"] == count and found["bytes"] > 1.25 * allowed
    assert 0.5 < found["loss"] < 0.75
