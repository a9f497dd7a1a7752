"""A real uvicorn server on loopback over a small hand-made release, and clients that may misbehave."""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import uvicorn

from cloud.catalog import Catalog
from cloud.http import ServerLimits, Services, create_app
from cloud.http.serving import guarded
from cloud.matching import FaissStore
from cloud.pool import Pool
from device_runtime.bundle import FORMAT, BlobStore, FileRef, Manifest, RoundSettings, TableEntry
from device_runtime.errors import InputError
from device_runtime.identity import Signer, device_id
from device_runtime.messages import BundleRef, Capability, Enrolment, to_json
from device_runtime.samples import Feature, Float32, Int32, Ragged, SampleBatch, Schema
from device_runtime.wire import MatchQuery, Rows, encode_query

WIDTH, ITEMS, SHARDS = 8, 100, 4
SCHEMA = Schema((Feature("item", "id", "item"), Feature("history", "ids", "item", 5)))
ENCODER = "encoder-1"
BLOB = bytes(range(256)) * 40
BLOB_NAME = hashlib.sha256(BLOB).hexdigest()
START = 1_700_000_000.0


class TinyEncoder:
    """Ids 1 to 100, an item's shard is its id modulo 4, an embedding depends on the item alone."""

    directions = np.random.default_rng(7).normal(size=(ITEMS + 1, WIDTH)).astype(np.float32)

    def encode(self, samples: SampleBatch) -> Float32:
        self._check(samples.ids("item"))
        found = self.directions[samples.columns["item"]]
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

    def rows(self, ids: Int32, held: Int32) -> Rows:
        self._check(ids)
        ids = ids[~np.isin(ids % SHARDS, held)]
        return Rows(ids, {"item.weight": self.directions[ids].astype(np.float16)})

    def _check(self, ids: Int32) -> None:
        if len(ids) and (ids.min() < 1 or ids.max() > ITEMS):
            raise InputError("an id is not in the vocabulary of items")


def some_samples(items: list[int], label: float = 1.0) -> SampleBatch:
    """One sample an item; they share one history of items 1 to 5."""
    n = len(items)
    history = Ragged(np.arange(1, 6, dtype=np.int32), np.zeros(n, np.int32), np.full(n, 5, np.int32))
    columns = {"item": np.array(items, np.int32), "history": history}
    return SampleBatch(SCHEMA, columns, np.full(n, label, np.float32))


class Clock:
    """Stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def kind(self) -> str:
        return self.headers.get("Content-Type", "")

    def problem(self, status: int) -> dict:
        """The problem in it, after checking that it is one."""
        assert self.status == status, self.body
        assert self.kind == "application/problem+json"
        assert int(self.headers["Content-Length"]) == len(self.body)
        found = json.loads(self.body)
        assert found["status"] == status and found["title"]
        return found


class Peer:
    """One server's address, and a device's key to sign with."""

    def __init__(self, port: int, services: Services, folder: Path) -> None:
        self.port, self.services = port, services
        self.signer = Signer.create(folder / f"device-{time.monotonic_ns()}.key")
        self.device = device_id(self.signer.public)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def send(self, method: str, path: str, body: bytes | Iterator[bytes] = b"", **headers: str) -> Reply:
        """Unsigned. Header names are written with _ for -."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body or None, named)
            response = connection.getresponse()
            return Reply(response.status, response.msg, response.read())
        finally:
            connection.close()

    def signature(self, method: str, path: str, body: bytes = b"", at: float | None = None) -> str:
        return self.signer.authorization(self.device, method, path, body, self.services.clock() if at is None else at)

    def signed(self, method: str, path: str, body: bytes = b"", **headers: str) -> Reply:
        return self.send(method, path, body, Authorization=self.signature(method, path, body), **headers)

    def enrol(self) -> Reply:
        body = to_json(Enrolment(public_key=self.signer.public, capability=Capability(runtime="test")))
        return self.signed("POST", "/v1/devices", body)


def query(limit: int = 10, encoder: str = ENCODER, width: int = WIDTH, held: tuple[int, ...] = (), k: int = 2) -> bytes:
    centroids = np.random.default_rng(3).normal(size=(k, width)).astype(np.float32)
    return encode_query(MatchQuery(encoder, centroids, limit, np.array(held, np.int32)))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def services(tmp_path: Path, clock: Clock) -> Iterator[Services]:
    """A pool of 60 samples by three contributors, one release, one blob."""
    blobs = BlobStore(tmp_path / "blobs")
    blobs.write(BLOB_NAME, BLOB)
    nothing = FileRef("0" * 64, 0, 0, "none")
    signer = Signer.create(tmp_path / "answer.key")
    manifest = Manifest(
        format=FORMAT, name="tiny", version=3, created="", model="none", schema=SCHEMA, encoder=ENCODER, width=WIDTH,
        filter_from=0, graphs={}, weights=nothing, classifier=nothing,
        tables={"item": TableEntry(ITEMS + 1, ("item.weight",), ())},
        settings=RoundSettings(matching="nearest"), answer_key=signer.public,
    )  # fmt: skip
    pool, encoder = Pool(tmp_path / "pool", SCHEMA, WIDTH), TinyEncoder()
    for token in (1, 2, 3):
        part = some_samples(list(range(token, token + 20)))
        tokens = np.full(len(part), token, np.uint64)
        pool.append(part, np.full(len(part), 5, np.int64), tokens, encoder.encode(part))
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    ref = BundleRef(version=3, manifest=BLOB_NAME, size=len(BLOB), key="0" * 16, signature="0" * 128)
    yield Services(
        catalog, blobs, ref, manifest, pool, FaissStore(pool), encoder,  # type: ignore[arg-type]
        lambda name: int.from_bytes(name.encode()[-7:], "little") | 1 << 60, signer, clock, ServerLimits(),
    )  # fmt: skip
    catalog.close()


@pytest.fixture
def serve(services: Services, tmp_path: Path) -> Iterator[Callable[..., Peer]]:
    """Starts a server over the services, changed as told; returns a peer that is not enrolled yet."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(**changes: object) -> Peer:
        changed = replace(services, **changes)
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(changed),
                port=0,
                http=guarded(changed.limits),
                log_config=None,
                lifespan="off",
                server_header=False,
            )
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline, "the server did not come up"
            time.sleep(0.005)
        return Peer(server.servers[0].sockets[0].getsockname()[1], changed, tmp_path)

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def peer(serve: Callable[..., Peer]) -> Peer:
    """An enrolled device of a server with default limits."""
    found = serve()
    assert found.enrol().status == 200
    return found
