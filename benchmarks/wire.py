"""How many bytes candidates and weight updates take on the wire, beside general formats.

The candidates are those that a server's matching really gives for a user of the example data, histories of 50. Every
format is given the same content: an item, a label (a whole number of 1/255 where it is soft) and a history as a
multiset, ascending; weights as int8 rows with a scale. Bytes are per candidate (or per moved row), all overhead
included. Times are per item, in microseconds, medians of interleaved runs; general formats start from and end with
Python objects, ours with arrays that a round can use.

payloads:
  candidates                  pooled, as matched; the rows of their items are not in it
  candidates + rows           the same with the rows of their items, for a device that holds no shard
  candidates + lacking rows   the same for a device that holds the shards of its own items, as after its first round
  nearest samples             single samples, as `matching = nearest` has them: each with its contributor's history
  nearest samples of 30       as many of only those 30 contributors who match best: more of them share a history
  weight update               the rows that fine-tuning on the user's samples moved
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks import plot, result
from benchmarks.codecs import Records, others
from benchmarks.prepared import Prepared, engines_here, prepared
from cloud.home import ServerHome
from cloud.http.services import Services
from cloud.matching import by_profiles, match, pooled
from device_runtime import personalize
from device_runtime.engines import open_engine
from device_runtime.model import VOCABULARY, Model
from device_runtime.query import centroids, profile
from device_runtime.samples import Int64, Ragged, SampleBatch
from device_runtime.stream import samples
from device_runtime.tables import shard_of
from device_runtime.wire import (
    LABEL_STEPS,
    MatchAnswer,
    MatchQuery,
    Rows,
    WeightUpdate,
    decode_answer,
    decode_update,
    encode_answer,
    encode_update,
)

DESCRIPTION = __doc__ or ""
_FEW = 30
_OURS = "CoDA"
_COLUMNS = {"payload": "", "codec": "", "items": "d", "bytes_per_item": ".1f", "encode_us": ".2f", "decode_us": ".2f"}


@dataclass(frozen=True)
class Payload:
    """items: candidates, or rows. encode, decode: make and read our frame. records: the same for other formats."""

    name: str
    items: int
    encode: Callable[[], bytes]
    decode: Callable[[bytes], object]
    records: Records


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--local", type=int, default=100, metavar="N", help="samples of the user (%(default)s)")
    parser.add_argument("--candidates", type=int, default=500, metavar="N", help="(%(default)s)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the prepared server here, and use it again")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the bytes as SVG")


def run(args: argparse.Namespace) -> int:
    started = result.now()
    engines = engines_here(("onnx",), _say)
    with prepared(args.work, engines, _say) as made, ServerHome(made.home) as home:
        payloads = _payloads(made, Services.of(home), args.local, args.candidates)
        rows = [row for payload in payloads for row in measure(payload, 3 if args.quick else 15)]
    print(f"{args.local} local samples, {args.candidates} candidates; bytes and microseconds per item")
    print(result.table(rows, _COLUMNS))
    result.write(args.json, "bench wire", started, rows, local=args.local, candidates=args.candidates)
    if args.plot:
        sizes = {str(row["codec"]): float(str(row["bytes_per_item"])) for row in rows if row["payload"] == "candidates"}
        plot.write(args.plot, plot.bars("Bytes per candidate", sizes, ".1f"))
    return 0


def measure(payload: Payload, calls: int) -> list[dict[str, object]]:
    """A row for each codec."""
    codecs = others(payload.records[0])
    runs: dict[str, tuple[Callable[[], bytes], Callable[[bytes], object]]] = {_OURS: (payload.encode, payload.decode)}
    runs |= {codec.name: (partial(codec.encode, payload.records), codec.decode) for codec in codecs}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    sizes = {}
    for _ in range(calls + 1):
        for name, (encode, decode) in runs.items():
            began = time.perf_counter()
            data = encode()
            between = time.perf_counter()
            decode(data)
            taken[name].append((between - began, time.perf_counter() - between))
            sizes[name] = len(data)
    return [
        {
            "payload": payload.name,
            "codec": name,
            "items": payload.items,
            "bytes_per_item": sizes[name] / payload.items,
            "encode_us": 1e6 * statistics.median(t[0] for t in taken[name][1:]) / payload.items,
            "decode_us": 1e6 * statistics.median(t[1] for t in taken[name][1:]) / payload.items,
        }
        for name in runs
    ]


def _payloads(made: Prepared, services: Services, local: int, candidates: int) -> list[Payload]:
    manifest, encoder = services.manifest, services.encoder
    mine = samples(made.events.take(np.arange(local)), manifest.schema)
    train, _ = personalize.split(local, manifest.settings.holdout)
    rng = np.random.default_rng(0)
    embedded, none, settings = encoder.encode(mine), np.zeros(0, np.int32), manifest.settings
    query = centroids(embedded[: len(train)], settings.centroids, rng)
    nearest, _ = match(services.pool, services.store, MatchQuery(manifest.encoder, query, candidates, none), 0)
    asked = MatchQuery(manifest.encoder, profile(embedded, manifest.filter_from), candidates, none)
    known = services.served.knowledge
    found, _ = pooled(services.pool, by_profiles(known), asked, 0, settings, known.whole)
    few = services.pool.gather(_of_few(services, query, candidates))
    shards = len(manifest.tables[VOCABULARY].shards)
    keys = [made.dataset.items[int(i)] for i in mine.ids(VOCABULARY)]
    held = np.array(sorted({shard_of(key, shards) for key in keys}), np.int32)
    return [
        _answer("candidates", found, None),
        _answer("candidates + rows", found, encoder.rows(found.ids(VOCABULARY), none)),
        _answer("candidates + lacking rows", found, encoder.rows(found.ids(VOCABULARY), held)),
        _answer("nearest samples", nearest, None),
        _answer(f"nearest samples of {_FEW}", few, None),
        _update(Model.open(manifest, open_engine("onnx"), services.blobs), mine.take(train), rng),
    ]


def _of_few(services: Services, query: np.ndarray[Any, Any], count: int) -> Int64:
    """Positions of as many samples, all of those few contributors whose best ones are nearest to the query."""
    segments = services.pool.segments
    tokens = np.concatenate([segment.contributors for segment in segments])
    nearness = np.concatenate([(segment.embeddings @ query.T).max(1) for segment in segments])
    names, owner = np.unique(tokens, return_inverse=True)
    share = count // _FEW + 1
    order = np.lexsort((-nearness, owner))
    starts = np.searchsorted(owner[order], np.arange(len(names)))
    counts = np.bincount(owner)
    last_taken = order[np.minimum(starts + share, starts + counts) - 1]
    reach = np.where(counts >= share, nearness[last_taken], -np.inf)
    among = np.flatnonzero(np.isin(owner, np.argsort(-reach)[:_FEW]))
    picked: Int64 = np.sort(among[np.argsort(-nearness[among])[:count]])
    return picked


def _answer(name: str, batch: SampleBatch, rows: Rows | None) -> Payload:
    answer = MatchAnswer(batch, {VOCABULARY: rows} if rows is not None and len(rows.ids) else {})
    history = batch.columns["history"]
    assert isinstance(history, Ragged)
    cut = history.newest(batch.schema["history"].bound)
    items = np.asarray(batch.columns["item"]).tolist()
    hard = bool(np.isin(batch.labels, (0, 1)).all())
    labels = np.rint(batch.labels * (1 if hard else LABEL_STEPS)).astype(int).tolist()
    records: list[dict[str, Any]] = [
        {"item": item, "label": label, "history": sorted(cut.row(i).tolist())}
        for i, (item, label) in enumerate(zip(items, labels, strict=True))
    ]
    if rows is not None and len(rows.ids):
        # in other formats a record each, of the same fields: half-precision numbers as the integers of their bits
        flat = [tensor.reshape(len(rows.ids), -1) for tensor in rows.tensors.values()]
        whole = [part.view(np.int16) if part.dtype == np.float16 else part for part in flat]
        numbers = np.concatenate([part.astype(np.int32) for part in whole], 1).tolist()
        records += [{"item": i, "label": 0, "history": row} for i, row in zip(rows.ids.tolist(), numbers, strict=True)]
    return Payload(
        name, len(batch), partial(encode_answer, answer), lambda data: decode_answer(data, batch.schema), records
    )


def _update(model: Model, local: SampleBatch, rng: np.random.Generator) -> Payload:
    table = model.table(local.ids(VOCABULARY), model.base)
    # without candidates nothing would move: rows of the user's own items are put back
    settings = msgspec.structs.replace(model.manifest.settings, freeze_histories=False)
    tuned = personalize.tune(model, model.base, table, local, None, settings, rng).weights
    assert tuned.rows is not None
    moved = {
        name: rows.astype(np.float32) - table.tensors[name][table.local(tuned.rows.ids)].astype(np.float32)
        for name, rows in tuned.rows.tensors.items()
    }
    update = WeightUpdate(model.manifest.encoder, {}, {VOCABULARY: Rows(tuned.rows.ids, moved)})
    sent = decode_update(encode_update(update)).rows[VOCABULARY]
    records = []
    for at, item in enumerate(sent.ids.tolist()):
        record: dict[str, Any] = {"item": item}
        for number, tensor in enumerate(sent.tensors.values()):
            scale = float(np.abs(tensor[at]).max() / 127) or 1.0
            record |= {f"scale{number}": scale, f"steps{number}": np.rint(tensor[at] / scale).astype(int).tolist()}
        records.append(record)
    return Payload("weight update", len(sent.ids), partial(encode_update, update), decode_update, records)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
