"""Damage of every kind to a device's folder: a clear error, then a repair that says what is lost."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime.errors import StoreError
from device_runtime.home import DeviceHome
from device_runtime.identity import Signer
from device_runtime.repair import repair
from device_runtime.store import Event, Store

MANY = [Event(f"item {n}", n + 1, float(n % 2)) for n in range(3000)]


def fill(path: Path) -> Path:
    with DeviceHome(path) as home:
        home.store.add_events(MANY)
        home.store.set(server="http://x", trusted="ab" * 32, device="d")
        home.signer()
    return path


@pytest.fixture
def home(tmp_path):
    return fill(tmp_path / "phone")


def damage(path: Path, at: int, size: int = 4096) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(os.urandom(size))


def test_a_folder_that_is_well_needs_nothing(home):
    assert repair(home) == []


def test_a_damaged_page_costs_its_rows_alone_and_the_file_is_kept(home):
    db = sqlite3.connect(home / "coda.db")
    [[leaf]] = db.execute("SELECT pageno FROM dbstat WHERE name = 'events' AND pagetype = 'leaf' LIMIT 1 OFFSET 9") \
        if _has_dbstat(db) else [[20]]  # fmt: skip
    db.close()
    damage(home / "coda.db", (leaf - 1) * 4096)
    with pytest.raises(StoreError, match="coda device repair"), DeviceHome(home) as opened:
        opened.store.events()
        opened.store.items()
    [said, *_] = repair(home)
    assert "saved" in said and "coda.db.damaged-1" in said and (home / "coda.db.damaged-1").exists()
    with DeviceHome(home) as opened:
        kept = opened.store.events()
        assert len(kept) > 2500 and set(kept) <= set(MANY)
        assert opened.store.setting("server") == "http://x", "it still belongs to its server"
    assert repair(home) == []


def _has_dbstat(db):
    try:
        db.execute("SELECT 1 FROM dbstat LIMIT 1")
    except sqlite3.OperationalError:
        return False
    return True


@given(st.integers(0, 60), st.integers(1, 9000))
@settings(max_examples=15, deadline=None)
def test_wherever_the_damage_is_what_is_saved_was_there(page, size):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = fill(Path(folder) / "phone")
        damage(path / "coda.db", page * 4096 + 7, size)
        said = repair(path)
        with DeviceHome(path) as opened:
            kept = opened.store.events()
            assert len(kept) == len(MANY) or said, "no loss is silent"
            assert opened.store.add_events([Event("new", 9_999_999, 1.0)]) == 1
            assert opened.store.count_events() == len(kept) + 1


def test_a_database_that_is_something_else_is_put_aside(home):
    (home / "coda.db").write_bytes(b"not a database at all" * 500)
    with pytest.raises(StoreError, match="coda device repair"):
        DeviceHome(home)
    said = repair(home)
    assert "saved nothing" in said[0] and "enrol it again" in said[1]
    assert (home / "coda.db.damaged-1").read_bytes().startswith(b"not a database at all")


def test_lost_weights_are_an_error_until_a_repair_lets_the_bundles_serve(home):
    with Store(home / "coda.db") as store:
        store.use_weights("w1", 3)
    assert any("w1 are gone or damaged" in line for line in repair(home))
    with Store(home / "coda.db") as store:
        assert store.weights() is None


def test_a_lost_or_damaged_key_is_said_and_never_replaced(home):
    (home / "device.key").write_text("scrap")
    assert any("does not hold an Ed25519 private key" in line for line in repair(home))
    (home / "device.key").unlink()
    assert any("cannot read the key file" in line and "enrol again" in line for line in repair(home))
    assert not (home / "device.key").exists()
    Signer.create(home / "device.key")
    assert repair(home) == []


def test_damaged_blobs_and_left_overs_are_removed(home):
    (home / "blobs").mkdir()
    (home / "blobs" / ("ab" * 32)).write_bytes(b"not what its name says")
    (home / "blobs" / ".new-xyz").write_bytes(b"half")
    (home / "rounds" / "gone").mkdir(parents=True)
    said = repair(home)
    assert said == [
        "removed 1 damaged bundle files; the next round pulls them again",
        "removed 2 left-over working files",
    ]
    assert not list((home / "blobs").iterdir()) and not list((home / "rounds").iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_said(home):
    (home / "coda.db").chmod(0o400)
    home.chmod(0o500)
    try:
        with pytest.raises(StoreError, match=r"read-only|can be read and written"), DeviceHome(home) as opened:
            opened.store.add_events([Event("a", 1, 1.0)])
    finally:
        home.chmod(0o700)


def test_a_read_only_database_is_said(home):
    with Store(home / "coda.db") as store:
        store._db.execute("PRAGMA query_only = ON")
        with pytest.raises(StoreError, match="read-only: make it writable"):
            store.add_events([Event("a", 1, 1.0)])
        assert store.count_events() == len(MANY)


def test_a_file_cut_short_by_a_dying_disk_is_said(home):
    whole = (home / "coda.db").read_bytes()
    (home / "coda.db").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(StoreError, match="coda device repair"), DeviceHome(home) as opened:
        opened.store.events()
    assert "saved" in repair(home)[0]


FILLER = """
import resource, sys
from pathlib import Path
from device_runtime.errors import StoreError
from device_runtime.store import Event, Store
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
with Store(Path(sys.argv[1])) as store:
    for n in range(1000):
        try:
            store.add_events([Event(f"item {i}", n + 1, 1.0) for i in range(500)])
        except StoreError as error:
            print(n, error)
            break
    assert store.count_events() == 500 * n
"""


def test_what_the_system_refuses_to_write_is_said_and_costs_nothing_that_was_stored(tmp_path):
    """A limit on the size of files stands for the full disk: both fail in the middle of a write."""
    told = subprocess.run(
        [sys.executable, "-c", FILLER, str(tmp_path / "coda.db")], capture_output=True, text=True, check=True
    )
    batches = int(told.stdout.split()[0])
    assert batches > 5 and "coda.db" in told.stdout
    with Store(tmp_path / "coda.db") as store:
        assert store.count_events() == 500 * batches
        assert store.add_events([Event("new", 1, 1.0)]) == 1
    assert repair(tmp_path) == []
