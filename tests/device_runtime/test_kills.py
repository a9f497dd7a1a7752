"""Rounds are killed, hundreds of times; nothing is lost, nothing is wrong, nothing is fetched twice.

CI kills at every point where something becomes durable, and at `--kills` random instants (default 80). The long run:

    pytest tests/device_runtime/test_kills.py --kills 1000
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from device_runtime.bundle import read_tensors
from device_runtime.counting import ByteCounter
from device_runtime.engines import open_engine
from device_runtime.history import read_history
from device_runtime.home import DeviceHome
from device_runtime.journal import FINAL
from device_runtime.ranker import rank
from tests.device_runtime.peers import LoggingProxy
from tests.device_runtime.zygote import Zygote


class Device:
    """A device's home, looked at from outside between the processes that work on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = open_engine("onnx")

    def prepare(self, published, url):
        with DeviceHome(self.folder) as home:
            home.store.add_events(read_history(published.history).events)
            home.enrol(url, published.trust, ByteCounter())
        return self

    def copy(self, folder: Path) -> Device:
        shutil.copytree(self.folder, folder)
        return Device(folder)

    def rounds(self):
        with DeviceHome(self.folder) as home:
            return home.store.rounds()

    def weights(self):
        """The bytes of the weights that serve, as tensors; None where the bundle's do."""
        with DeviceHome(self.folder) as home:
            found = home.store.weights()
        if found is None:
            return None
        data = (self.folder / "weights" / f"{found[0]}.safetensors").read_bytes()
        return {name: value.tobytes() for name, value in read_tensors(data, "weights").items()}

    def ranking(self):
        """None before the first bundle is in service."""
        with DeviceHome(self.folder) as home:
            if home.store.bundle() is None:
                return None
            model = home.model(self.engine)
            return tuple(row.item for row in rank(home, model, home.active_weights(model), None, 10))

    def check_store(self):
        with sqlite3.connect(self.folder / "coda.db") as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        db.close()

    def at_hand(self):
        """blob -> bytes on the device; those that are whole as None."""
        blobs = self.folder / "blobs"
        held = {path.name: None for path in blobs.glob("*") if re.fullmatch("[0-9a-f]{64}", path.name)}
        return held | {path.name[6:]: path.stat().st_size for path in blobs.glob(".part-*")}


def check_no_waste(requests, at_hand, state):
    """What a process asked for, against what was on the device when it started."""
    for request in requests:
        if blob := re.fullmatch("/v1/blobs/([0-9a-f]{64})", request.path):
            held = at_hand.get(blob[1], 0)
            assert held is not None, f"blob {blob[1][:8]} was there already"
            assert request.headers.get("range", "bytes=0-") == f"bytes={held}-"
    asked = Counter(request.path for request in requests)
    if state not in (None, *FINAL, "started"):
        assert not asked["/v1/bundle"], f"the bundle was in service: {state}"
    if state not in (None, *FINAL, "started", "pulled", "encoded"):
        assert not asked["/v1/match"], f"the candidates were there: {state}"


@pytest.fixture
def zygote(tmp_path):
    with Zygote(tmp_path / "zygote.log") as running:
        yield running


@pytest.fixture
def proxy(serving):
    with serving() as (url, _), LoggingProxy(int(url.rsplit(":", 1)[1])) as between:
        yield between


