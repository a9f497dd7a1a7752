"""What every test may use: one seed, the data sets, and a small server home made from known tastes."""

from __future__ import annotations

import csv
import dataclasses
import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from device_runtime.bundle import Manifest, open_manifest

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
SEED = 20220110


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=80, help="random kills of rounds (test_kills.py); the long run: 1000")


@pytest.fixture
def rng() -> np.random.Generator:
    """The one source of chance in a test."""
    return np.random.default_rng(SEED)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the data sets that cannot be shipped."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the data sets that may not be redistributed are not at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory, testrun_uid: str) -> Path:
    """A folder that all processes of this test run share."""
    folder = tmp_path_factory.getbasetemp().parent / f"common-{testrun_uid}"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True, scope="session")
def shim_cache(common: Path) -> Iterator[None]:
    """Build the ExecuTorch shim once for all processes of the test run, away from the user's cache."""
    patch = pytest.MonkeyPatch()
    patch.setenv("CODA_CACHE", str(common / "shim"))
    yield
    patch.undo()


@dataclass(frozen=True)
class Published:
    """A server's home with a release and a pool. trust: the public release key. history, later: CSV files of a user who
    is not in the pool; the events of `later` all come after those of `history`."""

    home: Path
    bundle: Path
    data: Path
    trust: str
    history: Path
    later: Path


USERS, ITEMS, CATEGORIES = 40, 200, 6


