"""A FAISS index of one segment: built once, measured against exact search, kept beside the segment, memory-mapped.

Vectors go into inverted lists as 8-bit scalars (`sq8`), or as product codes of half a byte a dimension (`pq`) whose
best are compared again by the vectors on disk. How many lists a search must look into differs from data to data by a
factor of a hundred, so it is not guessed but measured when the index is built: on vectors of the segment and on means
of a few, which is what devices ask with.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import faiss
import msgspec
import numpy as np
import numpy.typing as npt

from cloud.matching.exact import compare
from cloud.pool import Segment
from device_runtime.bundle import write_atomically
from device_runtime.samples import Float32, Int64

FLAT_UP_TO = 50_000
"""Samples in a segment up to which comparing with all of them is fast enough."""
Codes = Literal["sq8", "pq"]
_FORMAT = 1
_TARGET = 0.968
"""Recall that probing is set for: more than the 0.95 that is promised, since queries that this segment has not seen
find some 0.01 less (`coda bench matching`), and for the standard error of so many queries."""
_DEPTHS = (50, 200, 2000)
_QUERIES = 400
_NEARLY_ALL = 0.9995
"""Where lists hold so much of what is nearest and recall is too low still, it is the codes that lose it."""
_ROUNDING = 1e-6
_CHUNK = 1 << 17
_TRAINED_ON = 40
"""Vectors a list that the lists' centres are found with."""
_MOST_LISTS = 1 << 14

library: Any = faiss  # the wheel's stubs know neither keyword constructors nor that factories give derived classes


class IndexMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What lies beside the index's file. sha256: of that. rerank: so many times k are fetched and compared again by
    their vectors; 1 = not. probes: ascending (k, lists to look into for the k nearest)."""

    format: int
    codes: Codes
    samples: int
    sha256: str
    rerank: int
    probes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class SegmentIndex:
    index: Any
    meta: IndexMeta

    def search(self, segment: Segment, queries: Float32, k: int, deep: float, selector: Any) -> tuple[Float32, Int64]:
        """(similarities, rows of the segment or -1), both [q, k]. deep: k, or more where many of the nearest do not
        count; lists are looked into as for so many. selector: FAISS's; None = all rows count."""
        probes = min(self._probes(deep), self.index.nlist)
        params = library.SearchParametersIVF(sel=selector, nprobe=probes)
        wanted = min(k * self.meta.rerank, self.index.ntotal)
        similarity, at = self.index.search(queries, wanted, params=params)
        if self.meta.rerank > 1:
            similarity, at = _compared_again(segment, queries, at, k)
        return similarity, at

    def _probes(self, deep: float) -> int:
        for k, probes in self.meta.probes:
            if deep <= k:
                return probes
        k, probes = self.meta.probes[-1]
        return int(np.ceil(probes * deep / k))


def build(segment: Segment, codes: Codes = "sq8") -> SegmentIndex:
    """Build the index of a segment on disk, and leave it there; if it is there or another process is at it, take that
    one. Memory: some two bytes a dimension and sample.

    Raises:
        FileNotFoundError: the segment has been compacted away. OSError, StoreError: the disk refuses.
    """
    assert segment.folder is not None
    with (segment.folder / f".index-{codes}").open("ab") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if (found := load(segment, codes)) is not None:
            return found
        index = _trained(segment, codes)
        rerank, probes = _measured(index, segment, codes)
        path = _path(segment.folder, codes)
        new = path.with_suffix(".new")
        faiss.write_index(index, str(new))
        with new.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        new.replace(path)
        meta = IndexMeta(_FORMAT, codes, len(segment), digest, rerank, probes)
        write_atomically(path.with_suffix(".json"), msgspec.json.encode(meta))
        return SegmentIndex(_mapped(path), meta)


def load(segment: Segment, codes: Codes) -> SegmentIndex | None:
    """The index that lies beside a segment, mapped; None if there is none, or it is damaged."""
    assert segment.folder is not None
    path = _path(segment.folder, codes)
    try:
        meta = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=IndexMeta)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, msgspec.DecodeError):
        return None
    if (meta.format, meta.codes, meta.samples, meta.sha256) != (_FORMAT, codes, len(segment), digest):
        return None
    return SegmentIndex(_mapped(path), meta)


def _path(folder: Path, codes: Codes) -> Path:
    return folder / f"index-{codes}.faiss"


def _mapped(path: Path) -> Any:
    return library.read_index(str(path), faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY)


def _trained(segment: Segment, codes: Codes) -> Any:
    count, width = segment.embeddings.shape
    lists = min(int(4 * np.sqrt(count)), _MOST_LISTS)
    # "np": else it spends half a minute on an order of codes that only Hamming distances use
    kind = f"IVF{lists},SQ8" if codes == "sq8" else f"IVF{lists},PQ{_parts(width)}np"
    index = library.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
    chosen = np.random.default_rng(0).permutation(count)[: _TRAINED_ON * lists]
    index.train(np.ascontiguousarray(segment.embeddings[np.sort(chosen)]))
    for start in range(0, count, _CHUNK):
        index.add(np.ascontiguousarray(segment.embeddings[start : start + _CHUNK]))
    return index


