"""Matches by directory over a real server: what is answered, and what a stale device is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from cloud.http import ServerLimits
from cloud.matching import by_directory, open_store
from device_runtime.directory import Directory
from device_runtime.wire import DirectoryQuery, decode_answer, decode_query, encode_directory_query
from tests.cloud.http.conftest import ENCODER, SCHEMA, WIDTH, Peer, TinyEncoder, query
from tests.device_runtime.batches import assert_same

DIRECTORY = Directory.of(
    (lambda found: found / np.linalg.norm(found, axis=1, keepdims=True))(
        np.random.default_rng(5).normal(size=(6, WIDTH))
    ).astype(np.float16),
    WIDTH,
)


class Encoder(TinyEncoder):
    directory: Directory | None = DIRECTORY


def ask(limit: int = 10, encoder: str = ENCODER, directory: str = DIRECTORY.id, parts: int = 6) -> bytes:
    weights = np.array([255, 0, 90, 30, 8, 200, 255][:parts], np.uint8)
    return encode_directory_query(DirectoryQuery(encoder, directory, weights, limit, np.array([1], np.int32)))


@pytest.fixture
def serve_directory(serve: Callable[..., Peer], services) -> Callable[..., Peer]:
    """Starts a server that matches by directory, changed as told; returns an enrolled peer."""

    def start(**changes: object) -> Peer:
        settings = msgspec.structs.replace(services.manifest.settings, matching="directory")
        manifest = msgspec.structs.replace(services.manifest, settings=settings)
        peer = serve(**{"manifest": manifest, "encoder": Encoder()} | changes)
        assert peer.enrol().status == 200
        return peer

    return start


@pytest.mark.parametrize("store", ["exact", "faiss", "faiss:pq"])
def test_whatever_searches_vectors_the_answer_is_that_of_the_parts(serve_directory, services, store):
    peer = serve_directory(store=open_store(store, services.pool))
    reply = peer.signed("POST", "/v1/match", ask())
    assert reply.status == 200
    answer = decode_answer(reply.body, SCHEMA)
    token = services.contributor(f"device:{peer.device}")
    meant, _ = by_directory(services.pool, decode_query(ask()), token, DIRECTORY, 12.0, peer.services.served.divided)
    assert len(answer.candidates) == 10 and not answer.shortfall
    assert_same(answer.candidates, meant)
    assert set(answer.rows["item"].ids % 4) == {0, 2, 3}, "rows of the shard that is held are not sent"
    assert peer.signed("POST", "/v1/match", ask()).body == reply.body, "who asks again learns no more"


def test_a_contributor_who_was_erased_is_in_no_answer(serve_directory, services):
    peer = serve_directory()
    before = decode_answer(peer.signed("POST", "/v1/match", ask(60)).body, SCHEMA)
    assert before.candidates.columns["item"].min() == 1, "which only the first contributor has"
    services.pool.erase(1, now=10)
    after = decode_answer(peer.signed("POST", "/v1/match", ask(60)).body, SCHEMA)
    assert after.candidates.columns["item"].min() > 1 and len(after.candidates) < len(before.candidates)
    assert "samples of other contributors in the parts of the directory" in after.shortfall


def test_a_servers_own_limit_holds_and_is_said(serve_directory):
    peer = serve_directory(limits=ServerLimits(max_candidates=7))
    found = decode_answer(peer.signed("POST", "/v1/match", ask(2**40)).body, SCHEMA)
    assert len(found.candidates) == 7 and found.shortfall == "this server gives at most 7 samples at a time"


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (ask(encoder="old"), "encode again"),
        (ask(directory="0123456789abcdef"), "pull bundle 3 and ask as it says"),
        (query(), "pull bundle 3 and ask as it says"),
    ],
    ids=["encoder", "directory", "vectors"],
)
def test_who_asks_by_something_else_is_told_to_pull(serve_directory, body, detail):
    assert detail in serve_directory().signed("POST", "/v1/match", body).problem(409)["detail"]


def test_a_server_without_a_directory_tells_who_asks_by_one_to_pull(peer):
    """The device may still have the bundle before, of the same encoder."""
    assert "directory is outdated" in peer.signed("POST", "/v1/match", ask()).problem(409)["title"]
    assert peer.signed("POST", "/v1/match", query()).status == 200


@pytest.mark.parametrize("parts", [5, 7])
def test_weights_of_another_number_of_parts_are_400(serve_directory, parts):
    found = serve_directory().signed("POST", "/v1/match", ask(parts=parts)).problem(400)
    assert found["detail"] == f"the directory has 6 parts; given {parts} weights"


def test_compaction_leaves_the_parts_beside_what_it_writes(serve_directory, services):
    peer = serve_directory()
    services.pool.compact(full=True, prepare=peer.services.served.prepare)
    [segment] = services.pool.segments
    assert [f.name for f in segment.folder.glob("directory-*.npy")] == [f"directory-{DIRECTORY.id}.npy"]
    assert peer.signed("POST", "/v1/match", ask()).status == 200


def test_a_server_warms_up_by_finding_the_parts(serve_directory, services):
    served = dataclasses.replace(serve_directory().services.served)
    served.warm()
    assert all(list(segment.folder.glob("directory-*.npy")) for segment in services.pool.segments)
