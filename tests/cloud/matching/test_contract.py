"""One contract for every store, with exact search as the oracle."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.matching import ExactStore, FaissStore, Found, match
from cloud.matching import faiss as faiss_module
from cloud.matching.select import choose
from cloud.pool import Pool
from device_runtime.samples import Feature, Ragged, SampleBatch, Schema
from device_runtime.wire import MatchQuery
from tests.conftest import SEED
from tests.device_runtime.batches import assert_same

SCHEMA = Schema((Feature("item", "id", "item"), Feature("history", "ids", "item", 5)))
WIDTH = 16
STORES = [ExactStore, FaissStore]


def unit(rng, count, width=WIDTH):
    points = rng.normal(size=(count, width))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def make_samples(rng, count):
    sequence = rng.integers(1, 99, count + 5).astype(np.int32)
    starts = np.arange(count, dtype=np.int32)
    columns = {"item": sequence[:count], "history": Ragged(sequence, starts, np.full(count, 5, np.int32))}
    return SampleBatch(SCHEMA, columns, rng.integers(0, 2, count).astype(np.float32))


def fill(pool, rng, count, contributors=7):
    tokens = rng.integers(1, contributors + 1, count).astype(np.uint64)
    pool.append(make_samples(rng, count), np.arange(count), tokens, unit(rng, count))


def query(rng, count, limit):
    return MatchQuery("encoder", unit(rng, count), limit, np.zeros(0, np.int32))


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    rng = np.random.default_rng(SEED)
    made = Pool(tmp_path_factory.mktemp("pool"), SCHEMA, WIDTH)
    for count in (900, 40, 300):
        fill(made, rng, count)
    return made


@pytest.mark.parametrize("store", STORES)
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 1300), st.integers(0, 8))
def test_answers_are_what_exact_search_gives(store, seed, queries, k, exclude):
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(seed)
        pool = Pool(Path(folder), SCHEMA, WIDTH)
        for count in (rng.integers(1, 200), rng.integers(1, 50)):
            fill(pool, rng, int(count))
        vectors = unit(rng, queries)
        found, oracle = store(pool).search(vectors, k, exclude), ExactStore(pool).search(vectors, k, exclude)
        assert found.positions.shape == found.similarities.shape == (queries, k)
        tokens = np.concatenate([segment.contributors for segment in pool.segments])
        for row, similar, best in zip(found.positions, found.similarities, oracle.similarities, strict=True):
            real = row[row >= 0]
            assert len(np.unique(real)) == len(real) == min(k, int((tokens != exclude).sum()))
            assert not (tokens[real] == exclude).any(), "the asker's own sample came back"
            assert (np.diff(similar[: len(real)]) <= 1e-6).all(), "best first"
            assert np.isneginf(similar[len(real) :]).all()
            np.testing.assert_allclose(similar[: len(real)], best[: len(real)], atol=1e-5)


@pytest.mark.parametrize("store", STORES)
def test_what_is_appended_is_found_and_snapshots_stay(tmp_path, rng, store):
    pool = Pool(tmp_path, SCHEMA, WIDTH)
    searching = store(pool)
    assert (searching.search(unit(rng, 1), 3, 0).positions == -1).all(), "an empty pool answers with nothing"
    fill(pool, rng, 50)
    before = pool.segments
    target = unit(rng, 1)
    pool.append(make_samples(rng, 1), np.zeros(1), np.array([99], np.uint64), target)
    assert searching.search(target, 1, 0).positions[0, 0] == 50
    assert sum(map(len, before)) == 50


@pytest.fixture(scope="module", params=[0.25, 1.0], ids=["clustered", "spread"])
def large(request, tmp_path_factory):
    """A pool in one segment that FAISS searches by inverted lists. Contributor 1 has a tenth of it, lying together."""
    rng = np.random.default_rng(SEED)
    count = faiss_module.FLAT_UP_TO + 10_000
    pool = Pool(tmp_path_factory.mktemp("large"), SCHEMA, WIDTH)
    centres = unit(rng, 60)
    points = centres[rng.integers(0, 60, count)] + request.param * unit(rng, count)
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    points[: count // 10] = points[0]
    tokens = np.where(np.arange(count) < count // 10, 1, 2).astype(np.uint64)
    pool.append(make_samples(rng, count), np.zeros(count, np.int64), tokens, points)
    return pool, FaissStore(pool)


@pytest.mark.parametrize("k", [10, 100, 2000])
def test_inverted_lists_reach_the_recall_that_is_promised(large, rng, k):
    pool, store = large
    queries = pool.segments[0].embeddings[rng.integers(len(pool) // 10, len(pool), 40)]
    exact = ExactStore(pool).search(queries, k, 1).positions
    found = store.search(queries, k, 1).positions
    recall = np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(exact, found, strict=True)])
    assert recall >= 0.95


def test_inverted_lists_pass_over_the_asker_even_where_it_fills_the_neighbourhood(large):
    pool, store = large
    near_own = pool.segments[0].embeddings[:1]
    found = store.search(near_own, 500, 1)
    assert (found.positions >= len(pool) // 10).all() and len(np.unique(found.positions)) == 500
    again = FaissStore(pool).search(near_own, 500, 1)
    np.testing.assert_array_equal(found.positions, again.positions)


def test_every_searching_thread_keeps_to_itself(pool, rng):
    store, vectors = FaissStore(pool), unit(rng, 2)

    def search():
        store.search(vectors, 5, 0)
        return faiss.omp_get_max_threads()

    with ThreadPoolExecutor(2) as threads:
        assert [job.result() for job in [threads.submit(search) for _ in range(4)]] == [1] * 4


@pytest.mark.parametrize("store", STORES)
def test_the_same_query_gives_the_same_candidates(pool, rng, store):
    asked = query(rng, 8, 100)
    assert_same(match(pool, store(pool), asked, 3)[0], match(pool, store(pool), asked, 3)[0])


@pytest.mark.parametrize("store", STORES)
def test_candidates_are_distinct_and_shortfalls_are_explained(pool, rng, store):
    candidates, reason = match(pool, store(pool), query(rng, 8, 100), exclude=3)
    assert len(candidates) == 100 and reason == ""
    candidates, reason = match(pool, store(pool), query(rng, 8, 5000), exclude=3)
    tokens = np.concatenate([segment.contributors for segment in pool.segments])
    assert len(candidates) == (tokens != 3).sum(), "all that there is"
    assert f"only {len(candidates)} samples" in reason
    assert len(match(pool, store(pool), query(rng, 8, 0), exclude=0)[0]) == 0
    assert match(pool, store(pool), query(rng, 0, 5), exclude=0)[1] == "the query has no centroids"


def test_centroids_take_turns():
    found = Found(np.array([[1, 2, 3, -1], [9, 1, 8, 7]]), np.zeros((2, 4), np.float32))
    assert choose(found, 3).tolist() == [1, 2, 9]
    assert choose(found, 99).tolist() == [1, 2, 3, 7, 8, 9]


def test_gathered_samples_are_the_ones_at_those_positions(pool, rng):
    positions = rng.permutation(len(pool))[:200]
    taken = pool.gather(positions)
    for i, position in enumerate(positions[:40].tolist()):
        segment = max((s for s in pool.segments if s.base <= position), key=lambda s: s.base)
        original = segment.samples.take(np.array([position - segment.base]))
        assert taken.columns["item"][i] == original.columns["item"][0]
        assert taken.columns["history"].row(i).tolist() == original.columns["history"].row(0).tolist()
        assert taken.labels[i] == original.labels[0]
