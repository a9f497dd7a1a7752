"""The server's side of a benchmark: a model, its signed bundle and a pool, from the example data.

Bytes and CPU of a round do not depend on how good the model is, so it is trained on a part of the users and for one
epoch; the pool holds the samples of everybody but the one user who plays the devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np

from cloud.datasets import Dataset, example, write_history
from cloud.demo.processes import server
from cloud.home import ServerHome, ingest, publish
from cloud.training import train
from device_runtime.bundle import BlobStore, RoundSettings, open_manifest, write_atomically
from device_runtime.engines import Engine, open_engine
from device_runtime.errors import EngineUnavailable, InputError
from device_runtime.identity import Signer
from device_runtime.stream import Events
from export.checkpoint import TrainSettings
from export.package import Source, build, read_ref, restate

HISTORY = 50
_TRAINED_EVENTS = 6_000
_READY = "user.txt"
"""Written last: a folder that has it is whole."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """dataset: the whole example. events: those of the user who plays the devices, oldest first; the pool has none of
    them. Of all users this one has most."""

    folder: Path
    dataset: Dataset
    events: Events

    @property
    def home(self) -> Path:
        return self.folder / "server"

    @property
    def trust(self) -> Path:
        return self.folder / "bundle" / "release.pub"

    def write_history(self, local: int, path: Path) -> None:
        """The user's oldest events, as a device imports them. Raises: InputError: there are not that many."""
        if local > len(self.events):
            raise InputError(f"the user has {len(self.events)} events; {local} local samples are more than that")
        write_history(self.dataset, self.events.take(np.arange(local)), path)

    @contextmanager
    def serving(self, candidates: int) -> Iterator[str]:
        """A real server process whose bundle asks for that many candidates; gives its address."""
        _release(self, candidates)
        with server(self.home, self.folder / "server.log") as url:
            yield url


def engines_here(names: Sequence[str], progress: Progress) -> list[Engine]:
    """Those of the engines that work here; why another does not is told. Raises: EngineUnavailable: none does."""
    found = []
    for name in names:
        try:
            found.append(open_engine(name))
        except EngineUnavailable as reason:
            progress(f"the {name} engine is left out: {reason}")
    if not found:
        raise EngineUnavailable(f"none of the engines {', '.join(names)} works here")
    return found


@contextmanager
def prepared(work: Path | None, engines: Sequence[Engine], progress: Progress) -> Iterator[Prepared]:
    """work: a folder to keep it in and to find it again; None: a temporary one."""
    if work is not None:
        yield _prepare(work, engines, progress)
        return
    with TemporaryDirectory(prefix="coda-bench-") as folder:
        yield _prepare(Path(folder), engines, progress)


def _prepare(folder: Path, engines: Sequence[Engine], progress: Progress) -> Prepared:
    dataset = example()
    counts = np.bincount(dataset.events.contributor)
    chosen = int(counts.argmax())
    made = Prepared(folder, dataset, dataset.events.take(dataset.events.contributor == chosen).ordered())
    if (folder / _READY).exists():
        progress(f"using what {folder} holds")
        return made
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty, and was not prepared by a benchmark; choose another folder")
    others = dataset.take(dataset.events.contributor != chosen)
    few = int(np.searchsorted(np.cumsum(np.where(np.arange(len(counts)) == chosen, 0, counts)), _TRAINED_EVENTS)) + 1
    progress("training a model")
    settings = TrainSettings(epochs=1, history=HISTORY, threads=1)
    trained = train(others.take(others.events.contributor < few), folder / "model", settings)
    with ServerHome(folder / "server") as home:
        build(
            Source.of(trained, RoundSettings()),
            folder / "bundle",
            version=1,
            signer=Signer.create(folder / "release.key"),
            answer_key=home.answer_signer.public,
            engines=engines,
            progress=progress,
        )
        publish(home, folder / "bundle")
        progress("embedding the pool")
        ingest(home, others)
    write_atomically(folder / _READY, dataset.users[chosen].encode())
    return made


def _release(made: Prepared, candidates: int) -> None:
    """Publish the same bundle anew, with another number of candidates: a manifest, and no other new file."""
    bundle = made.folder / "bundle"
    signer = Signer.open_or_create(made.folder / "release.key")
    ref = read_ref(bundle)
    manifest = open_manifest(ref, (bundle / "blobs" / ref.manifest).read_bytes(), signer.public)
    settings = msgspec.structs.replace(manifest.settings, candidates=candidates)
    (bundle / "bundle.json").unlink()
    restate(
        msgspec.structs.replace(manifest, version=ref.version + 1, settings=settings),
        BlobStore(bundle / "blobs"),
        bundle,
        signer,
    )
    with ServerHome(made.home) as home:
        publish(home, bundle)
