"""The cloud of an evaluation: a model, its bundle and a pool, made once; and matching as of a given time."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np

import export
from cloud import training
from cloud.datasets import Dataset
from cloud.encoding import Encoder
from cloud.evaluation import leaks
from cloud.evaluation.protocols import Split
from cloud.matching import ExactStore, match
from cloud.pool import Pool, Segment, Tokens
from device_runtime.bundle import BlobStore, Manifest, RoundSettings, open_manifest, write_atomically
from device_runtime.engines import open_engine
from device_runtime.errors import StoreError
from device_runtime.identity import Signer
from device_runtime.model import VOCABULARY, Model
from device_runtime.samples import Float32, Int32, Int64, Ragged, SampleBatch
from device_runtime.stream import samples
from device_runtime.wire import MatchAnswer, decode_query, encode_answer
from export.checkpoint import Trained, TrainSettings
from export.package import Source, build, read_ref


@dataclass(frozen=True)
class Place:
    """Folders of a cloud's bundle and pool."""

    bundle: Path
    pool: Path


Show = Callable[[str, int, int], None]
"""Called with a stage's name, what is done, and what there is to do."""
_CHUNK = 8192


LEAST = 8
"""Samples of a contributor who can be matched as a user."""


def unit_rows(rows: Float32) -> Float32:
    scaled: Float32 = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)).astype(np.float32)
    return scaled


def token(user: int) -> int:
    """A contributor in the pool of an evaluation."""
    return user + 1


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
        manifest = Cloud.open(place).manifest
        _fill(Pool(place.pool / "samples", manifest.schema, manifest.width), split.pool, manifest, place.bundle, show)
        write_atomically(place.pool / "ready", b"")
    return place


def _training(show: Show) -> Callable[[int, int, float], None]:
    return lambda epoch, done, _: show(f"train the cloud model, epoch {epoch}", done, 1000)


def _export(trained: Trained, place: Place, show: Show) -> None:
    shutil.rmtree(place.bundle, ignore_errors=True)
    signer, stages, state = (
        Signer.open_or_create(place.bundle.parent / "release.key"),
        iter(range(1, 100)),
        trained.state,
    )
    build(
        Source(
            state.dataset,
            state.settings.model,
            trained.model,
            state.keys,
            state.positive_at,
            trained.metrics,
            RoundSettings(),
        ),
        place.bundle,
        version=1,
        signer=signer,
        answer_key=signer.public,
        engines=[open_engine("onnx")],
        progress=lambda what: show("export", next(stages), 6),
    )


def _fill(pool: Pool, dataset: Dataset, manifest: Manifest, bundle: Path, show: Show) -> None:
    """One segment, ordered by time: what a device may see of it is its beginning."""
    encoder = Encoder(manifest, BlobStore(bundle / "blobs"))
    events = dataset.events
    order = np.argsort(events.timestamp, kind="stable")
    ordered = samples(events, manifest.schema)
    embedded = []
    for start in range(0, len(events), _CHUNK):  # in the contributors' order: their histories lie together
        embedded.append(encoder.encode(ordered.take(slice(start, start + _CHUNK))))
        show("embed the pool", min(start + _CHUNK, len(events)), len(events))
    tokens: Tokens = (events.contributor.astype(np.uint64) + np.uint64(token(0)))[order]
    pool.append(ordered.take(order), events.timestamp[order], tokens, np.concatenate(embedded)[order])


def _names(split: Split, work: Path, settings: TrainSettings) -> tuple[Path, Path]:
    """By all that they depend on: events, vocabulary, settings, and the code that trains and exports."""
    digest = hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(settings, threads=0)))
    root = Path(export.__file__).parent
    digest.update(code_digest([*root.rglob("*.py"), Path(training.__file__)]).encode())
    digest.update("\0".join(split.cloud.items).encode())
    _update(digest, split.cloud)
    model = digest.hexdigest()[:12]
    _update(digest, split.pool)
    return work / f"cloud-{model}" / "bundle", work / f"cloud-{model}" / f"pool-{digest.hexdigest()[:12]}"


def _update(digest: hashlib._Hash, dataset: Dataset) -> None:
    e = dataset.events
    for array in (e.contributor, e.item, e.timestamp, e.label, e.observed, dataset.item_categories):
        digest.update(np.ascontiguousarray(array).tobytes())


