"""Search by Milvus: a copy of the pool's vectors in a collection, kept up by a thread of its own.

The pool stays what counts. Segments that the collection does not have yet are searched exactly, and so is everything
while Milvus does not answer; what Milvus answers is checked against the pool before it is returned. Positions are the
primary keys, so a merge of segments uploads its samples again: some log8(n) times in the life of a sample.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from cloud.matching.exact import compare
from cloud.matching.filter import Filter
from cloud.matching.store import Found, merge, searchable
from cloud.pool import Pool, Segment, Snapshot
from device_runtime.errors import EngineUnavailable, StoreError
from device_runtime.samples import Float32

_RETRY_S = 5.0
_SEARCH_S, _UPLOAD_S = 2.0, 60.0
"""How long Milvus may take for a search, and for anything else: a server that hangs is one that is not there."""
_BATCH = 5000
_MOST = 16_384
"""Hits that Milvus gives for a query, at most."""
_log = logging.getLogger(__name__)


class MilvusStore:
    """See `MatchStore`.

    uri: of a standalone server or a cluster (http://host:19530), or a file's name for Milvus Lite, which one process
    alone can have open. A token is taken from MILVUS_TOKEN.

    Raises (from the constructor):
        EngineUnavailable: pymilvus is not installed.
    """

    name = "milvus"

    def __init__(self, pool: Pool, uri: str) -> None:
        try:
            import pymilvus
        except ImportError:
            raise EngineUnavailable("matching by Milvus needs pymilvus; install '.[milvus]'") from None
        self._milvus: Any = pymilvus
        self._pool, self._uri = pool, uri
        self._collection = "coda_" + re.sub(r"\W", "_", pool.folder.name)
        self._ids = {f.name: f"id_{i}" for i, f in enumerate(pool.schema.features) if f.kind == "id"}
        self._client: Any = None
        self._synced: dict[str, object] = {}
        """name -> entry, of segments that are in the collection; what the entry hides since is yet to be deleted."""
        self._down_until = 0.0
        self._changed = threading.Condition()
        self._wanted = self._done = 0
        self._keeper: threading.Thread | None = None

    def search(
        self, queries: Float32, k: int, exclude: int, where: Filter | None = None, within: Snapshot | None = None
    ) -> Found:
        segments = (within or self._pool).segments
        synced = self._synced
        if any(synced.get(segment.name) != segment.entry for segment in segments):
            self._ask()
        held = [segment for segment in segments if segment.name in synced]
        if where is not None:
            for segment in segments:
                where.passes(segment)  # complains of features that the pool lacks
        parts = []
        remote = self._asked(held, queries, k, exclude, where) if held else None
        if remote is None:
            held = []
        else:
            parts.append(remote)
        names = {segment.name for segment in held}
        for segment in segments:
            if segment.name not in names:
                parts.append(compare(segment, queries, k, searchable(segment, exclude, where)))
        return merge(parts, k, len(queries))

    def prepare(self, segment: Segment) -> None:
        """Nothing: the thread that keeps the collection up sees the segment when it is in the pool."""

    def wait(self) -> None:
        """Until the collection has what the pool has now, or Milvus did not answer."""
        asked = self._ask()
        with self._changed:
            self._changed.wait_for(lambda: self._done >= asked)

    def close(self) -> None:
        """Let go of the connection; for Milvus Lite, of its file."""
        if self._client is not None:
            self._client.close()

    # -- asking -------------------------------------------------------------------------------------------------

    def _asked(self, held: list[Segment], queries: Float32, k: int, exclude: int, where: Filter | None) -> Found | None:
        """The best of these segments by Milvus; None if it does not answer, or cannot have found all there is."""
        rows = {segment.name: searchable(segment, exclude, where) for segment in held}
        allowed = sum(len(s) if (r := rows[s.name]) is None else len(r) for s in held)
        wanted = min(k, allowed)
        # what was hidden since the last upload may still come back, and is dropped here
        late = sum(len(segment.hidden) for segment in held if self._synced.get(segment.name) != segment.entry)
        limit = min(wanted + late, _MOST)
        if not wanted or limit < wanted or time.monotonic() < self._down_until:
            return Found(*_nothing(len(queries))) if not wanted else None
        try:
            hits = self._client.search(
                self._collection,
                data=[np.asarray(query, np.float32) for query in queries],
                limit=limit,
                filter=self._expression(held, exclude, where),
                output_fields=["position"],
                search_params={"metric_type": "IP", "params": {"ef": max(2 * limit, 128)}},
                timeout=_SEARCH_S,
            )
        except Exception as error:  # whatever its client makes of a server that went away
            self._failed(error)
            return None
        found = [_checked(row, held, rows, wanted) for row in hits]
        if any(len(positions) < wanted for positions, _ in found):
            return None
        return Found(np.stack([positions for positions, _ in found]), np.stack([value for _, value in found]))

    def _expression(self, held: list[Segment], exclude: int, where: Filter | None) -> str:
        parts = [f"segment in {sorted(_number(segment) for segment in held)}"]
        parts.append(f"contributor != {_signed(exclude)}")
        if where is not None:
            if where.after is not None:
                parts.append(f"timestamp >= {where.after}")
            if where.before is not None:
                parts.append(f"timestamp < {where.before}")
            if where.label_min is not None:
                parts.append(f"label >= {where.label_min!r}")
            if where.label_max is not None:
                parts.append(f"label <= {where.label_max!r}")
            parts += [f"{self._ids[name]} == {wanted}" for name, wanted in where.equals]
        return " and ".join(parts)

    def _failed(self, error: Exception) -> None:
        _log.warning("Milvus at %s does not answer, matching is exact meanwhile: %s", self._uri, error)
        self._down_until = time.monotonic() + _RETRY_S
        self._synced = {}  # when it is back it may have to load its collections, or lack what it had: look again

    # -- keeping up ---------------------------------------------------------------------------------------------

    def _ask(self) -> int:
        with self._changed:
            self._wanted += 1
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep, name="milvus-upload", daemon=True)
                self._keeper.start()
            self._changed.notify_all()
            return self._wanted

    def _keep(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted > self._done)
                asked = self._wanted
            try:
                if time.monotonic() >= self._down_until:
                    self._sync()
            except (OSError, StoreError) as error:
                self._failed(error)
            except Exception as error:  # as above
                self._failed(error)
            with self._changed:
                self._done = asked
                self._changed.notify_all()

    def _sync(self) -> None:
        if self._client is None:
            self._client = self._milvus.MilvusClient(uri=self._uri, token=os.environ.get("MILVUS_TOKEN", ""))
        client, names = self._client, f"{self._collection}_segments"
        with (self._pool.folder / ".milvus").open("ab") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)  # of several workers one uploads, the others find it done
            self._create(names)
            listed = client.query(
                names, filter="segment >= 0", output_fields=["segment"], limit=_MOST, timeout=_UPLOAD_S
            )
            there = {int(row["segment"]) for row in listed}
            segments = self._pool.segments
            current = {_number(segment) for segment in segments}
            for number in sorted(there - current):
                client.delete(names, ids=[number], timeout=_UPLOAD_S)
                client.delete(self._collection, filter=f"segment == {number}", timeout=_UPLOAD_S)
            for segment in segments:
                number = _number(segment)
                if number not in there:
                    # of an upload cut short
                    client.delete(self._collection, filter=f"segment == {number}", timeout=_UPLOAD_S)
                    self._upload(segment)
                    client.insert(names, [{"segment": number, "nothing": [0.0, 1.0]}], timeout=_UPLOAD_S)
                elif self._synced.get(segment.name) != segment.entry and len(segment.hidden):
                    gone = (segment.hidden + segment.base).tolist()
                    for start in range(0, len(gone), _BATCH):
                        client.delete(self._collection, ids=gone[start : start + _BATCH], timeout=_UPLOAD_S)
        self._synced = {segment.name: segment.entry for segment in segments}

    def _create(self, names: str) -> None:
        kinds, client = self._milvus.DataType, self._client
        if not client.has_collection(self._collection):
            schema = self._milvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("position", kinds.INT64, is_primary=True)
            for name in ("segment", "contributor", "timestamp", *self._ids.values()):
                schema.add_field(name, kinds.INT64)
            schema.add_field("label", kinds.FLOAT)
            schema.add_field("embedding", kinds.FLOAT_VECTOR, dim=self._pool.width)
            index = client.prepare_index_params()
            index.add_index("embedding", index_type="HNSW", metric_type="IP", params={"M": 16, "efConstruction": 200})
            client.create_collection(self._collection, schema=schema, index_params=index, consistency_level="Strong")
        if not client.has_collection(names):  # which segments are wholly there; Milvus wants a vector in everything
            schema = self._milvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("segment", kinds.INT64, is_primary=True)
            schema.add_field("nothing", kinds.FLOAT_VECTOR, dim=2)
            index = client.prepare_index_params()
            index.add_index("nothing", index_type="FLAT", metric_type="IP")
            client.create_collection(names, schema=schema, index_params=index, consistency_level="Strong")
        client.load_collection(self._collection, timeout=_UPLOAD_S)
        client.load_collection(names, timeout=_UPLOAD_S)

    def _upload(self, segment: Segment) -> None:
        rows = np.flatnonzero(segment.shown())
        for start in range(0, len(rows), _BATCH):
            at = rows[start : start + _BATCH]
            columns: dict[str, list[Any]] = {
                "position": (at + segment.base).tolist(),
                "segment": [_number(segment)] * len(at),
                "contributor": segment.contributors[at].view(np.int64).tolist(),
                "timestamp": segment.timestamps[at].tolist(),
                "label": segment.samples.labels[at].tolist(),
                "embedding": list(np.asarray(segment.embeddings[at])),
            }
            for name, field in self._ids.items():
                columns[field] = np.asarray(segment.samples.columns[name])[at].tolist()
            self._client.insert(
                self._collection,
                [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
                timeout=_UPLOAD_S,
            )


def _checked(
    row: Any, held: list[Segment], rows: dict[str, npt.NDArray[np.int64] | None], wanted: int
) -> tuple[npt.NDArray[np.int64], Float32]:
    """The best hits that the pool has and may show: (positions, similarities), both [at most wanted]."""
    positions = np.array([hit["position"] for hit in row], np.int64)
    value = np.array([hit["distance"] for hit in row], np.float32)
    good = np.zeros(len(positions), bool)
    for segment in held:
        inside = (positions >= segment.base) & (positions < segment.base + len(segment))
        may = rows[segment.name]
        good |= inside if may is None else inside & np.isin(positions - segment.base, may)
    _, first = np.unique(positions, return_index=True)
    once = np.zeros(len(positions), bool)
    once[first] = True
    at = np.flatnonzero(good & once)[:wanted]
    return positions[at], value[at]


def _nothing(queries: int) -> tuple[npt.NDArray[np.int64], Float32]:
    return np.zeros((queries, 0), np.int64), np.zeros((queries, 0), np.float32)


def _number(segment: Segment) -> int:
    return int(segment.name.rpartition("-")[2])


def _signed(token: int) -> int:
    """A token as Milvus keeps it: its integers have a sign."""
    return int(np.array([token], np.uint64).view(np.int64)[0])
