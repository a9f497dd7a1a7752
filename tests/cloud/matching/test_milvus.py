"""What is particular to Milvus: what it has when, and what happens when it does not answer."""

import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from cloud.matching import ExactStore, Filter, open_store
from cloud.matching.exact import ExactStore as Oracle
from cloud.matching.faiss import FaissStore
from cloud.matching.milvus import MilvusStore
from cloud.pool import Pool
from device_runtime.errors import EngineUnavailable, InputError
from tests.cloud.matching.test_contract import SCHEMA, WIDTH, MilvusLite, fill, shown, unit


@pytest.fixture
def pool(tmp_path, rng):
    made = Pool(tmp_path / "pool", SCHEMA, WIDTH)
    fill(made, rng, 300)
    return made


@pytest.fixture
def store(pool):
    made = MilvusLite(pool)
    yield made
    made.close()


def test_milvus_itself_gives_the_answers(pool, store, rng):
    """Not the exact search that stands in for it: asked directly, it has them all."""
    store.wait()
    vectors, where = unit(rng, 3), Filter(after=20, before=290, label_min=0.5)
    for condition in (None, where):
        found = store.asked_remotely(vectors, 30, 3, condition)
        exact = Oracle(pool).search(vectors, 30, 3, condition)
        kept = [len(np.intersect1d(a, b)) / 30 for a, b in zip(found.positions, exact.positions, strict=True)]
        assert np.mean(kept) >= 0.95
        assert np.isin(found.positions, shown(pool, 3, condition or Filter())).all()
    fill(pool, rng, 50)
    pool.erase(2, now=99)
    pool.compact(full=True)
    store.wait()
    found = store.asked_remotely(vectors, 30, 3, None)
    assert np.isin(found.positions, shown(pool, 3, Filter())).all()
    held = store._client.query(store._collection, filter="position >= 0", output_fields=["count(*)"])
    assert held[0]["count(*)"] == len(pool), "what was merged away or erased has left Milvus too"


def test_another_process_finds_what_was_uploaded(pool, store, rng, monkeypatch):
    store.wait()
    store.close()
    again = MilvusLite(pool)
    monkeypatch.setattr(again, "_upload", lambda segment: pytest.fail("it is there already"))
    again.wait()
    assert again.asked_remotely(unit(rng, 1), 5, 0, None).positions.shape == (1, 5)
    again.close()


def test_a_milvus_that_goes_away_is_stood_in_for_until_it_is_back(pool, store, rng, caplog, monkeypatch):
    monkeypatch.setattr("cloud.matching.milvus._RETRY_S", 0.0)
    store.wait()
    vectors = unit(rng, 2)
    exact = ExactStore(pool).search(vectors, 10, 3)
    answering = store._client

    class Gone:
        def __getattr__(self, name):
            raise ConnectionError("connection refused")

    store._client = Gone()
    np.testing.assert_array_equal(store.search(vectors, 10, 3).positions, exact.positions)
    assert "does not answer, matching is exact meanwhile: connection refused" in caplog.text
    fill(pool, rng, 5)
    store.wait()
    store._client = answering
    store.wait()
    assert store.asked_remotely(vectors, 10, 3, None).positions.shape == (2, 10)


@pytest.fixture
def server(tmp_path):
    """Milvus Lite's gRPC server in a process of its own: (its URI, a function that starts it, its processes)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["server", "--data-dir", str(tmp_path / "milvus"), "--host", "127.0.0.1", "--port", str(port)]
    started = []

    def start():
        command = [sys.executable, "-m", "milvus_lite", *words]
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT))
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                assert started[-1].poll() is None and time.monotonic() < until, "the server did not start"
                time.sleep(0.1)
            else:
                return started[-1]

    start()
    yield f"http://127.0.0.1:{port}", start, started
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_dies_or_hangs_among_searches_is_stood_in_for_and_taken_up_again(
    pool, server, rng, monkeypatch, how
):
    monkeypatch.setattr("cloud.matching.milvus._RETRY_S", 0.3)
    monkeypatch.setattr("cloud.matching.milvus._SEARCH_S", 1.0)
    uri, start, processes = server
    store, vectors = MilvusStore(pool, uri), unit(rng, 2)
    exact = set(ExactStore(pool).search(vectors, 10, 3).positions.ravel().tolist())
    store.wait()

    def answers_itself():
        return store._asked(list(pool.segments), vectors, 10, 3, None) is not None

    assert answers_itself()
    answers, stop = [], threading.Event()

    def searching():
        while not stop.is_set():
            answers.append(store.search(vectors, 10, 3))

    searcher = threading.Thread(target=searching)
    searcher.start()
    try:
        wait_until(lambda: len(answers) > 3)
        processes[-1].send_signal(how)
        gone = len(answers)
        wait_until(lambda: len(answers) > gone + 5)
        assert not answers_itself()
        if how == signal.SIGKILL:
            processes[-1].wait()
            start()
        else:
            processes[-1].send_signal(signal.SIGCONT)
        wait_until(answers_itself)
    finally:
        stop.set()
        searcher.join()
    for found in answers:
        assert found.positions.shape == (2, 10) and len(exact.intersection(found.positions.ravel().tolist())) >= 19
    store.close()


def wait_until(true, seconds=60.0):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.02)


def test_stores_by_name(pool, monkeypatch):
    assert isinstance(open_store("exact", pool), ExactStore)
    assert isinstance(open_store("faiss", pool), FaissStore) and isinstance(open_store("faiss:pq", pool), FaissStore)
    assert isinstance(open_store("milvus:http://localhost:19530", pool), MilvusStore), "it connects when it is needed"
    for word in ("annoy", "milvus", "faiss:hnsw", ""):
        with pytest.raises(InputError, match="there are faiss, faiss:pq, exact, or milvus:URI"):
            open_store(word, pool)
    monkeypatch.setitem(__import__("sys").modules, "pymilvus", None)
    with pytest.raises(EngineUnavailable, match=r"install '.\[milvus\]'"):
        open_store("milvus:x.db", pool)