def code_digest(files: Sequence[Path]) -> str:
    """Of the text of these files: results are only reused by the code that made them."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class PoolBefore(Pool):
    """What a pool held before a time: the beginning of each segment, which must be ordered by time. Never grows."""

    def __init__(self, pool: Pool, before: int) -> None:
        self.folder, self.schema, self.width = pool.folder, pool.schema, pool.width
        self._segments = ()
        for segment in pool.segments:
            n = int(np.searchsorted(segment.timestamps, before))
            part = slice(0, n)
            self._segments += (
                Segment(
                    len(self),
                    segment.samples.take(part),
                    segment.contributors[part],
                    segment.timestamps[part],
                    segment.embeddings[part],
                ),
            )

    def append(self, *_: object) -> None:
        raise StoreError("the past does not grow")


@dataclass(frozen=True)
class Cloud:
    """An opened cloud."""

    place: Place
    manifest: Manifest

    @classmethod
    def open(cls, place: Place) -> Cloud:
        """Raises: TrustError, StoreError: it is damaged."""
        ref = read_ref(place.bundle)
        stored = BlobStore(place.bundle / "blobs").path(ref.manifest).read_bytes()
        return cls(place, open_manifest(ref, stored, (place.bundle / "release.pub").read_text().strip()))

    @cached_property
    def model(self) -> Model:
        """The bundle on one thread of the onnx engine, with all shards at hand."""
        return Model.open(self.manifest, open_engine("onnx"), BlobStore(self.place.bundle / "blobs"))

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.manifest, BlobStore(self.place.bundle / "blobs"))

    @cached_property
    def shard_of_item(self) -> Int32:
        """int32 [items]: the shard that holds each id; 0 for padding."""
        shards = self.manifest.tables[VOCABULARY].shards
        found = np.zeros(self.manifest.tables[VOCABULARY].rows, np.int32)
        for number in range(len(shards)):
            found[self.model.shard(number).ids] = number
        return found

    @cached_property
    def pool(self) -> Pool:
        return Pool(self.place.pool / "samples", self.manifest.schema, self.manifest.width)

    def before(self, time: int) -> PoolBefore:
        """Raises: Leak: the pool is not in the order of time, so that later samples show."""
        pool = PoolBefore(self.pool, time)
        leaks.check_pool(pool, time)
        return pool

    def match(self, body: bytes, pool: PoolBefore, asker: int) -> bytes:
        """A query's frame -> the answer's, as the server makes it."""
        query = decode_query(body)
        candidates, shortfall = match(pool, ExactStore(pool), query, asker)
        return self.answer(candidates, query.held.tolist(), shortfall)

    def answer(self, candidates: SampleBatch, held: Sequence[int], shortfall: str = "") -> bytes:
        """The answer's frame; samples of one contributor are brought together, for that is shorter."""
        history = candidates.columns["history"]
        assert isinstance(history, Ragged)
        candidates = candidates.take(np.argsort(history.starts, kind="stable"))
        rows = self.encoder.rows(candidates.ids(VOCABULARY), np.array(held, np.int32))
        return encode_answer(MatchAnswer(candidates, {VOCABULARY: rows} if len(rows.ids) else {}, shortfall))

    def answer_with(self, pool: PoolBefore, positions: Int64, held: Sequence[int]) -> bytes:
        """An answer's frame that holds these samples of the pool."""
        return self.answer(pool.gather(np.sort(positions)), held)

    def contributors(self, pool: PoolBefore, asker: int) -> list[Int64]:
        """Positions of everybody else's samples, one array a contributor; those who have too few do not count."""
        found = self.others(pool, asker)
        tokens = np.concatenate([segment.contributors for segment in pool.segments])[found]
        order = np.argsort(tokens, kind="stable")
        parts = np.split(found[order], np.flatnonzero(np.diff(tokens[order])) + 1)
        return [part for part in parts if len(part) >= LEAST]

    def means(self, pool: PoolBefore, groups: Sequence[Int64]) -> Float32:
        """float32 [groups, width]: the mean embedding of each group of positions, unit rows."""
        [segment] = pool.segments
        starts = np.cumsum([0] + [len(group) for group in groups[:-1]])
        sums = np.add.reduceat(segment.embeddings[np.concatenate(groups)], starts, 0)
        return unit_rows(sums)

    def others(self, pool: PoolBefore, asker: int) -> Int64:
        """Positions of everybody else's samples."""
        found = [np.flatnonzero(segment.contributors != np.uint64(asker)) + segment.base for segment in pool.segments]
        return np.concatenate(found) if found else np.zeros(0, np.int64)
