"""Bundle files at an fsspec URL: S3 (a server of the test's own), a folder, memory."""

from __future__ import annotations

import hashlib

import fsspec
import pytest

from cloud.blobs import CachedBlobs, shared_blobs
from device_runtime.bundle import BlobStore, FileRef
from device_runtime.errors import InputError, StoreError, TrustError

BLOB = bytes(range(256)) * 40
NAME = hashlib.sha256(BLOB).hexdigest()
REF = FileRef(NAME, len(BLOB), len(BLOB), "none")


@pytest.fixture(params=["memory", "file", "s3"])
def url(request, tmp_path):
    if request.param == "s3":
        yield f"{request.getfixturevalue('s3')}/{tmp_path.name}"
        return
    yield f"memory://coda-{tmp_path.name}/blobs" if request.param == "memory" else (tmp_path / "far").as_uri()
    fsspec.filesystem("memory").store.clear()


def test_what_one_machine_publishes_another_serves(url, tmp_path):
    one, other = shared_blobs(tmp_path / "one", url), shared_blobs(tmp_path / "other", url)
    assert not other.has(REF)
    one.write(NAME, BLOB)
    assert one.read(REF) == other.read(REF) == BLOB
    assert other.has(REF) and (tmp_path / "other" / NAME).read_bytes() == BLOB


def test_what_is_cached_needs_the_store_no_more(url, tmp_path):
    one = shared_blobs(tmp_path / "one", url)
    one.write(NAME, BLOB)
    store, root = fsspec.core.url_to_fs(url)
    store.rm(root, recursive=True)
    assert one.read(REF) == BLOB
    with pytest.raises(StoreError, match="cannot read blob"):
        shared_blobs(tmp_path / "other", url).read(REF)


def test_what_is_damaged_on_the_way_is_not_believed(url, tmp_path):
    one, other = shared_blobs(tmp_path / "one", url), shared_blobs(tmp_path / "other", url)
    one.write(NAME, BLOB)
    store, root = fsspec.core.url_to_fs(url)
    store.pipe_file(f"{root}/{NAME}", BLOB[:-1] + b"x")
    with pytest.raises(TrustError):
        other.read(REF)


def test_a_store_that_is_away_is_a_sentence_and_comes_back(url, tmp_path, monkeypatch):
    one, other = shared_blobs(tmp_path / "one", url), shared_blobs(tmp_path / "other", url)
    one.write(NAME, BLOB)

    def away(*_, **__):
        raise ConnectionError("no route to host")

    with monkeypatch.context() as patch:
        for name in ("cat_file", "pipe_file"):
            patch.setattr(other._store, name, away)
        with pytest.raises(StoreError, match="cannot be reached: ConnectionError"):
            other.read(REF)
        with pytest.raises(StoreError, match="cannot be reached"):
            other.write("0" * 64, b"")
    assert not (tmp_path / "other" / ("0" * 64)).exists(), "what the store did not take is not announced"
    assert other.read(REF) == BLOB


def test_a_store_that_is_not_known_is_refused(tmp_path):
    for url in ("nosuch://x/y", "s4://bucket"):
        with pytest.raises(InputError, match="cannot be used"):
            CachedBlobs(tmp_path, url)
    assert type(shared_blobs(tmp_path, "")) is BlobStore
