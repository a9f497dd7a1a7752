"""The cloud of an evaluation, opened: a bundle and a pool, and matching as of a given time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from cloud.encoding import Encoder
from cloud.evaluation import leaks
from cloud.matching import ExactStore, Parts, bounded, by_directory, by_search, match, pooled
from cloud.matching.unexplained import Counting, Summed, Unexplained, asked
from cloud.pool import Pool, Segment
from device_runtime.bundle import BlobStore, Manifest, RoundSettings, open_manifest
from device_runtime.directory import Directory
from device_runtime.engines import open_engine
from device_runtime.errors import StoreError
from device_runtime.messages import BundleRef
from device_runtime.model import VOCABULARY, Model
from device_runtime.samples import Float32, Int32, Int64, Ragged, SampleBatch
from device_runtime.wire import DirectoryQuery, MatchAnswer, decode_query, encode_answer


@dataclass(frozen=True)
class Place:
    """Folders of a cloud's bundle and pool."""

    bundle: Path
    pool: Path


PREDICTED = "predicted.npy"
"""Beside a pool: what the cloud's model predicts for each of its samples."""
DIRECTORY, PARTS = "directory.npy", "parts.npy"
"""Beside a bundle: what a bundle that matches by directory would hold. Beside a pool: which of its samples lie in each
part, as `cloud.matching.Divided` keeps it."""
RUNNING = "running.npy"
"""Beside a pool: of each sample's contributor, the sum of embeddings up to it, float32 [pool, width]."""
LEAST = 8
"""Samples of a contributor who can be matched as a user."""


def unit_rows(rows: Float32) -> Float32:
    scaled: Float32 = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)).astype(np.float32)
    return scaled


def token(user: int) -> int:
    """A contributor in the pool of an evaluation."""
    return user + 1


