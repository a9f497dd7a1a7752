"""Stores by name, as `coda serve --store` takes them."""

from __future__ import annotations

from cloud.matching.exact import ExactStore
from cloud.matching.faiss import FaissStore
from cloud.matching.store import MatchStore
from cloud.pool import Pool
from device_runtime.errors import InputError

STORES = "faiss, faiss:pq, exact, or milvus:URI"


def open_store(spec: str, pool: Pool) -> MatchStore:
    """The store that a word names: see `STORES`.

    Raises:
        InputError: there is none of that name. EngineUnavailable: its library is not installed.
    """
    kind, _, rest = spec.partition(":")
    if spec in ("faiss", "faiss:pq"):
        return FaissStore(pool, "pq" if rest else "sq8")
    if spec == "exact":
        return ExactStore(pool)
    if kind == "milvus" and rest:
        from cloud.matching.milvus import MilvusStore

        return MilvusStore(pool, rest)
    raise InputError(f"no store is called {spec!r}; there are {STORES}")
