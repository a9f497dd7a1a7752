"""Blobs: named by hash, immutable, resumable."""

from __future__ import annotations

import pytest

from cloud.http import blobs as module
from device_runtime.bundle import BlobStore, FileRef
from device_runtime.counting import ByteCounter
from device_runtime.delta import delta_name
from device_runtime.transport import Transport
from tests.cloud.http.conftest import BLOB, BLOB_NAME

PATH, ETAG, SIZE = f"/v1/blobs/{BLOB_NAME}", f'"{BLOB_NAME}"', len(BLOB)


@pytest.fixture
def peer(serve):
    return serve()


def test_a_blob_is_public_and_immutable(peer):
    reply = peer.send("GET", PATH)
    assert (reply.status, reply.body, reply.kind) == (200, BLOB, "application/octet-stream")
    assert reply.headers["ETag"] == ETAG and reply.headers["Accept-Ranges"] == "bytes"
    assert reply.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert int(reply.headers["Content-Length"]) == SIZE


def test_head_has_the_headers_and_no_body(peer):
    for headers in ({}, {"Range": "bytes=5-"}):  # Range means something for GET only
        reply = peer.send("HEAD", PATH, **headers)
        assert (reply.status, reply.body, int(reply.headers["Content-Length"])) == (200, b"", SIZE)


@pytest.mark.parametrize("known", [ETAG, "*", f'"x", {ETAG}', f"W/{ETAG}"])
def test_what_the_client_has_is_not_sent(peer, known):
    reply = peer.send("GET", PATH, If_None_Match=known)
    assert (reply.status, reply.body, reply.headers["ETag"]) == (304, b"", ETAG)


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [("0-0", 0, 1), ("5-", 5, SIZE), ("5-99999999", 5, SIZE), ("-7", SIZE - 7, SIZE), ("-99999999", 0, SIZE),
     (f"{SIZE - 1}-", SIZE - 1, SIZE), ("0-" + "9" * 15, 0, SIZE)],
)  # fmt: skip
def test_one_range(peer, asked, start, end):
    reply = peer.send("GET", PATH, Range=f"bytes={asked}")
    assert (reply.status, reply.body) == (206, BLOB[start:end])
    assert reply.headers["Content-Range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert int(reply.headers["Content-Length"]) == end - start


@pytest.mark.parametrize("asked", [f"{SIZE}-", f"{SIZE}-{SIZE + 5}", "-0", "9" * 17 + "-"])
def test_a_range_outside_the_blob(peer, asked):
    reply = peer.send("GET", PATH, Range=f"bytes={asked}")
    reply.problem(416)
    assert reply.headers["Content-Range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize(
    "asked", ["bytes=-", "bytes=9-3", "bytes=0-1,5-6", "items=0-1", "bytes=a-b", "bytes=" + "9" * 5000 + "-"]
)
def test_a_range_that_cannot_be_read_is_ignored(peer, asked):
    reply = peer.send("GET", PATH, Range=asked)
    assert (reply.status, reply.body) == (200, BLOB)


def test_if_range_sends_all_of_another_blob(peer):
    assert peer.send("GET", PATH, Range="bytes=5-", If_Range=ETAG).status == 206
    assert peer.send("GET", PATH, Range="bytes=5-", If_Range='"other"').body == BLOB


@pytest.mark.parametrize(
    "name",
    ["0" * 64, BLOB_NAME.upper(), BLOB_NAME[:-1], BLOB_NAME + "0", "../catalog.db", "..%2Fcatalog.db",
     "%2e%2e/answer.key", "%00" * 64, "g" * 64, BLOB_NAME + "%0a", "%2fetc%2fpasswd", ""],
)  # fmt: skip
def test_no_other_name_finds_anything(peer, name):
    peer.send("GET", f"/v1/blobs/{name}").problem(404)


def test_a_delta_is_named_by_both_ends_and_as_immutable_as_a_blob(peer):
    old, new = "a" * 64, "b" * 64
    name = delta_name(old, new)
    peer.services.blobs.write(name, b"what differs")
    peer.services.blobs.write(delta_name(new, old), b"")
    reply = peer.send("GET", f"/v1/deltas/{old}/{new}")
    assert (reply.status, reply.body, reply.headers["ETag"]) == (200, b"what differs", f'"{name}"')
    assert reply.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert peer.send("GET", f"/v1/deltas/{old}/{new}", Range="bytes=5-8").body == b"diff"
    nothing = peer.send("GET", f"/v1/deltas/{new}/{old}")
    assert (nothing.status, nothing.body) == (200, b""), "the whole file is shorter"
    for path in (f"{old}/{old}", f"{old}/{'..%2F' * 3}answer.key", "a/b"):
        peer.send("GET", f"/v1/deltas/{path}").problem(404)


def test_a_blob_that_shrinks_while_it_is_sent_ends_the_stream(tmp_path):
    (tmp_path / "b").write_bytes(b"12345")
    with pytest.raises(OSError, match="shorter"):
        list(module._read(tmp_path / "b", 0, 9))


def test_the_devices_transport_resumes(peer, tmp_path):
    store = BlobStore(tmp_path / "mine")
    ref = FileRef(BLOB_NAME, SIZE, SIZE, "none")
    with Transport(peer.url, ByteCounter()) as transport:
        store.folder.mkdir()
        assert transport.fetch_blob(ref, store) == SIZE
        assert transport.fetch_blob(ref, store) == 0
    assert store.read(ref) == BLOB
