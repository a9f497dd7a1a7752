"""A device moves to a bundle of which it has most: only what differs is fetched, and no trust rests on it."""

from __future__ import annotations

import logging
import shutil

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load, save

from cloud.home import ServerHome, publish
from device_runtime.bundle import BlobStore, open_manifest, pack_file
from device_runtime.delta import delta_name
from device_runtime.errors import CodaError, TrustError
from device_runtime.identity import Signer
from export.package import read_ref
from tests.conftest import reversion
from tests.device_runtime.test_releases import EVERYBODY, ME, phone, soon  # noqa: F401


def retouched(folder, published, version, rng, share=0.01):
    """A bundle that differs in a share of its items' rows, and a little in its dense weights."""
    bundle = shutil.copytree(published.bundle, folder)
    blobs, ref = BlobStore(bundle / "blobs"), read_ref(bundle)
    public = Signer.open(published.home.parent / "release.key").public
    manifest = open_manifest(ref, (bundle / "blobs" / ref.manifest).read_bytes(), public)

    def changed(file, change):
        tensors = {name: value.copy() for name, value in load(blobs.read(file)).items()}
        change(tensors)
        made, stored = pack_file(save(tensors), changes=True)
        blobs.write(made.sha256, stored)
        return made

    def touch(tensors):
        name = next(name for name, value in tensors.items() if value.dtype == np.float16 and value.ndim == 2)
        rows = rng.random(len(tensors["ids"])) < share
        tensors[name][rows] += rng.normal(0, 0.05, tensors[name][rows].shape).astype(np.float16)

    def move(tensors):
        for name, value in tensors.items():
            if not name.startswith("padding:") and value.dtype == np.float32:
                tensors[name] = value * np.float32(1 + 1e-5)

    table = manifest.tables["item"]
    shards = tuple(changed(shard, touch) for shard in table.shards)
    tables = {"item": type(table)(table.rows, table.tensors, shards)}
    reversion(bundle, published, version, tables=tables, weights=changed(manifest.weights, move))
    return bundle


def test_a_manifest_that_lies_about_a_file_that_may_be_made_is_refused(published, tmp_path, rng):
    bundle = retouched(tmp_path / "bundle", published, 3, rng)
    with ServerHome(published.home, create=False) as home:
        weights = msgspec.structs.replace(home.release()[1].weights, raw_sha256="0" * 64)
    reversion(bundle, published, 3, weights=weights)
    shutil.copytree(published.home, tmp_path / "server")
    with ServerHome(tmp_path / "server") as home, pytest.raises(TrustError, match="another hash"):
        publish(home, bundle)


@pytest.fixture
def server(serving, published, tmp_path, rng):
    """A server with bundle 2 for everyone, and 3, retouched, staged."""
    bundle = retouched(tmp_path / "bundle", published, 3, rng)
    with serving() as served:
        with ServerHome(tmp_path / "server") as home:
            publish(home, bundle, staged=True)
        yield served


@pytest.fixture
def mover(phone):  # noqa: F811 - the fixture of there, over this module's server
    """A device that has bundle 2, and should have 3."""
    phone.round()
    soon(phone.services)
    phone.services.releases.create("next", 3, ladder=EVERYBODY, **ME)
    return phone


def files(mover):
    """The files of tensors that the device needs, in plain."""
    manifest = mover.home.manifest()
    held = [shard for shard in manifest.tables["item"].shards if mover.home.blobs.has(shard)]
    return {file.sha256: mover.home.blobs.read(file) for file in (manifest.weights, *held)}


def published_files(mover):
    return {name: mover.services.blobs.read(file) for name, file in _refs(mover).items()}


def _refs(mover):
    manifest = mover.home.manifest()
    held = [shard for shard in manifest.tables["item"].shards if mover.home.blobs.has(shard)]
    return {file.sha256: file for file in (manifest.weights, *held)}


