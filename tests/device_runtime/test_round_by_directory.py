"""Rounds that tell the cloud how much of a user is in each part of its pool, and no vector."""

from __future__ import annotations

import shutil

import pytest

from cloud.home import ServerHome, publish
from device_runtime import round as round_module
from device_runtime.bundle import BlobStore, RoundSettings, open_manifest
from device_runtime.engines import open_engine
from device_runtime.errors import InputError
from device_runtime.model import Model
from device_runtime.transport import Transport
from device_runtime.wire import DirectoryQuery, decode_query
from export.package import read_ref
from tests.conftest import reversion, with_directory
from tests.device_runtime.phones import Phone


def test_a_round_by_directory_sends_weights_and_no_vector(serving, published, tmp_path, monkeypatch):
    with ServerHome(tmp_path / "server") as home:
        publish(home, with_directory(published, tmp_path / "bundle"))
    seen = keep_bodies(monkeypatch)
    with serving() as (url, services):
        made = Phone(tmp_path, published, url)
        with made.home:
            report = made.round().report
            model = made.home.model(made.engine)
        assert (report.bundle, report.candidates) == (3, 60) and 0 < report.kept <= 30
        assert report.outcome in ("activated", "kept")
        assert services.manifest.settings.matching == "directory"
    [body] = seen
    asked = decode_query(body)
    assert isinstance(asked, DirectoryQuery) and len(body) < 1024
    assert (asked.directory, len(asked.weights)) == (model.directory.id, len(model.directory.centroids))
    assert asked.weights.max() == 255


def test_another_directory_is_pulled_once(serving, published, tmp_path, monkeypatch):
    """The server has moved on to a directory that devices were not told of in time."""
    with ServerHome(tmp_path / "server") as home:
        publish(home, with_directory(published, tmp_path / "bundle"))
    moved = with_directory(published, tmp_path / "moved", 4, order=-1)
    seen = keep_bodies(monkeypatch)
    with serving() as (url, services):
        made, real = Phone(tmp_path, published, url), round_module.Round._match

        def released_meanwhile(self):
            if not seen:
                with ServerHome(tmp_path / "server") as home:
                    publish(home, moved)
                services.releases._forget()
            return real(self)

        monkeypatch.setattr(round_module.Round, "_match", released_meanwhile)
        with made.home:
            report = made.round().report
    first, second = (decode_query(body) for body in seen)
    assert first.directory != second.directory and first.encoder == second.encoder
    assert report.bundle == 4 and report.candidates == 60
    assert [phase.phase for phase in report.phases].count("pull") == 2


def test_a_bundle_that_lacks_its_directory_serves_nobody(published, tmp_path):
    bundle = shutil.copytree(published.bundle, tmp_path / "bundle")
    reversion(bundle, published, 3, settings=RoundSettings(matching="directory"))
    manifest = open_manifest((ref := read_ref(bundle)), (bundle / "blobs" / ref.manifest).read_bytes(), published.trust)
    with pytest.raises(InputError, match="asks for matching by directory, and has none"):
        Model.open(manifest, open_engine("onnx"), BlobStore(bundle / "blobs"))


def keep_bodies(monkeypatch):
    """The bodies of matches that are asked for, as they go out."""
    real, seen = Transport.request, []

    def request(self, method, path, body=b"", **named):
        if path == "/v1/match":
            seen.append(body)
        return real(self, method, path, body, **named)

    monkeypatch.setattr(Transport, "request", request)
    return seen
