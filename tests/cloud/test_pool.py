import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cloud.pool import Pool
from device_runtime.errors import InputError, StoreError
from device_runtime.samples import Feature, SampleBatch, Schema
from tests.cloud.matching.test_contract import SCHEMA, WIDTH, fill, make_samples, unit
from tests.conftest import REPOSITORY
from tests.device_runtime.batches import assert_same

ENDLESS_WRITER = """
import sys
from pathlib import Path
import numpy as np
from cloud.pool import Pool
from tests.cloud.matching.test_contract import SCHEMA, WIDTH, fill
pool = Pool(Path(sys.argv[1]), SCHEMA, WIDTH)
while True:
    fill(pool, np.random.default_rng(0), 50)
    print(len(pool), flush=True)
"""


def test_a_pool_is_there_again_when_it_is_opened_again(tmp_path, rng):
    pool = Pool(tmp_path, SCHEMA, WIDTH)
    fill(pool, rng, 30)
    fill(pool, rng, 20)
    again = Pool(tmp_path, SCHEMA, WIDTH)
    assert len(again) == 50
    everything = np.arange(50)
    assert_same(again.gather(everything), pool.gather(everything))
    assert isinstance(again.segments[0].embeddings, np.memmap)


def test_no_identity_is_on_disk(tmp_path, rng):
    pool = Pool(tmp_path, SCHEMA, WIDTH)
    fill(pool, rng, 30)
    names = {path.name for path in (tmp_path / "segment-000000").iterdir()}
    assert names == {
        "meta.json", "labels.npy", "timestamps.npy", "contributors.npy", "embeddings.npy", "item.npy",
        "history.values.npy", "history.starts.npy", "history.lengths.npy",
    }  # fmt: skip


def test_a_crash_before_the_rename_leaves_nothing_behind(tmp_path, rng):
    pool = Pool(tmp_path, SCHEMA, WIDTH)
    fill(pool, rng, 30)
    (tmp_path / ".new-killed").mkdir()
    (tmp_path / ".new-killed" / "labels.npy").write_bytes(b"half")
    assert len(Pool(tmp_path, SCHEMA, WIDTH)) == 30
    assert not list(tmp_path.glob(".new-*"))


def test_a_full_disk_loses_nothing(tmp_path, rng, monkeypatch):
    pool = Pool(tmp_path, SCHEMA, WIDTH)
    fill(pool, rng, 30)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("cloud.pool.np.save", full)
        with pytest.raises(StoreError, match="No space left on device; what it holds is kept"):
            fill(pool, rng, 10)
    assert len(pool) == len(Pool(tmp_path, SCHEMA, WIDTH)) == 30
    fill(pool, rng, 10)
    assert len(Pool(tmp_path, SCHEMA, WIDTH)) == 40


def test_a_damaged_segment_is_named(tmp_path, rng):
    fill(Pool(tmp_path, SCHEMA, WIDTH), rng, 30)
    path = tmp_path / "segment-000000" / "labels.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StoreError, match=r"labels.npy is damaged.*Restore"):
        Pool(tmp_path, SCHEMA, WIDTH)
    with pytest.raises(StoreError, match="width 16; 1, 8 expected"):
        Pool(tmp_path, SCHEMA, 8)


def test_what_does_not_fit_is_refused(tmp_path, rng):
    pool = Pool(tmp_path, SCHEMA, WIDTH)
    samples, tokens = make_samples(rng, 5), np.ones(5, np.uint64)
    for embeddings, times, complaint in [
        (unit(rng, 5, 8), np.zeros(5), r"shape \[5, 16\], given \[5, 8\]"),
        (np.full((5, WIDTH), np.nan, np.float32), np.zeros(5), "finite embeddings"),
        (unit(rng, 5), np.zeros(4), "4 timestamps"),
    ]:
        with pytest.raises(InputError, match=complaint):
            pool.append(samples, times, tokens, embeddings)
    assert len(pool) == 0


def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path, rng):
    command = [sys.executable, "-c", ENDLESS_WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as writer:
        acknowledged = [int(writer.stdout.readline()) for _ in range(6)][-1]
        writer.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *(int(line) for line in writer.stdout if line.endswith("\n"))])
    pool = Pool(tmp_path, SCHEMA, WIDTH)
    assert len(pool) >= acknowledged and len(pool) % 50 == 0
    assert not list(tmp_path.glob(".new-*"))
    fill(pool, rng, 10)


