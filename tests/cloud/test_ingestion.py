"""Tables of any size into a pool: each row once, whatever happens on the way."""

import shutil

import fsspec
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from cloud import ingestion
from cloud.datasets import Dataset
from cloud.home import ServerHome, ingest, publish
from cloud.ingestion import ingest_tables
from device_runtime.cli import main
from device_runtime.errors import EngineUnavailable, InputError, StoreError
from device_runtime.samples import Ragged


@pytest.fixture
def home(published, tmp_path):
    """A server with a release and an empty pool."""
    (tmp_path / "server").mkdir()
    shutil.copy(published.home / "answer.key", tmp_path / "server" / "answer.key")
    with ServerHome(tmp_path / "server") as made:
        publish(made, published.bundle)
        yield made


@pytest.fixture
def dataset(published):
    return Dataset.load(published.data)


def pool_of(home):
    return home.pool(home.release()[1])


def table(dataset, mask, shuffle=0):
    """Some of a data set's events as others would log them: in the order of time, or of none."""
    events = dataset.events.take(mask)
    order = np.random.default_rng(shuffle).permutation(len(events)) if shuffle else np.argsort(events.timestamp)
    return pa.table(
        {
            "user_id": [dataset.users[i] for i in events.contributor[order]],
            "item_id": [dataset.items[i] for i in events.item[order]],
            "timestamp": events.timestamp[order],
            "label": events.label[order],
        }
    )


def contents(pool):
    """What a pool shows, sample by sample, in an order of its own."""
    found = []
    for segment in pool.segments:
        for row in np.flatnonzero(segment.shown()).tolist():
            history = segment.samples.columns["history"]
            assert isinstance(history, Ragged)
            found.append(
                (
                    int(segment.contributors[row]), int(segment.timestamps[row]),
                    int(segment.samples.columns["item"][row]), float(segment.samples.labels[row]),
                    tuple(history.row(row).tolist()),
                )
            )  # fmt: skip
    return sorted(found)