def _parts(width: int) -> int:
    """Of a byte each: two dimensions a part, or what divides the width."""
    return next(parts for parts in range(max(width // 2, 1), 0, -1) if width % parts == 0)


def _measured(index: Any, segment: Segment, codes: Codes) -> tuple[int, tuple[tuple[int, int], ...]]:
    """(rerank, probes), see `IndexMeta`. Compares with all samples once, whatever k, and never searches all lists."""
    queries = _asked(segment)
    depths = [k for k in _DEPTHS if k <= len(segment) // 20] or [_DEPTHS[0]]
    truth = compare(segment, queries, depths[-1], None)
    place = _places(index, queries, truth.positions - segment.base)
    for rerank in (1, 2, 4, 8):
        trial = SegmentIndex(index, IndexMeta(_FORMAT, codes, len(segment), "", rerank, ((1, index.nlist),)))
        found = [_enough(trial, segment, queries, truth.similarities[:, :k], place[:, :k]) for k in depths]
        if all(reached for _, reached in found):
            break
    return rerank, tuple((k, lists) for k, (lists, _) in zip(depths, found, strict=True))


def _places(index: Any, queries: Float32, rows: Int64) -> Int64:
    """int64 [q, k]: how many lists a query looks into before the one that holds each of these rows."""
    held_by = np.empty(index.ntotal, np.int64)
    for number in range(index.nlist):
        if size := index.invlists.list_size(number):
            held_by[library.rev_swig_ptr(index.invlists.get_ids(number), size)] = number
    order = index.quantizer.search(queries, index.nlist)[1]
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.broadcast_to(np.arange(index.nlist), order.shape), 1)
    return np.take_along_axis(place, held_by[rows], 1)


def _enough(trial: SegmentIndex, segment: Segment, queries: Float32, truth: Float32, place: Int64) -> tuple[int, bool]:
    """(lists to look into, whether they give the recall that is aimed at) for as many neighbours as `truth` has.

    truth: similarities of the nearest, float32 [q, k], best first; place: the lists before each one's, int64 [q, k].
    What the lists hold of the nearest is known for any number of them, so searching must only tell what codes lose.
    """
    k, lists = truth.shape[1], trial.index.nlist
    held = [np.cumsum(np.bincount(half.ravel(), minlength=lists)) / half.size for half in np.split(place, 2)]
    held_by = np.minimum(*held)
    wanted, probes = _TARGET, 0
    while True:
        least = int(np.searchsorted(held_by, min(wanted, _NEARLY_ALL))) + 1
        probes = min(max(least, probes + max(1, probes // 20)), lists)
        recall = _recall(trial, segment, queries, truth, k, probes)
        if recall >= _TARGET:
            return probes, True
        if held_by[probes - 1] >= _NEARLY_ALL:
            return probes, False
        wanted = _TARGET + max(float(held_by[probes - 1]) - recall, 0.0)


def _asked(segment: Segment) -> Float32:
    """Vectors such as devices ask with: half of them samples, half means of a dozen of one contributor that lie
    together, as the centres of a device's samples do. float32 [q, width]"""
    rng = np.random.default_rng(1)
    asked = segment.embeddings[rng.integers(0, len(segment), _QUERIES)]
    for i in range(_QUERIES // 2, _QUERIES):
        owner = int(segment.contributors[rng.integers(len(segment))])
        theirs = segment.embeddings[segment.owners.rows_of(owner)[:1000]]
        nearest = np.argsort(-(theirs @ theirs[rng.integers(len(theirs))]), kind="stable")
        asked[i] = theirs[nearest[:12]].mean(0)
    norms = np.maximum(np.linalg.norm(asked, axis=1, keepdims=True), 1e-6)
    return np.ascontiguousarray(asked / norms, np.float32)


def _recall(trial: SegmentIndex, segment: Segment, queries: Float32, truth: Float32, k: int, probes: int) -> float:
    """Of samples, or of centres, whichever is lower; a sample as near as the last of the nearest is one of them."""
    meta = msgspec.structs.replace(trial.meta, probes=((k, probes),))
    at = SegmentIndex(trial.index, meta).search(segment, queries, k, k, None)[1]
    each = [
        np.mean((segment.embeddings[rows] @ query >= near[-1] - _ROUNDING) & (rows >= 0))
        for rows, query, near in zip(at, queries, truth, strict=True)
    ]
    return float(min(np.mean(each[: _QUERIES // 2]), np.mean(each[_QUERIES // 2 :])))


def _compared_again(
    segment: Segment, queries: Float32, at: npt.NDArray[np.int64], k: int
) -> tuple[Float32, npt.NDArray[np.int64]]:
    """The best k of what was fetched, by the vectors themselves."""
    exact = np.empty(at.shape, np.float32)
    for number, rows in enumerate(at):
        exact[number] = segment.embeddings[rows] @ queries[number]  # -1 reads the last row, to no end
    exact[at < 0] = -np.inf
    best = np.argsort(-exact, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(exact, best, 1), np.take_along_axis(at, best, 1)
