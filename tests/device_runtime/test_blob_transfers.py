"""Blobs over real sockets: whole by their hash or not at all, and no byte is asked for twice without need."""

from __future__ import annotations

import hashlib
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime.bundle import BlobStore, FileRef
from device_runtime.counting import Traffic
from device_runtime.errors import Refused, StoreError, TrustError, Unreachable, WireError
from tests.device_runtime.peers import CountingProxy, Naps, Reply, Request, Server, in_turn, reply, to

BLOB = random.Random(0).randbytes(200_000)


def ref_of(blob: bytes) -> FileRef:
    return FileRef(hashlib.sha256(blob).hexdigest(), len(blob), len(blob), "none")


def blobs(request: Request) -> Reply:
    """Serves BLOB as the cloud does: ETag, Range and If-Range."""
    etag = f'"{request.path.rpartition("/")[2]}"'
    wanted = request.headers.get("range", "")
    if wanted and request.headers.get("if-range") == etag:
        at = int(wanted.removeprefix("bytes=").removesuffix("-"))
        span = f"bytes {at}-{len(BLOB) - 1}/{len(BLOB)}"
        return reply(206, BLOB[at:], "application/octet-stream", ETag=etag, Content_Range=span)
    return reply(200, BLOB, "application/octet-stream", ETag=etag)


def part(store: BlobStore, ref: FileRef) -> Path:
    return store.folder / f".part-{ref.sha256}"


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def test_a_captive_portal_is_recognised(store: BlobStore) -> None:
    naps = Naps()
    page = reply(200, b"<html>Welcome to Hotel WLAN", "text/html; charset=utf-8")
    with Server(lambda _: page) as server, to(server.url, naps) as transport:
        with pytest.raises(Unreachable, match=r"a web page instead of application/json: .*captive portal"):
            transport.request("GET", "/v1/bundle", label="bundle", accept="application/json")
        with pytest.raises(Unreachable, match="captive portal"):
            transport.fetch_blob(ref_of(BLOB), store)
        assert server.requests[0].headers["accept"] == "application/json"
    redirect = reply(302, Location="http://login.hotel.example/")
    with (
        Server(lambda _: redirect) as server,
        to(server.url, naps) as transport,
        pytest.raises(Unreachable, match=r"redirects GET /v1/bundle to http://login\.hotel\.example/"),
    ):
        transport.request("GET", "/v1/bundle", label="bundle")
    assert not naps.taken and not store.has(ref_of(BLOB))


def test_a_blob_is_fetched_once_and_then_costs_nothing(store: BlobStore) -> None:
    with Server(blobs) as server, CountingProxy(server.port) as proxy, to(proxy.url) as transport:
        assert transport.fetch_blob(ref_of(BLOB), store) == len(BLOB)
        assert store.read(ref_of(BLOB)) == BLOB
        assert transport.counter.by_label == {"blob": Traffic(proxy.relayed.up, proxy.relayed.down)}
        assert proxy.relayed.up + proxy.relayed.down < len(BLOB) + 600
        before = transport.counter.total
        assert transport.fetch_blob(ref_of(BLOB), store) == 0
        assert transport.counter.total == before and len(server.requests) == 1
    assert [path.name for path in store.folder.iterdir()] == [ref_of(BLOB).sha256]


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, len(BLOB) + 400), max_size=2), st.integers(0, len(BLOB)))
def test_a_transfer_cut_anywhere_goes_on_where_it_stopped(cuts: list[int], held: int) -> None:
    with tempfile.TemporaryDirectory() as folder, Server(blobs) as server:
        store, ref = BlobStore(Path(folder)), ref_of(BLOB)
        part(store, ref).write_bytes(BLOB[:held])  # left by an earlier run
        with CountingProxy(server.port, tuple(cuts)) as proxy, to(proxy.url) as transport:
            assert transport.fetch_blob(ref, store) == len(BLOB) - held
            assert transport.counter.total.down == proxy.relayed.down  # up, a cut may swallow what we sent
            assert proxy.relayed.down <= len(BLOB) - held + 400 * (1 + len(cuts))
        assert store.read(ref) == BLOB
        assert not part(store, ref).exists()


def test_a_transfer_that_fails_for_good_is_taken_up_by_the_next_call(store: BlobStore) -> None:
    ref = ref_of(BLOB)
    with Server(blobs) as server:
        with (
            CountingProxy(server.port, (50_000,) * 3) as proxy,
            to(proxy.url) as transport,
            pytest.raises(Unreachable, match="cut short"),
        ):
            transport.fetch_blob(ref, store)
        arrived = part(store, ref).stat().st_size
        assert 140_000 < arrived < 150_000 and not store.has(ref)
        with to(server.url) as transport:
            assert transport.fetch_blob(ref, store) == len(BLOB) - arrived
    assert store.read(ref) == BLOB