def test_a_shuffled_folder_gives_the_samples_that_the_data_set_gives(home, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(ingestion, "_ROWS", 500)  # many groups of buckets
    observed = dataset.take(dataset.events.observed)
    everything = np.ones(len(observed.events), bool)
    first = np.arange(len(observed.events)) % 3 == 0
    folder = tmp_path / "logs"
    folder.mkdir()
    pq.write_table(table(observed, first, 1), folder / "a.parquet", row_group_size=100)
    whole = table(observed, ~first, 2)
    pyarrow.csv.write_csv(whole, folder / "b.csv")
    done = ingest_tables(home, str(folder))
    assert (done.rows, done.added, done.before) == (len(everything), len(everything), 0)
    streamed = contents(pool_of(home))
    shutil.rmtree(pool_of(home).folder)
    ingest(home, observed)
    assert contents(pool_of(home)) == streamed
    assert not (home.path / "ingesting").exists(), "what was put aside is gone"


def test_what_is_in_is_not_added_again(home, dataset, tmp_path):
    early = dataset.events.timestamp < np.median(dataset.events.timestamp)
    folder = tmp_path / "logs"
    folder.mkdir()
    pq.write_table(table(dataset, early), folder / "2024.parquet")
    added = ingest_tables(home, str(folder)).added
    (folder / "2024.parquet").rename(folder / "last-year.parquet")
    again = ingest_tables(home, str(folder))
    assert (again.added, again.before) == (0, added)
    pq.write_table(table(dataset, ~early), folder / "2025.parquet")
    shutil.copy(folder / "2025.parquet", folder / "copy.parquet")
    third = ingest_tables(home, str(folder))
    assert third.added == (~early).sum() and len(pool_of(home)) == len(dataset.events)
    longest = max(len(history) for *_, history in contents(pool_of(home)))
    assert longest == home.release()[1].schema["history"].bound, "the older file is in the histories of the newer"
    ingest(home, dataset)
    ingest(home, dataset)
    assert len(pool_of(home)) == 2 * len(dataset.events), "a prepared data set is another source, and counts once too"


def test_a_run_that_was_cut_short_goes_on(home, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(ingestion, "SEGMENT", 100)
    monkeypatch.setattr(ingestion, "_ROWS", 300)
    path = tmp_path / "log.parquet"
    pq.write_table(table(dataset, np.ones(len(dataset.events), bool), 3), path)
    left = 4
    append = ingestion.Pool.append

    def failing(*arguments, **named):
        nonlocal left
        left -= 1
        if left < 0:
            raise StoreError("the disk is full")
        return append(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(ingestion.Pool, "append", failing)
        with pytest.raises(StoreError, match="full"):
            ingest_tables(home, str(path))
    held = len(pool_of(home))
    assert 0 < held <= 400
    done = ingest_tables(home, str(path))
    assert (done.before, done.added) == (held, len(dataset.events) - held)
    assert len(pool_of(home)) == len(contents(pool_of(home))) == len(set(contents(pool_of(home))))


def test_rows_that_cannot_be_used_are_counted_and_shown(home, dataset, tmp_path):
    item = dataset.items[1]
    path = tmp_path / "log.csv"
    path.write_text(
        "user,movieId,ts,stars\n"
        f"u1,{item},1000,5\nu1,{item},1000,5\n,{item},1000,5\nu1,,1000,5\nu1,unheard of,1000,5\n"
        f"u1,{item},-3,5\nu1,{item},1001,\nu2,{item},1002,3.5\nu2,{item}\n"
    )
    done = ingest_tables(home, str(path))
    assert done.added == 2 and sorted(label for *_, label, _ in contents(pool_of(home))) == [0, 1]
    assert done.dropped.counts == {
        "no user_id": 1, "no item_id": 1, "an item that the released model does not know": 1,
        "timestamp is missing, or not in seconds": 1, "rating is not a finite number": 1,
        "another number of columns than the header": 1, "the same user, item and timestamp again": 1,
    }  # fmt: skip


def test_tables_that_cannot_be_used_are_refused(home, dataset, tmp_path):
    item = dataset.items[1]
    for text, complaint in [
        ("user_id,item_id\nu,i\n", "it lacks timestamp; it has user_id, item_id"),
        (f"user_id,item_id,timestamp\nu,{item},9\n", "neither labels nor ratings.*coda data prepare"),
        (f"user_id,item_id,timestamp,rating\nu,{item},9,87\n", "no known scale; say with --positive-at"),
    ]:
        (tmp_path / "log.csv").write_text(text)
        with pytest.raises(InputError, match=f"log.csv: .*{complaint}"):
            ingest_tables(home, str(tmp_path / "log.csv"))
    (tmp_path / "log.parquet").write_bytes(b"PAR1, or is it?")
    with pytest.raises(InputError, match=r"cannot use .*log.parquet"):
        ingest_tables(home, str(tmp_path / "log.parquet"))
    with pytest.raises(InputError, match="there is no table at"):
        ingest_tables(home, str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"there is no table at memory://nowhere"):
        ingest_tables(home, "memory://nowhere")
    with pytest.raises((InputError, EngineUnavailable), match="unheard"):
        ingest_tables(home, "unheard://of")
    assert len(pool_of(home)) == 0


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_a_url_is_read_through_fsspec(home, dataset, tmp_path, kind, request):
    """A folder of files and one of these, in memory and in an S3 bucket."""
    bucket = request.getfixturevalue("s3") if kind == "s3" else "memory:/"
    where = f"{bucket}/{tmp_path.name}"
    system, path = fsspec.core.url_to_fs(where)
    events = dataset.events
    for number in range(2):
        with system.open(f"{path}/part-{number}.parquet", "wb") as file:
            pq.write_table(table(dataset, events.contributor % 2 == number), file)
    try:
        assert ingest_tables(home, where).added == len(events)
        assert ingest_tables(home, f"{where}/part-0.parquet").before == (events.contributor % 2 == 0).sum()
    finally:
        system.rm(path, recursive=True)


def test_the_commands_feed_the_pool_and_make_it_forget(home, dataset, published, tmp_path, capsys):
    at = ["--home", str(home.path)]
    path = tmp_path / "log.parquet"
    pq.write_table(table(dataset, np.ones(len(dataset.events), bool)), path)
    assert main(["data", "ingest", *at, "--interactions", str(path), "--json", str(tmp_path / "told.json")]) == 0
    total = len(dataset.events)
    said = capsys.readouterr().out
    assert f"{total} samples added to the pool, which has {total}" in said
    assert "in the pool, durable and searched: " in said and "; merged and made ready to match: " in said
    told = msgspec.json.decode((tmp_path / "told.json").read_bytes())
    assert (told["command"], told["added"], told["samples"]) == ("data ingest", total, total)
    assert told["pool"]["cpu_s"] > 0 and told["prepared"]["seconds"] >= 0
    user = dataset.users[int(dataset.events.contributor[0])]
    theirs = int((dataset.events.contributor == dataset.events.contributor[0]).sum())
    assert main(["data", "erase", *at, "--user", user]) == 0
    assert f"{theirs} samples hidden" in capsys.readouterr().out
    assert main(["data", "stats", *at, "--json", str(tmp_path / "stats.json")]) == 0
    facts = msgspec.json.decode((tmp_path / "stats.json").read_bytes())
    assert (facts["samples"], facts["hidden"], facts["erased_contributors"]) == (total - theirs, theirs, 1)
    assert main(["data", "ingest", *at, "--data", str(published.data)]) == 0, "under another name they stay out too"
    assert len(pool_of(home)) == 2 * (total - theirs)
    assert main(["data", "retain", *at, "--samples", "100"]) == 0
    assert len(pool_of(home)) <= 100
    assert main(["data", "compact", *at]) == 0
    assert main(["data", "stats", *at, "--json", str(tmp_path / "stats.json")]) == 0
    after = msgspec.json.decode((tmp_path / "stats.json").read_bytes())
    assert after["hidden"] == 0 and after["bytes"] < facts["bytes"]
    assert main(["data", "retain", *at, "--gib", "0"]) == 0 and len(pool_of(home)) == 0
    assert main(["data", "retain", *at, "--days", "-1"]) == 2
    assert main(["data", "erase", "--home", str(tmp_path / "nowhere"), "--user", "x"]) == 2
