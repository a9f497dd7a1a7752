"""One contract for every store, with exact search as the oracle."""

import contextlib
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.matching import ExactStore, FaissStore, Filter, Found, index, match
from cloud.matching.milvus import MilvusStore
from cloud.matching.select import choose
from cloud.pool import Pool
from device_runtime.errors import InputError
from device_runtime.samples import Feature, Ragged, SampleBatch, Schema
from device_runtime.wire import MatchQuery
from tests.conftest import SEED
from tests.device_runtime.batches import assert_same

SCHEMA = Schema((Feature("item", "id", "item"), Feature("history", "ids", "item", 5)))
WIDTH = 16


class MilvusLite(MilvusStore):
    """Over Milvus Lite, which runs in this process; a search waits until it has all of the pool."""

    def __init__(self, pool):
        super().__init__(pool, str(pool.folder / "milvus.db"))

    def search(self, *arguments, **named):
        self.wait()
        return super().search(*arguments, **named)

    def asked_remotely(self, *arguments):
        found = self._asked(list(self._pool.segments), *arguments)
        assert found is not None, "Milvus answers, and with all there is"
        return found


STORES = [ExactStore, FaissStore, MilvusLite]


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


def shown(pool, exclude, where):
    """Positions that an answer may show, by a plain loop over the columns."""
    found = []
    for segment in pool.segments:
        for row in range(len(segment)):
            at, label = int(segment.timestamps[row]), float(segment.samples.labels[row])
            if segment.contributors[row] == exclude or row in segment.hidden.tolist():
                continue
            if (where.after is not None and at < where.after) or (where.before is not None and at >= where.before):
                continue
            if (where.label_min is not None and label < where.label_min) or (
                where.label_max is not None and label > where.label_max
            ):
                continue
            if all(segment.samples.columns[name][row] == wanted for name, wanted in where.equals):
                found.append(segment.base + row)
    return found


def check(found, oracle, k, allowed):
    """What every answer must be: k rows or all there are, best first, none that may not show, as good as exact."""
    for row, similar, best in zip(found.positions, found.similarities, oracle.similarities, strict=True):
        real = row[row >= 0]
        assert len(np.unique(real)) == len(real) == min(k, len(allowed))
        assert np.isin(real, allowed).all(), "a sample came back that may not be shown"
        assert (np.diff(similar[: len(real)]) <= 1e-6).all(), "best first"
        assert np.isneginf(similar[len(real) :]).all()
        np.testing.assert_allclose(similar[: len(real)], best[: len(real)], atol=1e-5)


def query(rng, count, limit):
    return MatchQuery("encoder", unit(rng, count), limit, np.zeros(0, np.int32))


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    rng = np.random.default_rng(SEED)
    made = Pool(tmp_path_factory.mktemp("pool"), SCHEMA, WIDTH)
    for count in (900, 40, 300):
        fill(made, rng, count)
    return made


FILTERS = st.builds(
    Filter,
    after=st.none() | st.integers(0, 150),
    before=st.none() | st.integers(0, 150),
    label_min=st.none() | st.sampled_from([0.0, 0.5, 1.0]),
    label_max=st.none() | st.sampled_from([0.0, 0.5]),
    equals=st.just(()) | st.tuples(st.tuples(st.just("item"), st.integers(1, 99))),
)


CASES = given(
    st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 1300), st.integers(0, 8), st.none() | FILTERS,
    st.lists(st.sampled_from(["append", "erase", "retain", "compact"]), max_size=4),
)  # fmt: skip


@pytest.mark.parametrize("store", [ExactStore, FaissStore])
@settings(max_examples=20, deadline=None)
@CASES
def test_answers_are_what_exact_search_gives(store, seed, queries, k, exclude, where, changes):
    answers_are_exact(store, seed, queries, k, exclude, where, changes)


@settings(max_examples=4, deadline=None)
@CASES
def test_answers_of_milvus_are_what_exact_search_gives(seed, queries, k, exclude, where, changes):
    """Fewer examples: opening Milvus Lite takes a second."""
    answers_are_exact(MilvusLite, seed, queries, k, exclude, where, changes)


