"""What `coda bench ingest` measures is what ends in the pool."""

from __future__ import annotations

from benchmarks.ingest import emptied, from_table, write_table
from cloud.datasets import Dataset
from cloud.home import ServerHome


def test_every_row_joins_an_empty_pool_and_each_stage_is_told(published, tmp_path):
    items = Dataset.load(published.data).items[1:]
    write_table(tmp_path / "table.parquet", items, 3000, 0)
    home = emptied(published.home, tmp_path / "home")
    with ServerHome(home) as opened:
        assert len(opened.pool(opened.release()[1])) == 0
    rows = from_table(home, tmp_path, turn=1)
    assert [row["stage"] for row in rows] == ["pool", "prepared", "process"]
    with ServerHome(home) as opened:
        assert {row["samples"] for row in rows} == {len(opened.pool(opened.release()[1]))} == {3000}
