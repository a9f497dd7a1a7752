"""Stores that search the same vectors, each in processes of its own: one builds, one opens what was built and searches.

The second process holds the queries and the store, nothing else, so what its resident memory grows by is what a server
would pay: mapped files count as far as they were touched.
"""

from __future__ import annotations

import importlib
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.matching_data import CENTROIDS, PER_CONTRIBUTOR
from device_runtime.samples import Feature, Float32, Ragged, SampleBatch, Schema

Ids = npt.NDArray[np.integer[Any]]
RECALL = 0.95
_PASSES = 3
_CHUNK = 250_000
_SCHEMA = Schema((Feature("item", "id", "item"), Feature("history", "ids", "item", 50)))


class Store(ABC):
    """One way to search. efforts: settings to try, from quick to thorough, until recall is reached; None = its own."""

    efforts: Sequence[int | None] = (None,)

    @abstractmethod
    def build(self, vectors: Float32, folder: Path) -> None: ...

    @abstractmethod
    def open(self, folder: Path, dim: int) -> None: ...

    @abstractmethod
    def search(self, queries: Float32, k: int, effort: int | None) -> Any:
        """What `ids` makes vectors' numbers of."""

    def ids(self, found: Any) -> Ids:
        return np.asarray(found)


class Coda(Store):
    """The pool with labels, items and histories of up to 50, and FAISS under it as `coda serve` has it."""

    codes: Any = "sq8"

    def build(self, vectors: Float32, folder: Path) -> None:
        from cloud.matching import FaissStore
        from cloud.pool import Pool

        pool = Pool(folder, _SCHEMA, vectors.shape[1])
        began = time.perf_counter()  # waiting for the disk counts
        for start in range(0, len(vectors), _CHUNK):
            part = np.asarray(vectors[start : start + _CHUNK])
            number = np.arange(start, start + len(part), dtype=np.int32)
            pool.append(
                _samples(number), number.astype(np.int64), (number // PER_CONTRIBUTOR + 1).astype(np.uint64), part
            )
        (folder / "append_s").write_text(str(time.perf_counter() - began))
        pool.compact(full=True)
        FaissStore(pool, self.codes).wait()

    def open(self, folder: Path, dim: int) -> None:
        from cloud.matching import FaissStore
        from cloud.pool import Pool

        self._pool = Pool(folder, _SCHEMA, dim)
        self._store = FaissStore(self._pool, self.codes)
        self._store.wait()

    def search(self, queries: Float32, k: int, effort: int | None) -> Any:
        return self._store.search(queries, k, 0).positions

    def ids(self, found: Any) -> Ids:
        rows = np.concatenate([np.asarray(s.samples.columns["item"]) for s in self._pool.segments])
        bases = np.concatenate([np.arange(s.base, s.base + len(s)) for s in self._pool.segments])
        numbers: Ids = rows[np.searchsorted(bases, found)]
        return numbers


class CodaPq(Coda):
    codes = "pq"


class Exact(Store):
    def build(self, vectors: Float32, folder: Path) -> None:
        np.save(folder / "all.npy", vectors)

    def open(self, folder: Path, dim: int) -> None:
        self._vectors = np.load(folder / "all.npy", mmap_mode="r")

    def search(self, queries: Float32, k: int, effort: int | None) -> Any:
        from benchmarks.matching_data import nearest

        return nearest(self._vectors, queries, k)


class Hnswlib(Store):
    efforts = (200, 250, 300, 400, 600, 900, 1400, 2000)

    def build(self, vectors: Float32, folder: Path) -> None:
        import hnswlib

        index = hnswlib.Index("ip", vectors.shape[1])
        index.init_index(len(vectors), M=16, ef_construction=128, random_seed=0)
        for start in range(0, len(vectors), _CHUNK):
            part = np.asarray(vectors[start : start + _CHUNK])
            index.add_items(part, np.arange(start, start + len(part)), num_threads=1)
        index.save_index(str(folder / "index"))

    def open(self, folder: Path, dim: int) -> None:
        import hnswlib

        self._index = hnswlib.Index("ip", dim)
        self._index.load_index(str(folder / "index"))

    def search(self, queries: Float32, k: int, effort: int | None) -> Any:
        self._index.set_ef(effort)
        return self._index.knn_query(queries, k, num_threads=1)[0]


class Usearch(Store):
    efforts = (64, 128, 200, 250, 300, 400, 600, 900, 1400, 2000)
    kind = "f32"

    def build(self, vectors: Float32, folder: Path) -> None:
        index = self._made(vectors.shape[1])
        for start in range(0, len(vectors), _CHUNK):
            part = np.asarray(vectors[start : start + _CHUNK])
            index.add(np.arange(start, start + len(part)), part, threads=1)
        index.save(str(folder / "index"))

    def open(self, folder: Path, dim: int) -> None:
        self._index = self._made(dim)
        self._index.load(str(folder / "index"))

    def search(self, queries: Float32, k: int, effort: int | None) -> Any:
        self._index.expansion_search = effort
        return self._index.search(queries, k, threads=1).keys

    def _made(self, dim: int) -> Any:
        from usearch.index import Index

        return Index(ndim=dim, metric="ip", dtype=self.kind, connectivity=16, expansion_add=128)


class UsearchI8(Usearch):
    kind = "i8"

    def _made(self, dim: int) -> Any:
        from usearch.index import Index

        return Index(ndim=dim, metric="cos", dtype=self.kind, connectivity=16, expansion_add=128)


class MilvusLite(Store):
    efforts = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

    def build(self, vectors: Float32, folder: Path) -> None:
        from pymilvus import DataType, MilvusClient

        client = MilvusClient(uri=str(folder / "milvus.db"))
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("v", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
        index = client.prepare_index_params()
        lists = int(4 * np.sqrt(len(vectors)))
        index.add_index("v", index_type="IVF_SQ8", metric_type="IP", params={"nlist": lists})
        client.create_collection("v", schema=schema, index_params=index)
        for start in range(0, len(vectors), 10_000):
            part = np.asarray(vectors[start : start + 10_000])
            client.insert("v", [{"id": start + i, "v": v} for i, v in enumerate(part)])
        client.flush("v")
        client.load_collection("v")
        client.search("v", data=[np.asarray(vectors[0])], limit=1)
        client.close()

    def open(self, folder: Path, dim: int) -> None:
        from pymilvus import MilvusClient

        self._client = MilvusClient(uri=str(folder / "milvus.db"))
        self._client.load_collection("v")

    def search(self, queries: Float32, k: int, effort: int | None) -> Any:
        params = {"metric_type": "IP", "params": {"nprobe": effort}}
        return self._client.search("v", data=list(queries), limit=k, search_params=params, output_fields=["id"])

    def ids(self, found: Any) -> Ids:
        most = max(len(row) for row in found)
        rows = [[hit["id"] for hit in row] + [-1] * (most - len(row)) for row in found]
        return np.array(rows, np.int64)


STORES: dict[str, tuple[type[Store], str]] = {
    "coda": (Coda, "cloud.matching"),
    "coda-pq": (CodaPq, "cloud.matching"),
    "hnswlib": (Hnswlib, "hnswlib"),
    "usearch": (Usearch, "usearch"),
    "usearch-i8": (UsearchI8, "usearch"),
    "milvus-lite": (MilvusLite, "milvus_lite"),
    "exact": (Exact, "numpy"),
}
"""name: (class, the module that it needs)"""


def _samples(number: npt.NDArray[np.int32]) -> SampleBatch:
    """Samples whose histories are what their contributor had before, up to 50, as views of one array."""
    within = number % PER_CONTRIBUTOR
    lengths = np.minimum(within, 50).astype(np.int32)
    starts = (np.arange(len(number)) - lengths).clip(0).astype(np.int32)
    history = Ragged(number, starts, np.minimum(lengths, np.arange(len(number))).astype(np.int32))
    return SampleBatch(_SCHEMA, {"item": number, "history": history}, (number % 2).astype(np.float32))


def _resident() -> int:
    """Bytes, mapped files included."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def build(name: str, data: Path, folder: Path) -> dict[str, object]:
    vectors = np.load(data / "vectors.npy", mmap_mode="r")
    began = time.process_time()
    STORES[name][0]().build(vectors, folder)
    facts: dict[str, object] = {"build_s": time.process_time() - began}
    if (append := folder / "append_s").exists():
        facts["append_per_s"] = len(vectors) / float(append.read_text())
    return facts


def search(name: str, data: Path, folder: Path, seconds: float) -> dict[str, object]:
    """seconds: of CPU, in each pass over the queries, at least."""
    queries = np.load(data / "queries.npy")
    truth = np.load(data / "truth.npy")
    k, dim = truth.shape[1], queries.shape[2]
    store = STORES[name][0]()
    importlib.import_module(STORES[name][1])
    before = _resident()
    began = time.perf_counter()
    store.open(folder, dim)
    facts: dict[str, object] = {"open_s": time.perf_counter() - began}
    sample = range(len(queries))
    effort, recall = None, 0.0
    for effort in store.efforts:
        found = [store.search(queries[device], k, effort) for device in sample]
        if (recall := _recall([store.ids(one) for one in found], truth)) >= RECALL:
            break
    rates = []
    for _ in range(_PASSES):
        done, began = 0, time.process_time()
        while time.process_time() - began < seconds or done < len(queries):
            store.search(queries[done % len(queries)], k, effort)
            done += 1
        rates.append(done * CENTROIDS / (time.process_time() - began))
    return {
        **facts,
        "setting": effort,
        "recall": recall,
        "qps": float(np.median(rates)),
        "memory_bytes": _resident() - before,
        "disk_bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    }


def _recall(found: Sequence[Ids], truth: npt.NDArray[np.int64]) -> float:
    rows = [row for one in found for row in one]
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(rows, truth, strict=True)]))


if __name__ == "__main__":
    what, name, data, folder, out, seconds = sys.argv[1:]
    paths = Path(data), Path(folder)
    facts = build(name, *paths) if what == "build" else search(name, *paths, float(seconds))
    Path(out).write_bytes(msgspec.json.encode(facts))