def answers_are_exact(store, seed, queries, k, exclude, where, changes):
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        rng = np.random.default_rng(seed)
        pool = Pool(Path(folder), SCHEMA, WIDTH)
        searching = store(pool)
        if store is MilvusLite:
            stack.callback(searching.close)
        for change in ["append", "append", *changes]:
            if change == "append":
                fill(pool, rng, int(rng.integers(1, 200)))
            elif change == "erase":
                pool.erase(int(rng.integers(1, 8)), now=50)
            elif change == "retain":
                pool.retain(int(rng.integers(0, 100)))
            else:
                pool.compact(full=bool(rng.integers(2)))
            vectors = unit(rng, queries)
            found = searching.search(vectors, k, exclude, where)
            assert found.positions.shape == found.similarities.shape == (queries, k)
            allowed = shown(pool, exclude, where or Filter())
            check(found, ExactStore(pool).search(vectors, k, exclude, where), k, allowed)


@pytest.mark.parametrize("store", STORES)
def test_searches_go_on_while_segments_merge(tmp_path, rng, store):
    """Whoever searched before a merge gathers the same samples after it, and none ever comes twice or is missing."""
    pool = Pool(tmp_path, SCHEMA, WIDTH)
    for _ in range(12):
        fill(pool, rng, 40)
    searching, vectors = store(pool), unit(rng, 3)
    oracle = ExactStore(pool).search(vectors, 480, 3).similarities
    stop = threading.Event()

    def search():
        rounds = 0
        while not stop.is_set() or not rounds:
            found = searching.search(vectors, 480, 3)
            np.testing.assert_allclose(found.similarities, oracle, atol=1e-5)
            real = found.positions[0][found.positions[0] >= 0]
            assert len(pool.gather(real)) == len(np.unique(real))
            rounds += 1
        return rounds

    before = searching.search(vectors, 480, 3).positions[0]
    items = pool.gather(before[before >= 0]).columns["item"]
    with ThreadPoolExecutor(2) as threads:
        jobs = [threads.submit(search) for _ in range(2)]
        for _ in range(3):
            assert pool.compact(full=True) in (12, 0)
        stop.set()
        assert all(job.result() for job in jobs)
    assert len(pool.segments) == 1
    np.testing.assert_array_equal(pool.gather(before[before >= 0]).columns["item"], items)


@pytest.mark.parametrize("store", STORES)
def test_an_erased_contributor_is_gone_at_once_from_every_process(tmp_path, rng, store):
    serving, other = Pool(tmp_path, SCHEMA, WIDTH), Pool(tmp_path, SCHEMA, WIDTH)
    fill(serving, rng, 200)
    searching = store(serving)
    theirs = np.flatnonzero(serving.segments[0].contributors == 4)
    assert theirs[0] in searching.search(serving.segments[0].embeddings[theirs[:1]], 1, 0).positions
    assert other.erase(4, now=0) == len(theirs)
    found = searching.search(unit(rng, 3), 200, 0)
    assert not np.isin(theirs, found.positions).any()
    assert (found.positions >= 0).sum(1).tolist() == [200 - len(theirs)] * 3


