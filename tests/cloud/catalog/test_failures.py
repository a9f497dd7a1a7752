"""Databases that are gone, full of something else, of another age, or that come back."""

from __future__ import annotations

import sqlite3
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text

from cloud.catalog import Catalog
from cloud.catalog.database import HEAD, revision
from cloud.catalog.tables import TABLES
from device_runtime.errors import StoreError
from device_runtime.messages import BundleRef, to_json
from tests.cloud.catalog.test_contract import KEY, NEW, report

BEFORE_MIGRATIONS = """
CREATE TABLE devices (id VARCHAR(32) NOT NULL, public_key VARCHAR(64) NOT NULL, capability JSON NOT NULL,
  enrolled FLOAT NOT NULL, seen FLOAT NOT NULL, revoked BOOLEAN NOT NULL, PRIMARY KEY (id));
CREATE TABLE releases (version INTEGER NOT NULL, name VARCHAR(200) NOT NULL, ref BLOB NOT NULL,
  published FLOAT NOT NULL, PRIMARY KEY (version));
CREATE TABLE reports (device VARCHAR(32) NOT NULL, round VARCHAR(64) NOT NULL, bundle INTEGER NOT NULL,
  report BLOB NOT NULL, received FLOAT NOT NULL, PRIMARY KEY (device, round));
CREATE TABLE nonces (device VARCHAR(32) NOT NULL, nonce VARCHAR(16) NOT NULL, at FLOAT NOT NULL,
  PRIMARY KEY (device, nonce));
CREATE INDEX nonces_at ON nonces (at);
"""
"""As the version before migrations made them."""


def test_migrations_make_the_tables_that_the_code_uses(catalog, url):
    engine = create_engine(url)
    with engine.connect() as db:
        assert compare_metadata(MigrationContext.configure(db), TABLES) == []
    assert revision(engine) == HEAD
    engine.dispose()
    assert ScriptDirectory("cloud/migrations").get_heads() == [HEAD]


def test_a_home_from_before_migrations_is_taken_over_whole(tmp_path):
    old = sqlite3.connect(tmp_path / "catalog.db")
    old.executescript(BEFORE_MIGRATIONS)
    capability = '{"machine": "aarch64", "memory_mib": 900}'
    old.execute("INSERT INTO devices VALUES ('d', ?, ?, 1.0, 2.0, 1)", (KEY, capability))
    ref = BundleRef(version=4, manifest="00" * 32, size=1, key="k", signature="s")
    old.execute("INSERT INTO releases VALUES (4, 'four', ?, 3.0)", (to_json(ref),))
    reports = [("d", f"r{i}", 4, to_json(report(f"r{i}", bundle=4)), float(i)) for i in range(2500)]
    reports.append(("stranger", "r", 4, to_json(report("r", outcome="activated")), 5000.0))
    old.executemany("INSERT INTO reports VALUES (?, ?, ?, ?, ?)", reports)
    old.commit()
    old.close()
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    device = catalog.device("d")
    assert (device.public_key, device.revoked, device.rotation_due) == (KEY, True, False)
    assert catalog.current() == ref
    rows = catalog.rounds(limit=5000)
    assert len(rows) == 2501 and rows[0].outcome == "activated"
    assert rows[1].device_class == "arm64, up to 1 GiB" and rows[1].candidates == 5
    catalog.close()


def test_a_catalog_of_a_newer_version_is_left_alone(catalog, url):
    engine = create_engine(url)
    with engine.begin() as db:
        db.execute(text("UPDATE alembic_version SET version_num = 'r9999'"))
    engine.dispose()
    with pytest.raises(StoreError, match="update CoDA"):
        Catalog(url)


def test_servers_that_start_together_migrate_once(url):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as threads:
        opened = list(threads.map(Catalog, [url] * 4))
    assert opened[0].enrol(KEY, {}, 1.0) and opened[3].count_devices() == 1
    for catalog in opened:
        catalog.close()


def test_a_database_that_comes_back_is_used_again(cluster):
    catalog = Catalog(cluster.database())
    device = catalog.enrol(KEY, {}, now=1.0)
    cluster.stop()
    try:
        for attempt in (
            lambda: catalog.device(device),
            lambda: catalog.use_nonce(device, "n", 2.0, 10.0),
            lambda: catalog.enrol(NEW, {}, now=2.0),
        ):
            with pytest.raises(StoreError, match="cannot be used"):
                attempt()
    finally:
        cluster.start()
    assert catalog.device(device).public_key == KEY
    assert catalog.use_nonce(device, "n", 3.0, 10.0), "a nonce whose request failed is not used up"
    catalog.close()


def test_a_dump_restores_what_was_acknowledged(cluster, tmp_path):
    url, empty = cluster.database(), cluster.database()
    catalog = Catalog(url)
    device = catalog.enrol(KEY, {"cores": 4}, now=1.0)
    catalog.report(device, report("r"), now=2.0)
    cluster.dump(url, tmp_path / "catalog.dump")
    catalog.close()
    cluster.restore(empty, tmp_path / "catalog.dump")
    restored = Catalog(empty)
    assert restored.device(device).public_key == KEY and [name for name, _ in restored.reports()] == [device]
    restored.close()


def test_a_database_that_is_gone_says_so_without_its_secrets(tmp_path):
    with pytest.raises(StoreError, match="cannot be used"):
        Catalog(f"sqlite:///{tmp_path / 'no such folder' / 'x.db'}")
    (tmp_path / "x.db").write_bytes(b"this is not a database" * 100)
    with pytest.raises(StoreError, match="not a database"):
        Catalog(f"sqlite:///{tmp_path / 'x.db'}")
    with pytest.raises(StoreError, match="cannot be used") as failure:
        Catalog("postgresql+psycopg://user:hunter2@127.0.0.1:1/db")
    assert "hunter2" not in str(failure.value)


def test_failures_name_neither_statements_nor_passwords(catalog, url):
    database = create_engine(url)
    with database.begin() as db:
        db.execute(text("DROP TABLE devices"))
    database.dispose()
    with pytest.raises(StoreError) as failure:
        catalog.enrol(KEY, {"secret": "capability"}, now=1.0)
    assert not any(word in str(failure.value) for word in ("UPDATE", "INSERT", KEY, "capability", "sqlalche.me"))
    with pytest.raises(StoreError) as failure:
        Catalog("nosuch://user:password@host/db")
    assert "password" not in str(failure.value)


def test_only_databases_that_are_tested_are_taken():
    with pytest.raises(StoreError, match=r"not over mysql|driver that is not installed"):
        Catalog("mysql://user@host/db")


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r"driver that is not installed: psycopg; pip install 'coda-loop\[postgres\]'"):
        Catalog("postgresql+psycopg://user:password@host/db")
