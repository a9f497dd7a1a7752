import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import create_engine, text

from cloud.catalog import Catalog
from device_runtime.errors import InputError, StoreError
from device_runtime.identity import device_id
from device_runtime.messages import BundleRef, RoundReport

KEY = "ab" * 32


@pytest.fixture
def catalog(tmp_path):
    made = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    yield made
    made.close()


def _report(name, bundle=1):
    return RoundReport(
        round=name, bundle=bundle, engine="onnx", outcome="kept", local=9, candidates=5, kept=1, verdict=None, phases=[]
    )


def test_enrolling_twice_is_one_device_and_revoking_it_lasts(catalog):
    first = catalog.enrol(KEY, {"cores": 4}, now=1.0)
    assert first == catalog.enrol(KEY, {"cores": 8}, now=2.0) == device_id(KEY)
    assert catalog.device(first).revoked is False
    catalog.revoke(first)
    catalog.enrol(KEY, {}, now=3.0)
    assert catalog.device(first).revoked is True
    assert catalog.device("0" * 32) is None


def test_a_nonce_is_good_once_within_its_window(catalog):
    assert catalog.use_nonce("d", "n", now=100, window_s=10)
    assert not catalog.use_nonce("d", "n", now=105, window_s=10)
    assert catalog.use_nonce("other", "n", now=105, window_s=10)
    assert catalog.use_nonce("d", "n", now=120, window_s=10), "forgotten once the clock check refuses it anyway"


def test_the_newest_release_is_current(catalog):
    assert catalog.current() is None
    for version in (1, 2):
        ref = BundleRef(version=version, manifest="00" * 32, size=1, key="k", signature="s")
        catalog.release(f"release {version}", ref, now=float(version))
    assert catalog.current().version == 2
    assert [release.name for release in catalog.releases()] == ["release 2", "release 1"]


def test_a_report_counts_once(catalog):
    assert catalog.report("d", _report("r1"), now=1.0)
    assert not catalog.report("d", _report("r1", bundle=9), now=2.0)
    assert catalog.report("other", _report("r1"), now=3.0)
    assert [(device, report.bundle) for device, report in catalog.reports()] == [("d", 1), ("other", 1)]


def test_a_database_that_is_gone_says_so_without_its_secrets(tmp_path):
    with pytest.raises(StoreError, match="cannot be used"):
        Catalog(f"sqlite:///{tmp_path / 'no such folder' / 'x.db'}")
    (tmp_path / "x.db").write_bytes(b"this is not a database" * 100)
    with pytest.raises(StoreError, match="not a database"):
        Catalog(f"sqlite:///{tmp_path / 'x.db'}")


def test_a_version_is_released_once(catalog):
    ref = BundleRef(version=1, manifest="00" * 32, size=1, key="k", signature="s")
    catalog.release("first", ref, now=1.0)
    with pytest.raises(InputError, match="version 1 is out already"):
        catalog.release("second", ref, now=2.0)
    assert [release.name for release in catalog.releases()] == ["first"]


def test_threads_and_processes_share_a_catalog(catalog, tmp_path):
    other = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    try:
        with ThreadPoolExecutor(8) as threads:
            both = (catalog, other)
            enrolled = [threads.submit(both[i % 2].enrol, KEY, {}, float(i)) for i in range(40)]
            assert {job.result() for job in enrolled} == {device_id(KEY)}
            used = [threads.submit(both[i % 2].use_nonce, "d", f"n{i // 4}", 1.0, 10.0) for i in range(40)]
            assert sum(job.result() for job in used) == 10, "each nonce was good for one of its four requests"
    finally:
        other.close()


def test_failures_name_neither_statements_nor_passwords(catalog, tmp_path):
    database = create_engine(f"sqlite:///{tmp_path / 'catalog.db'}")
    with database.begin() as db:
        db.execute(text("DROP TABLE devices"))
    database.dispose()
    with pytest.raises(StoreError) as failure:
        catalog.enrol(KEY, {"secret": "capability"}, now=1.0)
    assert not any(word in str(failure.value) for word in ("UPDATE", "INSERT", KEY, "capability", "sqlalche.me"))
    with pytest.raises(StoreError) as failure:
        Catalog("nosuch://user:password@host/db")
    assert "password" not in str(failure.value)


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(StoreError, match="driver that is not installed: psycopg2"):
        Catalog("postgresql+psycopg2://user:password@host/db")
