"""Tables larger than memory become a data set on disk, which holds what the same table in memory does."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from cloud.datasets import Dataset, StreamedDataset, columnar, prepare, preparing, read
from device_runtime.cli import main
from device_runtime.errors import InputError, StoreError
from tests.conftest import SEED, write_tastes


@pytest.fixture
def tastes(tmp_path):
    return write_tastes(tmp_path)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(columnar, "BLOCK", 100)
    monkeypatch.setattr(preparing, "_ROWS", 500)  # many groups of buckets


def log(rows=3000, users=50, items=80, seed=SEED, **more):
    """A table of events in the order of time, with repetitions among them."""
    rng = np.random.default_rng(seed)
    columns = {
        "user_id": [f"u{i}" for i in rng.integers(0, users, rows)],
        "item_id": [f"i{i}" for i in rng.integers(0, items, rows)],
        "timestamp": np.sort(rng.integers(1_600_000_000, 1_600_000_000 + 10 * rows, rows)),
    }
    return pa.table({**columns, **{name: make(rng, rows) for name, make in more.items()}})


def everything(dataset):
    """Whatever the order of users: the sequence of (item, time, label, observed) of each, as a set."""
    if isinstance(dataset, StreamedDataset):
        events = [dataset.block(number) for number in range(dataset.blocks)]
    else:
        events = [dataset.events]
    found: dict[int, list] = {}
    for part in events:
        rows = zip(part.contributor, part.item, part.timestamp, part.label, part.observed, strict=True)
        for user, item, time, label, seen in rows:
            found.setdefault(int(user), []).append((dataset.items[item], int(time), float(label), bool(seen)))
    return sorted(map(tuple, found.values()))


def test_it_holds_what_the_table_holds_in_memory(tastes, tmp_path, small_blocks):
    streamed, whole = prepare(str(tastes[0]), tmp_path / "out", tastes[1]), read(*tastes)
    assert everything(streamed) == everything(whole)
    assert (streamed.items, streamed.categories) == (whole.items, whole.categories)
    np.testing.assert_array_equal(streamed.item_categories, whole.item_categories)
    assert streamed.blocks > 10 and len(streamed) == len(whole.events) == streamed.report.kept
    for field in ("rows", "kept", "dropped", "first", "last", "per_user", "notes"):
        assert getattr(streamed.report, field) == getattr(whole.report, field), field


def test_a_folder_in_any_order_is_one_table(tmp_path, small_blocks):
    whole = log(label=lambda rng, n: rng.integers(0, 2, n).astype(float))
    pq.write_table(whole, tmp_path / "whole.parquet")
    (tmp_path / "logs").mkdir()
    pq.write_table(whole.slice(0, 1000), tmp_path / "logs" / "a.parquet", row_group_size=64)
    pyarrow.csv.write_csv(whole.slice(1000), tmp_path / "logs" / "b.csv")
    one = prepare(str(tmp_path / "whole.parquet"), tmp_path / "one")
    many = prepare(str(tmp_path / "logs"), tmp_path / "many")
    assert many.fingerprint == one.fingerprint
    assert everything(many) == everything(read(tmp_path / "whole.parquet"))


def test_a_url_is_read_as_a_folder_is(tmp_path, small_blocks):
    pytest.importorskip("fsspec")
    pq.write_table(log(rating=lambda rng, n: rng.integers(1, 6, n).astype(float)), tmp_path / "ratings.parquet")
    by_url = prepare(f"file://{tmp_path}/ratings.parquet", tmp_path / "out")
    assert everything(by_url) == everything(read(tmp_path / "ratings.parquet")) and by_url.positive_at == 4.0


def test_blocks_end_where_a_contributor_does(tastes, tmp_path, small_blocks):
    streamed = prepare(str(tastes[0]), tmp_path / "out")
    users = [set(streamed.block(number).contributor.tolist()) for number in range(streamed.blocks)]
    assert sum(map(len, users)) == len(set.union(*users)) == streamed.contributors


def test_negatives_are_drawn_by_the_seed_and_known_items_are_none(tmp_path, small_blocks):
    pq.write_table(log(), tmp_path / "clicks.parquet")
    one, again, other = (
        prepare(str(tmp_path / "clicks.parquet"), tmp_path / name, negatives=2, seed=seed)
        for name, seed in (("one", 1), ("again", 1), ("other", 2))
    )
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert one.report.negatives == 2 * (one.report.kept - one.report.negatives)
    for user in everything(one):
        known = {item for item, *_, seen in user if seen}
        assert not known & {item for item, *_, seen in user if not seen}
    seen = [tuple(e for e in user if e[3]) for user in everything(one)]
    whole = read(tmp_path / "clicks.parquet", negatives=2, seed=1)
    assert sorted(seen) == sorted(tuple(e for e in user if e[3]) for user in everything(whole))


def test_bad_rows_are_counted_and_bad_tables_refused(tmp_path, small_blocks):
    good = log(label=lambda rng, n: rng.integers(0, 2, n).astype(float)).to_pydict()
    good["label"][7], good["timestamp"][8], good["user_id"][9] = 3.0, -5, ""
    pq.write_table(pa.table(good), tmp_path / "t.parquet")
    found = prepare(str(tmp_path / "t.parquet"), tmp_path / "out").report
    assert found.examples["label is not between 0 and 1"] == ["t.parquet row 8"]
    assert found.dropped["timestamp is not in seconds since 1970"] == found.dropped["no user_id"] == 1

    def refused(match, **columns):
        pq.write_table(pa.table({**good, **columns}), tmp_path / "bad.parquet")
        with pytest.raises(InputError, match=match):
            prepare(str(tmp_path / "bad.parquet"), tmp_path / "bad")

    n = len(good["label"])
    refused("have the same label", label=[1.0] * n)
    refused("milliseconds", timestamp=[1_600_000_000_000] * n)
    refused("no usable row: .* no user_id", user_id=[""] * n)
    refused("has 1 user", user_id=["u"] * n)
    with pytest.raises(InputError, match="no known scale"):
        pq.write_table(log(rating=lambda rng, n: rng.integers(0, 100, n).astype(float)), tmp_path / "r.parquet")
        prepare(str(tmp_path / "r.parquet"), tmp_path / "bad")
    with pytest.raises(InputError, match="there is no table"):
        prepare(str(tmp_path / "nothing"), tmp_path / "bad")


def test_damage_is_noticed(tastes, tmp_path, small_blocks):
    out = tmp_path / "out"
    prepare(str(tastes[0]), out)
    path = out / "events" / "item.bin"
    sound = path.read_bytes()
    path.write_bytes(sound[:40] + b"\xff" + sound[41:])
    with pytest.raises(StoreError, match=r"block 0 of .* is damaged"):
        StreamedDataset.open(out).block(0)
    path.write_bytes(sound[:-4])
    with pytest.raises(StoreError, match="cut short"):
        StreamedDataset.open(out)
    (out / "streamed.json").unlink()
    with pytest.raises(InputError, match="has made"):
        StreamedDataset.open(out)


def test_what_was_prepared_before_stays_until_the_new_is_whole(tastes, tmp_path, small_blocks):
    out = tmp_path / "out"
    before = prepare(str(tastes[0]), out)
    broken = tmp_path / "broken.csv"
    broken.write_text("user_id,item_id,timestamp\nu1,i1,1600000000\n")
    with pytest.raises(InputError):
        prepare(str(broken), out)
    assert everything(StreamedDataset.open(out)) == everything(before)
    shutil.rmtree(out / "preparing")
    assert prepare(str(tastes[0]), out).fingerprint == before.fingerprint


def test_the_command_says_what_it_made(tastes, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["data", "prepare", "--stream", "--interactions", str(tastes[0]), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert main(["data", "describe", str(out)]) == 0
    assert capsys.readouterr().out in said and "3200" in said
    assert main(["data", "history", "--data", str(out), "--user", "u1", "--out", str(tmp_path / "h.csv")]) == 2
    assert "prepared with --stream" in capsys.readouterr().err
    with pytest.raises(InputError):
        Dataset.load(out)
    assert main(["data", "prepare", "--interactions", "s3://bucket/events", "--out", str(out)]) == 2
    assert "prepare --stream` reads those" in capsys.readouterr().err
