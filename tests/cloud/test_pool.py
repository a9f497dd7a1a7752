import numpy as np
import pytest

from cloud.pool import Pool
from device_runtime.errors import InputError, StoreError
from tests.cloud.matching.test_contract import SCHEMA, WIDTH, fill, make_samples, unit
from tests.device_runtime.batches import assert_same


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
