import json

import numpy as np

from benchmarks.matching_data import CENTROIDS, make
from benchmarks.matching_stores import STORES
from device_runtime.cli import main


def test_vectors_are_clustered_and_the_truth_is_true(tmp_path):
    make(tmp_path, 3000, 16, devices=3, k=20, seed=1)
    vectors, queries = np.load(tmp_path / "vectors.npy"), np.load(tmp_path / "queries.npy")
    assert vectors.shape == (3000, 16) and queries.shape == (3, CENTROIDS, 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    similarity = queries.reshape(-1, 16) @ vectors.T
    best = np.sort(similarity, axis=1)[:, -20:]
    truth = np.load(tmp_path / "truth.npy")
    np.testing.assert_allclose(np.sort(np.take_along_axis(similarity, truth, 1), axis=1), best, atol=1e-6)
    chance = np.random.default_rng(0).normal(size=(3000, 16))
    chance /= np.linalg.norm(chance, axis=1, keepdims=True)
    assert best.mean() > np.sort(queries.reshape(-1, 16) @ chance.T, axis=1)[:, -20:].mean() + 0.05


def test_the_rows_that_others_script_against(tmp_path, capsys):
    out = tmp_path / "matching.json"
    words = ["bench", "matching", "--quick", "--samples", "2000", "-k", "20"]
    picture = tmp_path / "matching.svg"
    assert main([*words, "--json", str(out), "--plot", str(picture)]) == 0
    assert all(store in picture.read_text() for store in STORES)
    result = json.loads(out.read_text())
    assert result["command"] == "bench matching" and result["missing"] == []
    rows = {row["store"]: row for row in result["rows"]}
    assert set(rows) == set(STORES)
    for row in rows.values():
        assert {"samples", "dim", "k", "build_s", "memory_bytes", "qps", "recall"} <= set(row)
        assert row["samples"] == 2000 and row["qps"] > 0 and row["memory_bytes"] > 0 and row["recall"] >= 0.95
    assert rows["exact"]["recall"] > 0.999 and rows["coda"]["append_per_s"] > 0
    assert "times the queries of" in capsys.readouterr().out


def test_what_is_not_installed_is_named_loudly(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(STORES, "hnswlib", (STORES["hnswlib"][0], "no_such_module"))
    assert main(["bench", "matching", "--quick", "--samples", "2000", "-k", "20", "--stores", "hnswlib"]) == 1
    assert "hnswlib IS NOT INSTALLED" in capsys.readouterr().out
    assert main(["bench", "matching", "--samples", "100"]) == 2