def test_writers_take_turns(tmp_path, rng):
    """`coda data ingest` and a running server each have their own view of one folder."""
    first, second = Pool(tmp_path, SCHEMA, WIDTH), Pool(tmp_path, SCHEMA, WIDTH)
    parts = [(make_samples(rng, n), np.full(n, n), np.full(n, n, np.uint64), unit(rng, n)) for n in range(1, 21)]
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit((first, second)[i % 2].append, *part) for i, part in enumerate(parts)]:
            done.result()
    fill(first, rng, 1)
    again = Pool(tmp_path, SCHEMA, WIDTH)
    assert len(again) == len(first) == 211
    assert [s.base for s in first.segments] == [s.base for s in again.segments]
    for segment in again.segments[:-1]:
        assert (segment.contributors == len(segment)).all() and (segment.timestamps == len(segment)).all()


def test_a_short_write_says_what_happened(tmp_path, rng, monkeypatch):
    def short(*_):
        raise OSError("2000 requested and 12 written")  # what numpy makes of a full disk: no errno

    monkeypatch.setattr("cloud.pool.np.save", short)
    with pytest.raises(StoreError, match="only part of a column"):
        fill(Pool(tmp_path, SCHEMA, WIDTH), rng, 10)
    assert not list(tmp_path.glob(".new-*"))


def test_a_segment_that_may_not_outlive_a_power_cut_is_taken_back(tmp_path, rng, monkeypatch):
    pool = Pool(tmp_path, SCHEMA, WIDTH)
    fill(pool, rng, 30)
    from cloud import pool as module

    whole = module._sync_folder

    def failing(path):
        if path == tmp_path:
            raise OSError(5, "Input/output error")
        whole(path)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_sync_folder", failing)
        with pytest.raises(StoreError, match="Input/output error"):
            fill(pool, rng, 10)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["segment-000000"]
    fill(pool, rng, 5)
    assert len(pool) == 35


def test_a_missing_segment_is_named(tmp_path, rng):
    pool = Pool(tmp_path, SCHEMA, WIDTH)
    for _ in range(3):
        fill(pool, rng, 5)
    (tmp_path / "segment-000001").rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"lacks segment-000001\. Restore"):
        Pool(tmp_path, SCHEMA, WIDTH)


def test_a_header_that_lies_about_its_rows_is_named(tmp_path, rng):
    fill(Pool(tmp_path, SCHEMA, WIDTH), rng, 10)
    path = tmp_path / "segment-000000" / "timestamps.npy"
    path.write_bytes(path.read_bytes().replace(b"(10,)", b"(9,) "))
    with pytest.raises(StoreError, match=r"timestamps.npy is damaged: it holds int64 \[9\]"):
        Pool(tmp_path, SCHEMA, WIDTH)
    (tmp_path / "segment-000000" / "meta.json").unlink()
    with pytest.raises(StoreError, match="damaged"):
        Pool(tmp_path, SCHEMA, WIDTH)


def test_positions_outside_the_pool_are_refused(tmp_path, rng):
    pool = Pool(tmp_path, SCHEMA, WIDTH)
    assert len(pool.gather(np.zeros(0, np.int64))) == 0
    fill(pool, rng, 10)
    for outside in (-1, 10):
        with pytest.raises(InputError, match="from 0 to 9"):
            pool.gather(np.array([3, outside]))


def test_vectors_of_numbers_are_kept_and_checked(tmp_path, rng):
    schema = Schema((Feature("x", "float", bound=3),))
    pool = Pool(tmp_path, schema, WIDTH)
    numbers = rng.normal(size=(4, 3)).astype(np.float32)
    rest = (np.zeros(4, np.int64), np.ones(4, np.uint64), unit(rng, 4))
    labels = np.ones(4, np.float32)
    pool.append(SampleBatch(schema, {"x": numbers}, labels), *rest)
    np.testing.assert_array_equal(Pool(tmp_path, schema, WIDTH).gather(np.array([2, 0])).columns["x"], numbers[[2, 0]])
    for bad in (np.full((4, 3), np.inf, np.float32), numbers[:, :2]):
        with pytest.raises(InputError, match=r"'x' must be finite, of shape \[4, 3\]"):
            pool.append(SampleBatch(schema, {"x": bad}, labels), *rest)
