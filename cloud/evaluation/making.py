"""Makes the cloud of an evaluation: trains, exports, fills the pool. Needs torch, which the workers do without."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

import export
from cloud import careful, drift, shrinkage, tastes, training, training_sets
from cloud.datasets import Dataset
from cloud.encoding import Encoder
from cloud.evaluation.cloud_side import DIRECTORY, PARTS, PREDICTED, RUNNING, Cloud, Place, code_digest, token
from cloud.evaluation.protocols import Split
from cloud.matching import Parts
from cloud.pool import Pool, Tokens
from device_runtime import bundle as manifests
from device_runtime.bundle import BlobStore, RoundSettings, write_atomically
from device_runtime.engines import open_engine
from device_runtime.identity import Signer
from device_runtime.samples import Float32
from device_runtime.stream import samples
from export.checkpoint import Trained, TrainSettings
from export.directory import directory_of
from export.package import Source, build

Show = Callable[[str, int, int], None]
"""Called with a stage's name, what is done, and what there is to do."""
_CHUNK = 8192


def prepare(split: Split, work: Path, settings: TrainSettings, show: Show) -> Place:
    """A cloud for this split, made unless it is there. Splits with the same cloud events share a model.

    A training that was cut short goes on from its last epoch; export and pool are made anew.

    Raises:
        CodaError: training or export failed.
    """
    place = Place(*_names(split, work, settings))
    if not (place.bundle / "bundle.json").exists():
        _export(training.train(split.cloud, place.bundle.parent / "model", settings, _training(show)), place, show)
    if not (place.pool / "ready").exists():
        shutil.rmtree(place.pool, ignore_errors=True)
        _fill(place, split.pool, show)
        write_atomically(place.pool / "ready", b"")
    return place


def _training(show: Show) -> Callable[[int, int, float], None]:
    return lambda epoch, done, _: show(f"train the cloud model, epoch {epoch}", done, 1000)


def _export(trained: Trained, place: Place, show: Show) -> None:
    shutil.rmtree(place.bundle, ignore_errors=True)
    parts = directory_of(trained.model, trained.held_out)
    if parts is not None:  # beside the bundle, which is that of all methods
        np.save(place.bundle.parent / DIRECTORY, parts)
    signer, stages = Signer.open_or_create(place.bundle.parent / "release.key"), iter(range(1, 100))
    build(
        Source.of(trained, RoundSettings()),
        place.bundle,
        version=1,
        signer=signer,
        answer_key=signer.public,
        engines=[open_engine("onnx")],
        progress=lambda what: show("export", next(stages), 6),
    )


def _fill(place: Place, dataset: Dataset, show: Show) -> None:
    """One segment, ordered by time: what a device may see of it is its beginning."""
    cloud = Cloud.open(place)
    manifest = cloud.manifest
    pool = Pool(place.pool / "samples", manifest.schema, manifest.width)
    encoder = Encoder(manifest, BlobStore(place.bundle / "blobs"))
    events = dataset.events
    order = np.argsort(events.timestamp, kind="stable")
    ordered = samples(events, manifest.schema)
    embedded, predicted = [], []
    for start in range(0, len(events), _CHUNK):  # in the contributors' order: their histories lie together
        part = ordered.take(slice(start, start + _CHUNK))
        embedded.append(encoder.encode(part))
        predicted.append(encoder.predict(part))
        show("embed the pool", min(start + _CHUNK, len(events)), len(events))
    tokens: Tokens = (events.contributor.astype(np.uint64) + np.uint64(token(0)))[order]
    np.save(place.pool / PREDICTED, np.concatenate(predicted)[order])
    vectors = np.concatenate(embedded)[order]
    if cloud.directory is not None:
        parts = Parts.of(vectors, cloud.directory.centroids)
        np.save(place.pool / PARTS, np.concatenate((parts.ends, parts.rows)))
    np.save(place.pool / RUNNING, _running(vectors, tokens))
    pool.append(ordered.take(order), events.timestamp[order], tokens, vectors)


def _running(vectors: Float32, tokens: Tokens) -> Float32:
    """float32 [n, width]: the sums of each contributor's vectors up to each of them."""
    order, sums = np.argsort(tokens, kind="stable"), np.empty_like(vectors)
    for part in np.split(order, np.flatnonzero(np.diff(tokens[order])) + 1):
        sums[part] = np.cumsum(vectors[part], 0, dtype=np.float64)
    return sums


def _names(split: Split, work: Path, settings: TrainSettings) -> tuple[Path, Path]:
    """By all that they depend on: events, vocabulary, settings, and the code that trains and exports."""
    digest = hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(settings, threads=0)))
    root = Path(export.__file__).parent
    code = (Path(m.__file__ or "") for m in (training, training_sets, tastes, drift, shrinkage, careful, manifests))
    digest.update(code_digest([*root.rglob("*.py"), *code]).encode())
    digest.update("\0".join(split.cloud.items).encode())
    _update(digest, split.cloud)
    model = digest.hexdigest()[:12]
    digest.update(code_digest([Path(__file__)]).encode())
    _update(digest, split.pool)
    return work / f"cloud-{model}" / "bundle", work / f"cloud-{model}" / f"pool-{digest.hexdigest()[:12]}"


def _update(digest: hashlib._Hash, dataset: Dataset) -> None:
    e = dataset.events
    for array in (e.contributor, e.item, e.timestamp, e.label, e.observed, dataset.item_categories):
        digest.update(np.ascontiguousarray(array).tobytes())