def write_tastes(folder: Path, items: int = ITEMS, each: int = 80) -> tuple[Path, Path]:
    """Interactions of users who each like two of six categories, nine times out of ten. each: events of a user."""
    rng = np.random.default_rng(SEED)
    category = rng.integers(0, CATEGORIES, items)
    with (folder / "items.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "title", "categories"])
        writer.writerows([f"i{i}", f"Item {i}", f"c{category[i]}"] for i in range(items))
    with (folder / "interactions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "timestamp", "label"])
        for user in range(USERS):
            taste = rng.choice(CATEGORIES, 2, replace=False)
            for n, item in enumerate(rng.choice(items, each, replace=False)):
                liked = np.isin(category[item], taste) ^ (rng.random() < 0.1)
                writer.writerow([f"u{user}", f"i{item}", 1_600_000_000 + 1000 * n + user, int(liked)])
    return folder / "interactions.csv", folder / "items.csv"


@pytest.fixture(scope="session")
def published(common: Path) -> Published:
    """A small world. Tests change copies."""
    return published_in(made_once(common / "published", publish_tastes))


@pytest.fixture(scope="session")
def bundle(common: Path) -> tuple[Path, Manifest]:
    """A signed bundle of a small, untrained model, and its manifest. Tests change copies."""
    from export.package import read_ref
    from tests.toy import make_bundle

    folder = made_once(common / "toy", make_bundle) / "bundle"
    ref, trust = read_ref(folder), (folder / "release.pub").read_text().strip()
    return folder, open_manifest(ref, (folder / "blobs" / ref.manifest).read_bytes(), trust)


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder that the first process of the test run that asks for it makes, while others wait."""
    with folder.with_name(f"{folder.name}.lock").open("ab") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            folder.mkdir()  # fails where another process failed half-way
            make(folder)
            (folder / "made").touch()
    return folder


def published_in(folder: Path) -> Published:
    """What `publish_tastes` has made."""
    return Published(
        folder / "server",
        folder / "bundle",
        folder / "data",
        (folder / "release.pub").read_text(),
        folder / "history.csv",
        folder / "later.csv",
    )


def publish_tastes(folder: Path, items: int = ITEMS, each: int = 80, local: int = 60, candidates: int = 60) -> None:
    """What `coda data`, `train`, `export`, `release` and `ingest` do, on a small scale, by their own code.

    local: events of the user's history; the rest of the `each` are of later.
    """
    from cloud.datasets import read, write_history
    from cloud.home import ServerHome, ingest, publish
    from cloud.training import train
    from device_runtime.bundle import RoundSettings
    from device_runtime.engines import open_engine
    from device_runtime.identity import Signer
    from export.checkpoint import TrainSettings
    from export.package import Source, build

    whole = read(*write_tastes(folder, items, each), name="tastes")
    asker = whole.users.index("u0")
    mine = whole.events.take(whole.events.contributor == asker)
    write_history(whole, mine.take(np.arange(local)), folder / "history.csv")
    write_history(whole, mine.take(np.arange(local, each)), folder / "later.csv")
    others = whole.take(whole.events.contributor != asker)
    others.save(folder / "data")
    trained = train(others, folder / "model", TrainSettings(epochs=2, history=8))
    signer = Signer.create(folder / "release.key")
    with ServerHome(folder / "server") as home:
        source = Source.of(trained, RoundSettings(candidates=candidates))
        build(
            source,
            folder / "bundle",
            version=2,
            signer=signer,
            answer_key=home.answer_signer.public,
            engines=[open_engine("onnx"), open_engine("executorch")],
            progress=lambda _: None,
        )
        publish(home, folder / "bundle")
        ingest(home, others)
    (folder / "release.pub").write_text(signer.public)


def reversion(bundle: Path, published: Published, version: int, **changes: object) -> None:
    """Make a bundle folder one of another version, changed as told, and sign it anew: a manifest and no other file."""
    import msgspec

    from device_runtime.bundle import pack_file
    from device_runtime.identity import Signer, key_id
    from device_runtime.messages import BundleRef, to_json
    from export.package import read_ref

    signer, old = Signer.open(published.home.parent / "release.key"), read_ref(bundle)
    manifest = open_manifest(old, (bundle / "blobs" / old.manifest).read_bytes(), signer.public)
    plain = to_json(msgspec.structs.replace(manifest, version=version, **changes))
    file, stored = pack_file(plain)
    (bundle / "blobs" / file.sha256).write_bytes(stored)
    key, signature = key_id(signer.public), signer.sign(plain)
    ref = BundleRef(version=version, manifest=file.sha256, size=file.size, key=key, signature=signature)
    (bundle / "bundle.json").write_bytes(to_json(ref))


def with_directory(published: Published, folder: Path, version: int = 3, order: int = 1) -> Path:
    """The published bundle as it would be if it matched by directory: single samples, few of them. order: -1 makes
    another directory of the same centroids."""
    import shutil

    import msgspec
    from safetensors.numpy import load, save

    from device_runtime.bundle import BlobStore, RoundSettings, pack_file
    from device_runtime.directory import TENSOR
    from export.checkpoint import load as load_trained
    from export.directory import directory_of
    from export.package import read_ref

    shutil.copytree(published.bundle, folder)
    trained = load_trained(published.home.parent / "model")
    ref = read_ref(folder)
    manifest = open_manifest(ref, (folder / "blobs" / ref.manifest).read_bytes(), published.trust)
    stored = directory_of(trained.model, trained.held_out)
    assert stored is not None and len(stored) > 1
    held = load(BlobStore(folder / "blobs").read(manifest.weights)) | {TENSOR: np.ascontiguousarray(stored[::order])}
    weights, data = pack_file(save(held), True)
    (folder / "blobs" / weights.sha256).write_bytes(data)
    settings = RoundSettings(matching="directory", candidates=60, keep=0.5, row_steps=0)
    reversion(folder, published, version, weights=weights, settings=settings)
    assert msgspec.json.decode((folder / "bundle.json").read_bytes())["version"] == version
    return folder


@pytest.fixture
def serving(published: Published, tmp_path: Path) -> Callable[..., object]:
    """A context manager that runs a real uvicorn server, in a thread, over a copy of the published home."""
    import shutil
    import threading
    import time

    import uvicorn

    from cloud.home import ServerHome
    from cloud.http import ServerLimits, Services, create_app

    home_path = tmp_path / "server"
    shutil.copytree(published.home, home_path)

    @contextmanager
    def serve(change: Callable[[Services], Services] = lambda services: services) -> Iterator[tuple[str, Services]]:
        with ServerHome(home_path) as home:
            # tests run rounds without a pause, as no device's schedule does
            brisk = ServerLimits(device_requests_per_minute=60_000.0, device_burst=10_000)
            services = change(dataclasses.replace(Services.of(home), limits=brisk))
            config = uvicorn.Config(create_app(services), port=0, log_config=None, access_log=False)
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, daemon=True)
            thread.start()
            while not server.started:
                assert thread.is_alive(), "the server did not come up"
                time.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            try:
                yield f"http://127.0.0.1:{port}", services
            finally:
                server.should_exit = True
                thread.join(20)

    return serve