def test_a_server_that_ignores_range_sends_all_again(store: BlobStore) -> None:
    ref = ref_of(BLOB)
    store.folder.mkdir()
    part(store, ref).write_bytes(b"\0" * 1000)
    with Server(lambda _: reply(200, BLOB, "application/octet-stream")) as server, to(server.url) as transport:
        assert transport.fetch_blob(ref, store) == len(BLOB)
        assert server.requests[0].headers["range"] == "bytes=1000-" and len(server.requests) == 1
    assert store.read(ref) == BLOB


def test_a_flipped_bit_is_noticed_and_nothing_is_kept(store: BlobStore) -> None:
    bad = bytearray(BLOB)
    bad[1234] ^= 1
    with Server(lambda _: reply(200, bytes(bad))) as server, to(server.url) as transport:
        with pytest.raises(TrustError, match="damaged blob"):
            transport.fetch_blob(ref_of(BLOB), store)
        assert len(server.requests) == 1
    assert list(store.folder.iterdir()) == []


@pytest.mark.parametrize("held", [700, len(BLOB)])
def test_bytes_left_damaged_by_a_power_cut_are_fetched_again(store: BlobStore, held: int) -> None:
    ref = ref_of(BLOB)
    store.folder.mkdir()
    part(store, ref).write_bytes(bytes(held))
    with Server(blobs) as server, to(server.url) as transport:
        assert transport.fetch_blob(ref, store) == 2 * len(BLOB) - held
    assert store.read(ref) == BLOB


@pytest.mark.parametrize("served", [BLOB + b"more", BLOB[:-1], b""])
def test_a_blob_of_another_size_is_not_taken(store: BlobStore, served: bytes) -> None:
    with Server(lambda _: reply(200, served)) as server, to(server.url) as transport:
        with pytest.raises(TrustError):
            transport.fetch_blob(ref_of(BLOB), store)
        assert transport.counter.total.down < len(BLOB) + 400
    assert list(store.folder.iterdir()) == []


def test_a_server_whose_blob_is_shorter_than_what_is_held_or_that_sends_another_range(store: BlobStore) -> None:
    ref = ref_of(BLOB)
    store.folder.mkdir()
    part(store, ref).write_bytes(BLOB[:1000])
    other = reply(206, BLOB[999:], Content_Range=f"bytes 999-{len(BLOB) - 1}/{len(BLOB)}")
    with Server(in_turn(other, reply(416), blobs)) as server, to(server.url) as transport:
        with pytest.raises(Unreachable, match="sent other bytes"):
            transport.fetch_blob(ref, store)
        assert part(store, ref).exists()
        with pytest.raises(TrustError, match="another file"):
            transport.fetch_blob(ref, store)
        assert not part(store, ref).exists()
        assert transport.fetch_blob(ref, store) == len(BLOB)


def test_a_blob_that_the_server_lacks_or_cannot_give_now(store: BlobStore) -> None:
    naps = Naps()
    with (
        Server(in_turn(reply(503, Retry_After="3"), reply(404))) as server,
        to(server.url, naps) as transport,
        pytest.raises(Refused, match=r"refused GET /v1/blobs/[0-9a-f]{64} with status 404"),
    ):
        transport.fetch_blob(ref_of(BLOB), store)
    assert naps.taken == [3.375]


@pytest.mark.parametrize("ref", [FileRef("../../etc/passwd", 1, 1, "none"), FileRef("0" * 64, 1 << 40, 1, "none")])
def test_a_reference_that_no_store_can_hold(store: BlobStore, ref: FileRef) -> None:
    with to("http://coda.invalid") as transport, pytest.raises(WireError):
        transport.fetch_blob(ref, store)
    assert not store.folder.exists()


def test_an_empty_blob(store: BlobStore) -> None:
    with Server(lambda _: reply(200, b"")) as server, to(server.url) as transport:
        assert transport.fetch_blob(ref_of(b""), store) == 0
    assert store.read(ref_of(b"")) == b""


def test_a_blob_that_does_not_fit_is_not_asked_for(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 30, 1 << 30, 1000))
    with Server(blobs) as server, to(server.url) as transport:
        with pytest.raises(StoreError, match="1000 bytes free; 200000 are needed"):
            transport.fetch_blob(ref_of(BLOB), store)
        assert not server.requests


def test_a_disk_that_fills_up_on_the_way_gets_its_bytes_back(store: BlobStore) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full, which plays the full disk, does not exist here")
    store.folder.mkdir()
    part(store, ref_of(BLOB)).symlink_to("/dev/full")
    with Server(blobs) as server, to(server.url) as transport, pytest.raises(StoreError, match="No space left"):
        transport.fetch_blob(ref_of(BLOB), store)
    assert list(store.folder.iterdir()) == []


def test_a_folder_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        Server(blobs) as server,
        to(server.url) as transport,
        pytest.raises(StoreError, match=r"cannot keep blob .* Not a directory"),
    ):
        transport.fetch_blob(ref_of(BLOB), BlobStore(tmp_path / "file" / "blobs"))