def test_killed_at_every_transition_the_round_ends_as_if_it_had_not_been(zygote, proxy, published, tmp_path):
    fresh = Device(tmp_path / "fresh").prepare(published, proxy.url)
    whole = fresh.copy(tmp_path / "whole")
    assert zygote.run(whole.folder, proxy.url) == 0
    expected, states, kill_at = whole.weights(), set(), 0
    while True:
        kill_at += 1
        device = fresh.copy(tmp_path / "device")
        if (status := zygote.run(device.folder, proxy.url, kill_at)) == 0:
            break
        assert status == -signal.SIGKILL
        device.check_store()
        [row] = device.rounds() or [None]
        state, at_hand = row.state if row else None, device.at_hand()
        states.add(state)
        ranking = device.ranking()
        assert len(ranking) == 10 if ranking is not None else state in (None, "started")
        before, seen = device.weights(), len(proxy.requests)
        assert zygote.run(device.folder, proxy.url) == 0
        check_no_waste(proxy.requests[seen:], at_hand, state)
        ended = before if state in FINAL else device.weights()  # after its end, the next round has run
        assert ended == expected, f"killed at point {kill_at}, in state {state}"
        rows = device.rounds()
        assert rows[-1].state == "done" and not any((device.folder / "rounds").iterdir())
        assert state in (None, *FINAL) or [row.id for row in rows] == [rows[0].id], "it was resumed, not begun anew"
        shutil.rmtree(device.folder)
    assert states == {
        None,
        "started",
        "pulled",
        "encoded",
        "matched",
        "filtered",
        "tuned",
        "judged",
        "activated",
        "done",
    }
    assert kill_at > 40, "each commit, rename and removal was a point"


def test_killed_at_random_instants_the_last_good_weights_rank(zygote, proxy, published, tmp_path, rng, request):
    device = Device(tmp_path / "device").prepare(published, proxy.url)
    times = []
    for _ in range(4):
        started = time.monotonic()
        assert zygote.run(device.folder, proxy.url) == 0
        times.append(time.monotonic() - started)
    usual = float(np.median(times[1:]))
    found, after, now = Counter(), device.rounds(), device.ranking()
    wanted = request.config.getoption("--kills")
    for _ in range(3 * wanted):
        if found["killed"] == wanted:
            break
        before, ranking, at_hand = after, now, device.at_hand()
        seen = len(proxy.requests)
        child = zygote.start(device.folder, proxy.url)
        time.sleep(usual * rng.random())
        with suppress(ProcessLookupError):  # it was faster
            os.kill(child, signal.SIGKILL)
        killed = zygote.wait() == -signal.SIGKILL
        device.check_store()
        check_no_waste(proxy.requests[seen:], at_hand, before[-1].state)
        after, now = device.rounds(), device.ranking()
        old, new = before[-1], after[-1]
        if old.state not in FINAL:
            assert new.id == old.id and len(after) == len(before), "a round that was cut off is taken up again"
        assert now == ranking or new.state in ("activated", "done"), "what ranks changes by an activation alone"
        assert len(now) == 10
        found["killed" if killed else "ended before"] += 1
        found[f"in state {new.state}"] += killed
    assert zygote.run(device.folder, proxy.url) == 0
    rows = device.rounds()
    assert {row.state for row in rows} == {"done"}, "none was lost, none failed, none was given up"
    assert sorted(path.name for path in (device.folder / "rounds").iterdir()) == []
    assert {path.name.partition(".")[0] for path in (device.folder / "weights").iterdir()} == {rows[-1].id}
    print(dict(found))
    assert found["killed"] == wanted, "most rounds were to be killed before they ended"


def test_killed_in_mid_transfer_what_has_arrived_is_not_fetched_again(zygote, proxy, published, tmp_path, rng):
    device = Device(tmp_path / "device").prepare(published, proxy.url)
    proxy.drip = (500, 0.004)
    partial = kills = 0
    for _ in range(200):
        at_hand, rows = device.at_hand(), device.rounds()
        seen = len(proxy.requests)
        child = zygote.start(device.folder, proxy.url)
        time.sleep(0.1 + 0.1 * rng.random())
        with suppress(ProcessLookupError):  # it was faster
            os.kill(child, signal.SIGKILL)
        status = zygote.wait()
        check_no_waste(proxy.requests[seen:], at_hand, rows[-1].state if rows else None)
        device.check_store()
        if device.rounds()[-1].state not in ("started",):
            break
        kills += status == -signal.SIGKILL
        partial += any(size for size in device.at_hand().values())
    proxy.drip = None
    assert zygote.run(device.folder, proxy.url) == 0 and device.rounds()[-1].state == "done"
    assert kills >= 3 and partial >= 2, "some kills came in the middle of a blob"
