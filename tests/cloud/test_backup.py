"""A server's home, backed up while it takes in samples, and restored elsewhere."""

from __future__ import annotations

import subprocess
import threading

import numpy as np
import pytest

from cloud.catalog import Catalog
from cloud.pool import Pool
from device_runtime.cli import main
from device_runtime.identity import Signer
from tests.cloud.catalog.test_contract import KEY, report
from tests.cloud.http.conftest import SCHEMA, WIDTH, TinyEncoder, some_samples

ENCODER = TinyEncoder()


def hand_in(pool, token):
    part = some_samples([1 + token % 99, 2])
    pool.append(part, np.full(2, 5, np.int64), np.full(2, token, np.uint64), ENCODER.encode(part))


@pytest.fixture
def home(tmp_path):
    made = tmp_path / "server"
    made.mkdir()
    Signer.create(made / "answer.key")
    (made / "salt").write_bytes(b"s" * 32)
    (made / "blobs").mkdir()
    (made / "blobs" / ("0" * 64)).write_bytes(b"blob")
    return made


def test_what_was_acknowledged_before_is_in_it(home, tmp_path, capsys):
    catalog = Catalog(f"sqlite:///{home / 'catalog.db'}")
    pool = Pool(home / "pool" / "encoder", SCHEMA, WIDTH)
    for token in range(1, 6):
        hand_in(pool, token)
    device = catalog.enrol(KEY, {}, 1.0)
    catalog.report(device, report("r"), 2.0)
    stop = threading.Event()

    def keep_going():
        token = 6
        while not stop.wait(0.005):
            hand_in(pool, token)
            catalog.use_nonce(device, f"{token:016x}", float(token), 10.0)
            token += 1

    busy = threading.Thread(target=keep_going)
    busy.start()
    try:
        assert main(["backup", "--home", str(home), "--out", str(tmp_path / "b.tar")]) == 0
    finally:
        stop.set()
        busy.join()
        catalog.close()
    assert "private keys" in capsys.readouterr().out
    assert (tmp_path / "b.tar").stat().st_mode & 0o077 == 0
    restored = tmp_path / "restored"
    restored.mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "b.tar", "-C", restored], check=True)  # as docs/operate.md says
    for name in ("answer.key", "salt"):
        assert (restored / name).read_bytes() == (home / name).read_bytes()
        assert (restored / name).stat().st_mode & 0o077 == (home / name).stat().st_mode & 0o077
    assert (restored / "blobs" / ("0" * 64)).read_bytes() == b"blob"
    again = Pool(restored / "pool" / "encoder", SCHEMA, WIDTH)
    tokens = np.concatenate([segment.contributors for segment in again.segments])
    assert set(range(1, 6)) <= set(tokens.tolist()) and len(again.gather(np.arange(len(again)))) == len(again)
    there = Catalog(f"sqlite:///{restored / 'catalog.db'}")
    assert there.device(device).public_key == KEY and len(there.reports()) == 1
    there.close()
    assert not list(home.glob(".backup-*"))


def test_a_backup_is_never_overwritten_and_a_typo_is_not_backed_up(home, tmp_path, capsys):
    (tmp_path / "b.tar").write_bytes(b"precious")
    assert main(["backup", "--home", str(home), "--out", str(tmp_path / "b.tar")]) == 2
    assert (tmp_path / "b.tar").read_bytes() == b"precious"
    assert main(["backup", "--home", str(tmp_path), "--out", str(tmp_path / "c.tar")]) == 2
    assert main(["backup", "--home", str(home), "--out", str(tmp_path / "no" / "c.tar")]) == 6
    assert "never overwritten" in capsys.readouterr().err
