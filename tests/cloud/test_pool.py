import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cloud.pool import Keeper, Part, Pool
from device_runtime.errors import InputError, StoreError
from device_runtime.samples import Feature, Ragged, SampleBatch, Schema
from tests.cloud.matching.test_contract import SCHEMA, WIDTH, fill, make_samples, unit
from tests.conftest import REPOSITORY
from tests.device_runtime.batches import assert_same

ENDLESS_WRITER = """
import sys
from pathlib import Path
import numpy as np
from cloud.pool import Keeper, Part, Pool
from tests.cloud.matching.test_contract import SCHEMA, WIDTH, fill
pool = Pool(Path(sys.argv[1]), SCHEMA, WIDTH)
while True:
    fill(pool, np.random.default_rng(0), 50)
    print(len(pool), flush=True)
"""


ENDLESS_KEEPER = """
import sys
from pathlib import Path
import numpy as np
from cloud.pool import Pool
from tests.cloud.matching.test_contract import SCHEMA, WIDTH, fill
pool, erased = Pool(Path(sys.argv[1]), SCHEMA, WIDTH), 100
rng = np.random.default_rng(0)
while True:
    fill(pool, rng, 50, contributors=5)
    print("held", flush=True)
    pool.compact(full=True)
    print("merged", flush=True)
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
    names = {path.name for path in (tmp_path / "segment-00000000").iterdir()}
    assert names == {
        "meta.json", "labels.npy", "owners.tokens.npy", "owners.ends.npy", "owners.rows.npy", "timestamps.npy",
        "contributors.npy", "embeddings.npy", "item.npy", "history.values.npy", "history.starts.npy",
        "history.lengths.npy",
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
        patch.setattr("cloud.pool.segment.np.save", full)
        with pytest.raises(StoreError, match="No space left on device; what it holds is kept"):
            fill(pool, rng, 10)
    assert len(pool) == len(Pool(tmp_path, SCHEMA, WIDTH)) == 30
    fill(pool, rng, 10)
    assert len(Pool(tmp_path, SCHEMA, WIDTH)) == 40


def test_a_damaged_segment_is_named(tmp_path, rng):
    fill(Pool(tmp_path, SCHEMA, WIDTH), rng, 30)
    path = tmp_path / "segment-00000000" / "labels.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StoreError, match=r"labels.npy is damaged.*Restore"):
        Pool(tmp_path, SCHEMA, WIDTH)
    with pytest.raises(StoreError, match="width 16; 2, 8 expected"):
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

    monkeypatch.setattr("cloud.pool.segment.np.save", short)
    with pytest.raises(StoreError, match="only part of a column"):
        fill(Pool(tmp_path, SCHEMA, WIDTH), rng, 10)
    assert not list(tmp_path.glob(".new-*"))


def test_a_segment_that_may_not_outlive_a_power_cut_is_taken_back(tmp_path, rng, monkeypatch):
    pool = Pool(tmp_path, SCHEMA, WIDTH)
    fill(pool, rng, 30)
    for module in ("cloud.pool.pool", "cloud.pool.manifest"):  # after the segment's rename, and after the manifest's

        def failing(path):
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(f"{module}.sync_folder", failing)
            with pytest.raises(StoreError, match="Input/output error"):
                fill(pool, rng, 10)
        assert len(pool) == len(Pool(tmp_path, SCHEMA, WIDTH)) == 30
        assert {path.name for path in tmp_path.iterdir()} == {".lock", "pool.json", "segment-00000000"}
    fill(pool, rng, 5)
    assert len(pool) == 35


def test_a_missing_segment_is_named(tmp_path, rng):
    pool = Pool(tmp_path, SCHEMA, WIDTH)
    for _ in range(3):
        fill(pool, rng, 5)
    (tmp_path / "segment-00000001").rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"lacks segment-00000001\. Restore"):
        Pool(tmp_path, SCHEMA, WIDTH)


def test_a_header_that_lies_about_its_rows_is_named(tmp_path, rng):
    fill(Pool(tmp_path, SCHEMA, WIDTH), rng, 10)
    path = tmp_path / "segment-00000000" / "timestamps.npy"
    path.write_bytes(path.read_bytes().replace(b"(10,)", b"(9,) "))
    with pytest.raises(StoreError, match=r"timestamps.npy is damaged: it holds int64 \[9\]"):
        Pool(tmp_path, SCHEMA, WIDTH)
    (tmp_path / "segment-00000000" / "meta.json").unlink()
    with pytest.raises(StoreError, match="damaged"):
        Pool(tmp_path, SCHEMA, WIDTH)


def test_positions_outside_the_pool_are_refused(tmp_path, rng):
    pool = Pool(tmp_path, SCHEMA, WIDTH)
    assert len(pool.gather(np.zeros(0, np.int64))) == 0
    fill(pool, rng, 10)
    for outside in (-1, 10):
        with pytest.raises(InputError, match=f"no sample at position {outside}"):
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


def test_erased_samples_leave_the_disk_when_segments_merge(tmp_path, rng):
    pool = Pool(tmp_path, SCHEMA, WIDTH)
    for _ in range(3):
        fill(pool, rng, 40)
    theirs = [pool.segments[0].embeddings[i].tobytes() for i in np.flatnonzero(pool.segments[0].contributors == 2)]
    held = len(pool)
    count = pool.erase(2, now=10)
    assert count > 0 and len(pool) == held - count == len(Pool(tmp_path, SCHEMA, WIDTH))
    assert pool.erase(2, now=11) == 0, "there is nothing more to hide"
    others = [contents(pool, position) for position in shown_positions(pool)]
    assert pool.compact() == 3, "whatever their size: they hide something"
    assert not pool.due() and pool.compact() == 0
    assert sorted(contents(pool, position) for position in shown_positions(pool)) == sorted(others)
    on_disk = b"".join(path.read_bytes() for path in tmp_path.glob("segment-*/embeddings.npy"))
    assert not any(vector in on_disk for vector in theirs)
    assert len(list(tmp_path.glob("segment-*"))) == 3


def shown_positions(pool):
    return np.concatenate([s.base + np.flatnonzero(s.shown()) for s in pool.segments] or [np.zeros(0, np.int64)])


def contents(pool, position):
    one = pool.gather(np.array([position]))
    segment = max((s for s in pool.segments if s.base <= position), key=lambda s: s.base)
    row = position - segment.base
    vector, owner = segment.embeddings[row].tobytes(), int(segment.contributors[row])
    history = one.columns["history"].row(0).tolist()
    return (owner, int(segment.timestamps[row]), int(one.columns["item"][0]), history, float(one.labels[0]), vector)


def test_merging_keeps_every_sample_and_brings_contributors_together(tmp_path, rng):
    pool = Pool(tmp_path, SCHEMA, WIDTH)
    for count in (30, 1, 50, 20):
        fill(pool, rng, count)
    before = sorted(contents(pool, position) for position in range(101))
    assert pool.compact() == 0, "four small segments are not worth it"
    assert pool.compact(full=True) == 4
    [merged] = pool.segments
    assert sorted(contents(pool, position) for position in shown_positions(pool)) == before
    assert (np.diff(merged.contributors.astype(np.int64)) >= 0).all()
    assert [path.name for path in tmp_path.glob("segment-*")] == [merged.name]
    for _ in range(8):
        fill(pool, rng, 5)
    assert pool.due() and pool.compact() == 9, "with the merged one, nine small ones"
    assert len(pool) == len(Pool(tmp_path, SCHEMA, WIDTH)) == 141


def test_histories_that_came_in_separately_share_storage_once_merged(tmp_path, rng):
    pool = Pool(tmp_path, SCHEMA, WIDTH)
    events = rng.integers(1, 99, 40).astype(np.int32)
    for end in (10, 20, 30, 40):  # a device contributes what is new, with the history that it has
        ends = np.arange(end - 10, end)
        history = Ragged(events, np.maximum(ends - 5, 0).astype(np.int32), np.minimum(ends, 5).astype(np.int32))
        samples = SampleBatch(SCHEMA, {"item": events[ends], "history": history}, np.ones(10, np.float32))
        pool.append(samples, ends, np.full(10, 7, np.uint64), unit(rng, 10))
    before = [pool.gather(np.arange(40)).columns["history"].row(i).tolist() for i in range(40)]
    assert sum(len(segment.samples.columns["history"].values) for segment in pool.segments) == 9 + 3 * 14
    pool.compact(full=True)
    column = pool.segments[0].samples.columns["history"]
    assert column.values.tolist() == events[:39].tolist()
    assert [column.row(i).tolist() for i in range(40)] == before


def test_what_was_erased_does_not_come_back_but_who_gives_again_is_welcome(tmp_path, rng):
    pool = Pool(tmp_path, SCHEMA, WIDTH)
    tokens = np.array([3, 4, 3], np.uint64)
    pool.append(make_samples(rng, 3), np.array([10, 20, 30]), tokens, unit(rng, 3))
    pool.erase(3, now=40)
    assert pool.append(make_samples(rng, 3), np.array([10, 20, 30]), tokens, unit(rng, 3)) == 1
    assert pool.append(make_samples(rng, 3), np.array([41, 42, 43]), np.full(3, 3, np.uint64), unit(rng, 3)) == 3
    assert pool.append(make_samples(rng, 1), np.array([40]), tokens[:1], unit(rng, 1)) == 0
    pool.compact(full=True)
    [segment] = pool.segments
    assert segment.contributors.tolist() == [3, 3, 3, 4, 4]


def test_an_erasure_during_a_merge_or_a_growth_is_not_lost(tmp_path, rng, monkeypatch):
    pool, other = Pool(tmp_path, SCHEMA, WIDTH), Pool(tmp_path, SCHEMA, WIDTH)
    fill(pool, rng, 60)
    fill(pool, rng, 60)
    pool.erase(1, now=0)
    held = len(pool)
    theirs = []
    pool.compact(full=True, prepare=lambda segment: theirs.append(other.erase(2, now=100)))
    assert theirs[0] > 0 and len(pool) == held - theirs[0]
    assert not np.isin(pool.segments[0].contributors[pool.segments[0].shown()], (1, 2)).any()
    pool.compact()
    assert not np.isin(pool.segments[0].contributors, (1, 2)).any()

    from cloud.pool import pool as module

    def erasing(folder, arrays):
        other.erase(5, now=100)
        save(folder, arrays)

    save = module.save
    monkeypatch.setattr(module, "save", erasing)
    fill(pool, rng, 60)
    assert not any((s.contributors[s.shown()] == 5).any() for s in pool.segments)


def test_samples_age_out(tmp_path, rng):
    pool = Pool(tmp_path, SCHEMA, WIDTH)
    fill(pool, rng, 50)
    fill(pool, rng, 30)
    assert pool.retain(20) == 40 and len(pool) == 40
    assert pool.retain(10) == 0, "less than before hides no less"
    assert pool.retain_newest(100) == 0
    assert pool.retain_newest(25) == 16 and len(pool) == 24, "those of one second go together"
    assert pool.compact() == 2
    times = np.concatenate([segment.timestamps for segment in pool.segments])
    assert len(times) == 24 and times.min() == 28
    pool.retain_newest(0)
    assert len(pool) == 0 and pool.compact() and pool.segments == ()
    fill(pool, rng, 5)
    assert len(Pool(tmp_path, SCHEMA, WIDTH)) == 5


def test_a_part_of_a_source_is_taken_in_once(tmp_path, rng):
    pool, other = Pool(tmp_path, SCHEMA, WIDTH), Pool(tmp_path, SCHEMA, WIDTH)
    given = (make_samples(rng, 5), np.zeros(5), np.ones(5, np.uint64), unit(rng, 5))
    pool.append(*given, part=Part("table", 0, 5))
    assert other.ingested("table") == 5 and other.ingested("another") == 0
    with pytest.raises(InputError, match="5 samples of the source are in the pool; those from 0 on do not follow"):
        other.append(*given, part=Part("table", 0, 5))
    other.append(*given, part=Part("table", 5, 10))
    assert len(pool) == 10 and pool.ingested("table") == 10
    pool.erase(1, now=9)
    assert pool.append(*given, part=Part("table", 10, 15)) == 0
    assert Pool(tmp_path, SCHEMA, WIDTH).ingested("table") == 15, "also where nothing of it may come in"


def test_a_keeper_killed_at_any_point_loses_nothing_and_doubles_nothing(tmp_path, rng):
    command = [sys.executable, "-c", ENDLESS_KEEPER, str(tmp_path)]
    held, reader = 0, Pool(tmp_path, SCHEMA, WIDTH)
    for _ in range(3):
        before = len(reader)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as keeper:
            lines = [keeper.stdout.readline() for _ in range(3 + int(rng.integers(4)))]
            time.sleep(float(rng.uniform(0, 0.02)))
            keeper.send_signal(signal.SIGKILL)
            lines += [line for line in keeper.stdout if line.endswith("\n")]
        held = before + 50 * sum(line == "held\n" for line in lines)
        pool = Pool(tmp_path, SCHEMA, WIDTH)
        assert held <= len(pool) <= held + 50 and len(pool) == len(reader)
        assert {path.name for path in tmp_path.iterdir()} <= {
            ".lock", ".compacting", "pool.json", *(segment.name for segment in pool.segments)
        }  # fmt: skip
        assert len(pool.gather(shown_positions(pool))) == len(pool)


def test_a_pool_of_an_earlier_format_is_refused(tmp_path):
    (tmp_path / "segment-000000").mkdir()
    with pytest.raises(StoreError, match=r"segments but no pool.json.*ingest into a new pool"):
        Pool(tmp_path, SCHEMA, WIDTH)
    (tmp_path / "pool.json").write_text('{"format": 9}')
    with pytest.raises(StoreError, match="of format 9; 2 is expected"):
        Pool(tmp_path, SCHEMA, WIDTH)
    (tmp_path / "pool.json").write_text("{")
    with pytest.raises(StoreError, match=r"pool.json is damaged"):
        Pool(tmp_path, SCHEMA, WIDTH)


def test_a_keeper_merges_what_comes_in(tmp_path, rng):
    pool, prepared = Pool(tmp_path, SCHEMA, WIDTH), []
    with Keeper(pool, prepared.append, every_s=0.01):
        for _ in range(8):
            fill(pool, rng, 5)
        while pool.due():
            time.sleep(0.01)
    assert len(pool) == 40 and prepared and len(pool.segments) < 8


def test_a_keeper_survives_a_merge_that_fails(tmp_path, rng, caplog):
    pool, tries = Pool(tmp_path, SCHEMA, WIDTH), []
    for _ in range(8):
        fill(pool, rng, 5)

    def failing_once(segment):
        tries.append(segment)
        if len(tries) == 1:
            raise OSError(28, "No space left on device")

    with Keeper(pool, failing_once, every_s=0.01):
        while pool.due():
            time.sleep(0.01)
    assert len(tries) == 2 and "No space left on device; what it holds is kept" in caplog.text


def test_a_reader_opens_the_pool_while_segments_are_merged_away(tmp_path, rng):
    pool = Pool(tmp_path, SCHEMA, WIDTH)
    stop = threading.Event()

    def read():
        rounds = 0
        while not stop.is_set():
            reader = Pool(tmp_path, SCHEMA, WIDTH)
            positions = shown_positions(reader)
            assert len(reader.gather(positions)) == len(positions) and len(positions) % 20 == 0
            assert reader.stats()["samples"] % 20 == 0
            rounds += 1
        return rounds

    with ThreadPoolExecutor(2) as threads:
        jobs = [threads.submit(read) for _ in range(2)]
        for _ in range(12):
            fill(pool, rng, 20)
            pool.compact(full=True)
        stop.set()
        assert all(job.result() for job in jobs)