def deltas(mover):
    """Where the server keeps those to bundle 3."""
    with ServerHome(mover.services.blobs.folder.parent) as home:
        old, new = home.release(2)[1], home.release(3)[1]
    pairs = zip((old.weights, *old.tables["item"].shards), (new.weights, *new.tables["item"].shards), strict=True)
    return [mover.services.blobs.path(delta_name(a.sha256, b.sha256)) for a, b in pairs if a != b]


def test_only_what_differs_is_fetched_and_the_files_are_those_that_were_signed(mover):
    whole = sum(ref.size for ref in _refs(mover).values())
    moved = mover.round()
    assert moved.report.bundle == 3 and not set(moved.traffic) & {"weights", "item rows", "graphs"}
    assert files(mover) == published_files(mover)
    assert 0 < sum(moved.traffic["deltas"]) < whole
    mover.services.releases.act("next", "stop", **ME)
    back = mover.round()
    assert back.report.bundle == 2 and not set(back.traffic) & {"weights", "item rows"}
    assert files(mover) == published_files(mover)
    mover.ranking()


def test_a_device_that_was_away_for_long_fetches_whole_files(mover, caplog):
    for path in deltas(mover):
        path.unlink()
    moved = mover.round()
    assert moved.traffic["item rows"][1] > 0 and moved.traffic["weights"][1] > 0
    assert moved.traffic["deltas"][1] < 1000, "it asked once, and not for each file"
    assert files(mover) == published_files(mover) and not caplog.records


def test_where_the_whole_file_is_shorter_it_is_fetched(mover):
    with ServerHome(mover.services.blobs.folder.parent) as home:
        old, new = home.release(2)[1], home.release(3)[1]
    mover.services.blobs.path(delta_name(old.weights.sha256, new.weights.sha256)).write_bytes(b"")
    moved = mover.round()
    assert moved.traffic["weights"][1] > new.weights.size and "item rows" not in moved.traffic
    assert files(mover) == published_files(mover)


@pytest.mark.parametrize("damage", ["cut", "another"])
def test_a_delta_that_makes_something_else_is_said_and_the_whole_file_fetched(mover, caplog, damage):
    paths = deltas(mover)
    for path, other in zip(paths, paths[1:] + paths[:1], strict=True):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else other.read_bytes())
    with caplog.at_level(logging.WARNING):
        moved = mover.round()
    assert "the whole file is fetched instead" in caplog.text
    assert moved.report.bundle == 3 and moved.traffic["weights"][1] > 0
    assert files(mover) == published_files(mover)


@pytest.mark.parametrize("write", [1, 2])
def test_a_device_that_dies_while_it_makes_a_file_loses_nothing(mover, monkeypatch, write):
    class Dies(BaseException):
        pass

    before, real, count = mover.ranking(), BlobStore.write, 0

    def dying(self, sha256, stored):
        nonlocal count
        count += 1
        if count == write:
            (self.folder / ".new-half").write_bytes(stored[: len(stored) // 2])
            raise Dies
        real(self, sha256, stored)

    with monkeypatch.context() as patched:
        patched.setattr(BlobStore, "write", dying)
        with pytest.raises(Dies):
            mover.round()
    assert mover.home.store.bundle()[0].version == 2 and mover.ranking() == before
    again = mover.round()
    assert again.report.bundle == 3 and not set(again.traffic) & {"weights", "item rows"}
    assert files(mover) == published_files(mover)
    assert not (mover.home.blobs.folder / ".new-half").exists(), "leftovers go"


def test_a_base_that_is_damaged_is_not_built_upon(mover, caplog):
    manifest = mover.home.manifest()
    path = mover.home.blobs.path(manifest.weights.sha256)
    path.write_bytes(bytes(len(path.read_bytes())))
    with caplog.at_level(logging.WARNING):
        try:
            moved = mover.round()
        except CodaError:
            moved = mover.round()
    assert moved.report.bundle == 3 and "the whole file is fetched instead" in caplog.text
    assert files(mover) == published_files(mover)
