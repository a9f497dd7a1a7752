"""What is damaged on a phone is mended as far as it can be, and what is lost is named."""

from __future__ import annotations

import os

import pytest

from device_runtime.store import Store
from tests.android_demo.conftest import serving_weights

MANY = 3000


def damage(path, at, size=4096):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(os.urandom(size))


@pytest.fixture
def long_history(tmp_path):
    path = tmp_path / "long.csv"
    rows = [f"i{n % 200},{1_600_000_000 + n},{n % 2}" for n in range(MANY)]
    path.write_text("\n".join(["item_id,timestamp,label", *rows]))
    return path


def repaired(device, **properties):
    printed = device.start(repair="true", **properties).stdout
    return [line.removeprefix("repaired: ") for line in printed.splitlines() if line.startswith("repaired: ")]


def test_a_damaged_page_of_the_database_costs_its_rows_alone(device, serving, published, long_history):
    with serving() as (url, _):
        device.told(server=url, history=long_history, rounds=0)
        assert repaired(device, rounds=0) == [], "nothing is damaged yet"
        database = device.home / "coda.db"
        damage(database, database.stat().st_size // 2 // 4096 * 4096)
        said = device.told(rounds=0, events=1)
        assert "database" in said and "malformed" in said
        [mended] = repaired(device, rounds=0)
        assert mended.startswith("the database was damaged: saved ") and "kept as coda.db.damaged-1" in mended
        assert (device.home / "coda.db.damaged-1").exists()
        with Store(database) as store:
            kept = store.events()
            assert MANY // 2 < len(kept) < MANY and store.setting("server") == url
            assert {(e.item, e.timestamp) for e in kept} <= {(f"i{n % 200}", 1_600_000_000 + n) for n in range(MANY)}
        [report] = device.lines(device.start().stdout)  # there is no item left to rank: all were seen
        assert report["local"] == len(kept) and report["outcome"] in ("activated", "kept"), "and it goes on"


def test_a_database_of_which_nothing_is_left_leaves_the_key(device, serving, published):
    with serving() as (url, _):
        device.told(server=url, history=published.history, rounds=0)
        key = (device.home / "device.key").read_text()
        damage(device.home / "coda.db", 0, (device.home / "coda.db").stat().st_size)
        first, second = repaired(device, rounds=0)
        assert "saved nothing" in first and "enrol it again, its key is still the same" in second
        assert device.run(server=url, history=published.history)[0]["outcome"] in ("activated", "kept")
        assert (device.home / "device.key").read_text() == key


def test_damaged_blobs_and_weights_are_dropped_and_come_back(device, serving, published):
    with serving() as (url, services):
        device.run(server=url, history=published.history)
        damage(device.home / "blobs" / services.manifest.weights.sha256, 10, 20)
        serving_weights(device.home).write_bytes(b"junk")
        assert device.told().startswith("TrustError: blob")
        blobs, own = repaired(device)
        assert blobs == "removed 1 damaged bundle files; the next round pulls them again"
        assert own.startswith("the personal weights are gone or damaged")
        assert device.run()[0]["error"] == ""
