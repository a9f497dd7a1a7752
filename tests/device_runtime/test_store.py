"""The device's store: what survives, and what is refused."""

import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime.database import UPGRADES
from device_runtime.errors import StoreError
from device_runtime.journal import Inputs
from device_runtime.messages import BundleRef, RoundReport
from device_runtime.store import Event, Store, labels


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "coda.db") as opened:
        yield opened


def inputs(ordinal):
    return Inputs(seed=0, match=True, engine="onnx 1", until=0, events=0, ordinal=ordinal)


def report(name):
    return RoundReport(
        round=name, bundle=1, engine="onnx", outcome="kept", local=9, candidates=5, kept=1, verdict=None, phases=[]
    )


def test_events_are_kept_in_order_and_duplicates_are_not(store):
    events = [Event("b", 20, 1.0), Event("a", 10, 0.0), Event("c", 10, None, 4.5), Event("d", 20, 0.0, observed=False)]
    assert store.add_events(events) == 4
    assert store.add_events([Event("a", 10, 1.0), Event("e", 30, 1.0)]) == 1
    assert [event.item for event in store.events()] == ["a", "c", "b", "d", "e"]
    assert store.events()[0].label == 0.0, "what was there first stays"
    assert store.count_events() == 5


def test_everything_is_there_after_reopening(tmp_path):
    ref = BundleRef(version=3, manifest="ab" * 32, size=9, key="k", signature="s")
    with Store(tmp_path / "coda.db") as store:
        store.add_events([Event("a", 1, 1.0)])
        store.use_bundle(ref, '"tag"')
        store.use_weights("w1", 3)
        store.use_weights("w2", 3)
        store.pass_test("onnx")
        progress = store.start_round("r1", 5.0, inputs)
        progress.traffic = {"match": (10, 20)}
        store.finish_round("r1", "failed", report("r1"), progress)
        store.set(server="http://x")
    with Store(tmp_path / "coda.db") as store:
        assert store.bundle() == (ref, '"tag"')
        assert store.weights() == ("w2", 3)
        assert store.passed("onnx") and not store.passed("executorch")
        [row] = store.rounds()
        assert (row.id, row.state, row.report, row.delivered, row.traffic) == (
            "r1", "failed", report("r1"), False, {"match": (10, 20)},
        )  # fmt: skip
        assert store.setting("server") == "http://x" and store.setting("nothing") is None


def test_labels_come_from_labels_then_ratings():
    events = [Event("a", 1, 0.25, 5.0), Event("b", 2, None, 4.0), Event("c", 3, None, 3.5)]
    np.testing.assert_array_equal(labels(events, 4.0), np.array([0.25, 1, 0], np.float32))
    assert np.isnan(labels(events, None)[1:]).all()


def test_a_round_that_was_cut_off_is_found_and_marked_by_another(store):
    progress = store.start_round("r1", 1.0, inputs)
    progress.files["encoded"] = "ab"
    store.advance_round("r1", "pulled", progress)
    found = store.unfinished()
    assert (found.id, found.state, found.progress) == ("r1", "pulled", progress)
    assert store.start_round("r2", 2.0, inputs).inputs.ordinal == 1
    assert [row.state for row in store.rounds()] == ["interrupted", "started"]


def test_weights_serve_from_the_commit_that_says_so(store):
    progress = store.start_round("r1", 1.0, inputs)
    with pytest.raises(StoreError, match="cannot go from started to activated"):
        store.activate_round("r1", progress, "r1")
    assert store.weights() is None, "all or nothing"
    for state in ("pulled", "encoded", "tuned", "judged"):
        store.advance_round("r1", state, progress)
    progress.bundle = 3
    store.activate_round("r1", progress, "r1")
    assert store.weights() == ("r1", 3) and store.unfinished().state == "activated"


@given(st.binary(min_size=1, max_size=300))
@settings(max_examples=20, deadline=None)
def test_a_file_that_is_something_else_is_left_alone(noise):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "coda.db"
        path.write_bytes(b"x" + noise * 20)
        with pytest.raises(StoreError, match="restore a copy"):
            Store(path)
        assert path.read_bytes() == b"x" + noise * 20


def test_another_version_is_refused(tmp_path):
    Store(tmp_path / "coda.db").close()
    db = sqlite3.connect(tmp_path / "coda.db")
    db.execute("PRAGMA user_version = 7")
    db.close()
    with pytest.raises(StoreError, match="version 7; this program reads versions up to 2"):
        Store(tmp_path / "coda.db")


def test_a_file_of_version_1_is_brought_up_to_date_with_all_that_it_holds(tmp_path):
    db = sqlite3.connect(tmp_path / "coda.db", isolation_level=None)
    db.executescript(UPGRADES[0] + "PRAGMA user_version = 1;")
    db.execute("INSERT INTO events (item, timestamp, label, observed) VALUES ('a', 5, 1.0, 1)")
    db.execute("INSERT INTO rounds (id, state, started) VALUES ('old', 'matched', 1.0)")
    db.close()
    for _ in range(2):
        with Store(tmp_path / "coda.db") as store:
            assert store.events() == [Event("a", 5, 1.0)]
            assert store.unfinished().progress is None, "it cannot be resumed, and the next round marks it"


def test_an_sqlite_file_of_another_program_is_left_alone(tmp_path):
    db = sqlite3.connect(tmp_path / "coda.db", isolation_level=None)
    db.execute("CREATE TABLE recipes (name TEXT)")
    db.close()
    with pytest.raises(StoreError, match="another program; use another --home"):
        Store(tmp_path / "coda.db")


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path):
    with Store(tmp_path / "coda.db") as store:
        store.add_events([Event("a", 1, 1.0)])
        [pages] = store._db.execute("PRAGMA page_count").fetchone()
        store._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match="full; free some space; nothing that was stored is lost"):
            store.add_events([Event(f"item {n}" * 50, n, 1.0) for n in range(1000)])
        assert [event.item for event in store.events()] == ["a"]


def test_an_unwritable_place_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="check that the folder"):
        Store(tmp_path / "file" / "coda.db")


WRITER = """
import sys
from pathlib import Path
from device_runtime.store import Event, Store
store = Store(Path(sys.argv[1]))
for n in range(100_000):
    store.add_events([Event(f"a{n}", n, 1.0), Event(f"b{n}", n, 0.0)])
    print(n, flush=True)
"""


def test_a_kill_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path):
    for attempt in range(4):
        path = tmp_path / f"{attempt}.db"
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        with writer.stdout:
            acknowledged = -1
            for line in writer.stdout:
                acknowledged = int(line)
                if acknowledged >= 3 + 7 * attempt:
                    os.kill(writer.pid, signal.SIGKILL)
                    break
            acknowledged = max([acknowledged, *(int(line) for line in writer.stdout if line.strip().isdigit())])
        writer.wait()
        with Store(path) as store:
            items = {event.item for event in store.events()}
        for n in range(acknowledged + 1):
            assert {f"a{n}", f"b{n}"} <= items
        assert len(items) % 2 == 0, "a transaction is whole or absent"


def test_two_processes_may_write_at_once(tmp_path):
    Store(tmp_path / "coda.db").close()

    def write(number):
        with Store(tmp_path / "coda.db") as store:
            for n in range(20):
                store.add_events([Event(f"{number}-{n}", n + 1, 1.0)])

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(write, range(3)))
    with Store(tmp_path / "coda.db") as store:
        assert store.count_events() == 60