@pytest.mark.parametrize("store", STORES)
def test_a_filter_on_what_the_pool_lacks_is_refused(pool, rng, store):
    for name in ("country", "history"):
        with pytest.raises(InputError, match=f"cannot be chosen by '{name}'; the pool has item"):
            store(pool).search(unit(rng, 1), 3, 0, Filter(equals=((name, 3),)))


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
    count = index.FLAT_UP_TO + 10_000
    pool = Pool(tmp_path_factory.mktemp("large"), SCHEMA, WIDTH)
    centres = unit(rng, 60)
    points = centres[rng.integers(0, 60, count)] + request.param * unit(rng, count)
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    points[: count // 10] = points[0]
    tokens = np.where(np.arange(count) < count // 10, 1, 2).astype(np.uint64)
    pool.append(make_samples(rng, count), np.arange(count), tokens, points)
    store = FaissStore(pool)
    store.wait()
    return pool, store


def recall_of(found, exact):
    kept = [len(np.intersect1d(a[a >= 0], b)) / (a >= 0).sum() for a, b in zip(exact, found, strict=True)]
    return np.mean(kept)


@pytest.mark.parametrize(
    "where", [Filter(after=30_000), Filter(before=59_000, label_min=1), Filter(after=10_000, before=10_200)], ids=str
)
def test_inverted_lists_obey_filters(large, rng, where):
    """The last is so tight that the samples which pass are compared one by one."""
    pool, store = large
    queries = pool.segments[0].embeddings[rng.integers(len(pool) // 10, len(pool), 20)]
    exact, found = (one.search(queries, 300, 1, where).positions for one in (ExactStore(pool), store))
    assert ((exact >= 0) == (found >= 0)).all()
    passing = np.flatnonzero(where.passes(pool.segments[0]))
    assert np.isin(found[found >= 0], passing).all()
    assert recall_of(found, exact) >= 0.95


@pytest.mark.parametrize("large", [1.0], ids=["spread"], indirect=True)
def test_an_index_is_kept_beside_its_segment_and_mended(large, rng):
    pool, store = large
    queries = unit(rng, 4)
    path = next(pool.folder.glob("segment-*/index-sq8.faiss"))
    built = path.stat()
    again = FaissStore(pool)
    again.wait()
    np.testing.assert_array_equal(again.search(queries, 9, 0).positions, store.search(queries, 9, 0).positions)
    assert path.stat().st_mtime_ns == built.st_mtime_ns, "opened, not built again"
    whole = path.read_bytes()
    path.rename(path.with_suffix(".aside"))  # what others have mapped stays as it is
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    mended = FaissStore(pool)
    mended.wait()
    assert path.read_bytes() == whole
    np.testing.assert_array_equal(mended.search(queries, 9, 0).positions, store.search(queries, 9, 0).positions)


@pytest.mark.parametrize("large", [1.0], ids=["spread"], indirect=True)
def test_a_segment_without_its_index_is_searched_exactly(large, rng, monkeypatch):
    pool, _ = large
    queries = unit(rng, 4)
    begun, may_end = threading.Event(), threading.Event()

    def slow(*_):
        begun.set()
        may_end.wait(60)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cloud.matching.faiss.build", slow)
    store = FaissStore(pool)
    store.search(queries, 9, 0)
    assert begun.wait(60)
    exact = ExactStore(pool).search(queries, 9, 1)
    np.testing.assert_array_equal(store.search(queries, 9, 1).positions, exact.positions)
    may_end.set()
    store.wait()
    np.testing.assert_array_equal(store.search(queries, 9, 1).positions, exact.positions)


def test_a_process_that_ends_while_an_index_is_built_ends_well(tmp_path, rng):
    """Its builder came back from FAISS into an interpreter that was gone, and that aborted the process."""
    fill(Pool(tmp_path, SCHEMA, WIDTH), rng, index.FLAT_UP_TO + 10_000)
    script = (
        "import sys, time; from pathlib import Path; import numpy as np\n"
        "from tests.cloud.matching.test_contract import SCHEMA, WIDTH, FaissStore, Pool\n"
        "store = FaissStore(Pool(Path(sys.argv[1]), SCHEMA, WIDTH))\n"
        "store.search(np.zeros((1, WIDTH), np.float32), 1, 0)\n"
        "while not store._wanted.empty(): time.sleep(0.001)  # until it is begun\n"
    )
    root = Path(__file__).parents[3]
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=root, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert list(tmp_path.glob("segment-*/index-sq8.faiss")), "what was begun was ended"


def test_product_codes_are_compared_again_by_their_vectors(tmp_path, rng, monkeypatch):
    monkeypatch.setattr("cloud.matching.faiss.FLAT_UP_TO", 1000)
    pool = Pool(tmp_path, SCHEMA, WIDTH)
    fill(pool, rng, 5000)
    store = FaissStore(pool, "pq")
    store.wait()
    queries = unit(rng, 20)
    exact, found = ExactStore(pool).search(queries, 100, 1), store.search(queries, 100, 1)
    assert recall_of(found.positions, exact.positions) >= 0.95
    both = found.positions[0] == exact.positions[0]
    np.testing.assert_allclose(found.similarities[0][both], exact.similarities[0][both], atol=1e-5)
    assert list(tmp_path.glob("segment-*/index-pq.faiss"))


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
    np.testing.assert_array_equal(found.positions, store.search(near_own, 500, 1).positions)


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
