"""What a bundle's matching needs beside the pool's segments, and nothing else."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cloud.home import ServerHome
from cloud.http.services import served
from cloud.matching import faiss
from cloud.telemetry import RecallSampler
from device_runtime.cli import main


@pytest.fixture
def home(published, tmp_path) -> Path:
    shutil.copytree(published.home, tmp_path / "server")
    return tmp_path / "server"


def beside(home: ServerHome) -> set[str]:
    """Sorts of files that lie beside segments: `predicted-KEY.npy` is `predicted`."""
    found = {path.name.partition("-")[0].partition(".")[0] for path in home.path.glob("pool/**/*") if path.is_file()}
    return found & {"predicted", "profiles", "asked", "directory", "index"}


@pytest.mark.parametrize(("matching", "made"), [("pooled", {"predicted", "profiles", "asked"}), ("nearest", {"index"})])
def test_a_pool_is_prepared_for_the_matching_of_its_release(home, matching, made, monkeypatch, rng):
    monkeypatch.setattr(faiss, "FLAT_UP_TO", 100)  # so that this small pool has an index
    with ServerHome(home) as opened:
        bundle = served(opened)
        settings = msgspec.structs.replace(bundle.manifest.settings, matching=matching)
        bundle = replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, settings=settings))
        for path in opened.path.glob("pool/**/*-*.npy"):
            path.unlink()
        for path in opened.path.glob("pool/**/index*"):
            path.unlink()
        assert beside(opened) == set()
        bundle.warm(wait=True)
        assert beside(opened) == made


def test_compacting_by_hand_prepares_what_the_server_will_need(home, capsys):
    assert main(["data", "compact", "--home", str(home), "--full"]) == 0
    with ServerHome(home) as opened:
        assert beside(opened) == {"predicted", "profiles", "asked"}


def test_recall_of_pooled_matching_is_of_its_neighbours_and_never_of_the_askers_own(home):
    told: list[float] = []
    with ServerHome(home) as opened:
        bundle = served(opened)
        settings = msgspec.structs.replace(bundle.manifest.settings, neighbours=64)
        bundle = replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, settings=settings))
        [segment, *_] = bundle.pool.segments
        own = int(segment.contributors[0])
        mine = np.flatnonzero(segment.contributors == own)
        profile = segment.embeddings[mine].mean(0, keepdims=True)
        profile[:, bundle.manifest.filter_from :] = 0
        [found] = bundle.nearest(profile, own)
        assert len(found) >= 64 and not np.isin(found, mine + segment.base).any()
        sampler = RecallSampler(bundle.pool, bundle.nearest, bundle.depth, told.append)
        sampler.offer(profile, own).join(20)
    by_chance = 64 / len(segment)
    assert len(told) == 1 and 3 * by_chance < told[0] <= 1