def code_digest(files: Sequence[Path]) -> str:
    """Of the text of these files: results are only reused by the code that made them."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _marks(samples: SampleBatch) -> npt.NDArray[np.uint64]:
    """uint64 [n]: hashes of item, label and history; without its order, where the wire does not keep that."""
    history, feature = samples.columns["history"], samples.schema["history"]
    assert isinstance(history, Ragged)
    item, past = np.asarray(samples.columns["item"]), history.dense(feature.bound)
    dense = np.column_stack([item, samples.labels >= 0.5, past if feature.ordered else np.sort(past, 1)])
    factors = np.random.default_rng(0).integers(1, 1 << 63, dense.shape[1], dtype=np.uint64) | np.uint64(1)
    marks: npt.NDArray[np.uint64] = (dense.astype(np.uint64) * factors).sum(1, dtype=np.uint64)
    return marks


class PoolBefore(Pool):
    """What a pool held before a time: the beginning of each segment, which must be ordered by time. Never grows.

    Attributes:
        summed: by what samples count, for `pooled`: all methods of a device ask about the same past.
        answers: frames by query, asker and settings: a user's devices of all seeds ask mostly the same.
    """

    def __init__(self, pool: Pool, before: int) -> None:
        self.summed: dict[Counting, Summed] = {}
        self.answers: dict[tuple[bytes, int, RoundSettings], bytes] = {}
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

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self._segments

    def append(self, *_: object, **__: object) -> int:
        raise StoreError("the past does not grow")


@dataclass(frozen=True)
class Cloud:
    """An opened cloud."""

    place: Place
    manifest: Manifest

    @classmethod
    def open(cls, place: Place) -> Cloud:
        """Raises: TrustError, StoreError: it is damaged."""
        ref = msgspec.json.decode((place.bundle / "bundle.json").read_bytes(), type=BundleRef)
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

    def match(self, body: bytes, pool: PoolBefore, asker: int, settings: RoundSettings) -> bytes:
        """A query's frame -> the answer's, as the server makes it."""
        if (asked_before := pool.answers.get((body, asker, settings))) is not None:
            return asked_before
        query, store = decode_query(body), ExactStore(pool)

        def ask(limit: int) -> bytes:
            asked = replace(query, limit=limit)
            if isinstance(asked, DirectoryQuery):
                directory = self.directory
                assert directory is not None, "a device asked by it"
                candidates, shortfall = by_directory(pool, asked, asker, directory, settings.sharpness, self.parts)
            elif settings.matching == "pooled":
                counting = Counting.by(settings)
                whole = pool.summed.setdefault(counting, Summed(partial(self.residuals, counting=counting)))
                candidates, shortfall = pooled(pool, by_search(store), asked, asker, settings, whole)
            else:
                candidates, shortfall = match(pool, store, asked, asker)
            return self.answer(candidates, query.held.tolist(), shortfall)

        found = pool.answers[body, asker, settings] = bounded(ask, len, query.limit, settings.answer_bytes)
        return found

    @cached_property
    def directory(self) -> Directory | None:
        """None: there were too few samples to make one."""
        path = self.place.bundle.parent / DIRECTORY
        return Directory.of(np.load(path), self.manifest.width) if path.exists() else None

    def parts(self, segment: Segment) -> Parts:
        """Of the beginning of the pool's only segment, as `PoolBefore` has it."""
        return self._parts.before(len(segment))

    @cached_property
    def _parts(self) -> Parts:
        both, k = np.load(self.place.pool / PARTS), len(self.directory.centroids) if self.directory else 0
        return Parts(both[k:], both[:k])

    def residuals(self, segment: Segment, counting: Counting) -> Unexplained:
        """See `pooled`; of the beginning of a segment, as `PoolBefore` has it."""
        rows = slice(segment.base, segment.base + len(segment))
        return Unexplained.of(segment, self._predicted[rows], counting, self._asked[rows])

    @cached_property
    def _asked(self) -> Int64:
        """int64 [pool]: in the order of time, the beginning of a segment knows all that is asked of it."""
        [segment] = self.pool.segments
        return asked(segment)

    @cached_property
    def _predicted(self) -> Float32:
        """float32 [pool]: the cloud model's probabilities."""
        found: Float32 = np.load(self.place.pool / PREDICTED, mmap_mode="r")
        return found

    def answer(self, candidates: SampleBatch, held: Sequence[int], shortfall: str = "") -> bytes:
        """The answer's frame; samples of one contributor are brought together, for that is shorter."""
        history = candidates.columns["history"]
        assert isinstance(history, Ragged)
        candidates = candidates.take(np.argsort(history.starts, kind="stable"))
        rows = self.encoder.rows(candidates.ids(VOCABULARY), np.array(held, np.int32))
        return encode_answer(MatchAnswer(candidates, {VOCABULARY: rows} if len(rows.ids) else {}, shortfall))

    @cached_property
    def _origins(self) -> dict[int, tuple[int, int]]:
        """A sample's content -> (token, timestamp)."""
        found: dict[int, tuple[int, int]] = {}
        for segment in self.pool.segments:
            marks = _marks(segment.samples).tolist()
            found |= zip(
                marks, zip(segment.contributors.tolist(), segment.timestamps.tolist(), strict=True), strict=True
            )
        return found

    def origins(self, candidates: SampleBatch) -> tuple[Int32, Int64]:
        """(users int32 [n], timestamps int64 [n]) of samples of the pool, which themselves do not say: for judging a
        filter from outside. Right as long as no two contributors have the same item, label and history."""
        known = [self._origins[mark] for mark in _marks(candidates).tolist()]
        users = np.array([one - token(0) for one, _ in known], np.int32)
        return users, np.array([time for _, time in known], np.int64)

    def answer_with(self, pool: PoolBefore, positions: Int64, held: Sequence[int]) -> bytes:
        """An answer's frame that holds these samples of the pool."""
        return self.answer(pool.gather(np.sort(positions)), held)

    def contributors(self, pool: PoolBefore, asker: int) -> list[Int64]:
        """Positions of everybody else's samples, one ascending array a contributor; those who have too few do not
        count."""
        end, found = len(pool), []
        for one, positions in self._everybody.items():
            if one != asker and len(before := positions[: np.searchsorted(positions, end)]) >= LEAST:
                found.append(before)
        return found

    @cached_property
    def _everybody(self) -> dict[int, Int64]:
        """Token -> its positions in the whole pool, ascending."""
        [segment] = self.pool.segments
        tokens = np.asarray(segment.contributors)
        order = np.argsort(tokens, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(tokens[order])) + 1)
        return {int(tokens[part[0]]): part for part in parts if len(part)}

    def means(self, groups: Sequence[Int64]) -> Float32:
        """float32 [groups, width]: the mean embedding of each contributor, as `contributors` has them, unit rows."""
        return unit_rows(self._running[[group[-1] for group in groups]])

    @cached_property
    def _running(self) -> Float32:
        """float32 [pool, width]: of each sample's contributor, the sum of embeddings up to that sample."""
        found: Float32 = np.load(self.place.pool / RUNNING, mmap_mode="r")
        return found

    def others(self, pool: PoolBefore, asker: int) -> Int64:
        """Positions of everybody else's samples."""
        found = [np.flatnonzero(segment.contributors != np.uint64(asker)) + segment.base for segment in pool.segments]
        return np.concatenate(found) if found else np.zeros(0, np.int64)
