"""What crosses the network in binary: match queries (of two kinds) and answers, contributions, reports, weight updates.

A frame is `CoDA`, kind, version, flags (bit 0: zstd), eight bytes of BLAKE2b over all the rest, then a msgpack
body whose typed arrays are byte strings (see `packing`). Ids go as positions in a sorted list of the distinct ids
of their vocabulary; histories that share storage are written once, and where the schema says that their order means
nothing, each stretch of them ascending, as gaps. `docs/wire.md` has every byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from device_runtime import directory
from device_runtime.arrays import Scaled, Tensor, array, int32, rescaled, scaled, tensor
from device_runtime.errors import InputError, WireError
from device_runtime.framing import kind_of, seal, unseal
from device_runtime.messages import RoundReport, to_json
from device_runtime.packing import pack, unpack
from device_runtime.samples import Column, Float32, Int32, Int64, Ragged, SampleBatch, Schema

MAX_REPORT = 1 << 20
"""Bytes of a decompressed report, at most."""
LABEL_STEPS = 255
"""Soft labels of pooled candidates are whole numbers of 1/255: a byte each, and finer than their standard error."""
REPORT_DICTIONARY = (
    b'"error":"","auc_before":null,"auc_after":null,"verdict":null,'
    b'["pull","self-test","encode","match","filter","tune","judge","activate","contribute","clean"]executorch too few '
    b"samples failed held-out log loss rose by 0.0, its standard error being 0.0"
    b"held-out log loss changed by -0.0, no evidence of harm (standard error 0.0)"
    b'{"round":"","bundle":1,"engine":"onnx","outcome":"kept","outcome":"activated","local":100,"candidates":500,'
    b'"kept":100,"verdict":{"activate":false,"activate":true,"reason":"","samples":20,"loss_before":0.,"loss_after":0.,'
    b'"auc_before":0.,"auc_after":0.},"phases":{"phase":["pull","encode","match","filter","tune","judge","activate",'
    b'"clean"],"cpu_user_s":[0.0],"cpu_system_s":[0.0],"wall_s":[0.0],"peak_mib":[],"peak_source":["phase","phase",'
    b'"phase","phase","phase","phase","phase","phase"],"bytes_stored":[0,0,0,0,0,0],"bytes_up":[0,0,0,0],'
    b'"bytes_down":[0,0,0,0]},"error":""}'
)
"""What zstd may refer to in reports. Part of the format: it may change with its version only, messages at any time."""

_QUERY, _ANSWER, _CONTRIBUTION, _REPORT, _UPDATE = 1, 2, 3, 4, 5
_DIRECTORY_QUERY = 7


@dataclass(frozen=True)
class MatchQuery:
    """What a device asks the cloud to match. No sample, id or label is in it.

    encoder: digest of the encoder that made the centroids. centroids: float32 [k, width], unit length; each row is sent
    as int8 with a scale. limit: candidates wanted. held: shards of item rows that the device already has; rows of their
    items need not be sent.
    """

    encoder: str
    centroids: Float32
    limit: int
    held: Int32


@dataclass(frozen=True)
class DirectoryQuery:
    """What a device asks the cloud to match by the bundle's directory. No vector is in it, nor a sample, id or label.

    encoder: as in a `MatchQuery`. directory: the `Directory.id` that the weights are of. weights: uint8 [1 to 256], not
    all 0: how much of the device's samples is near each centroid. limit, held: as in a `MatchQuery`.
    """

    encoder: str
    directory: str
    weights: npt.NDArray[np.uint8]
    limit: int
    held: Int32


@dataclass(frozen=True)
class Rows:
    """Rows of the sliced tensors of one vocabulary.

    ids: int32 [m], ascending. tensors: name -> [m, ...], float16 weights or int32 attributes; a weight of integers
    has a `scale:NAME` beside it (`quantized`).
    """

    ids: Int32
    tensors: Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class MatchAnswer:
    """Candidates and the rows that the device lacks to use them.

    rows: by vocabulary. shortfall: why there are fewer candidates than asked for, or "".
    """

    candidates: SampleBatch
    rows: Mapping[str, Rows]
    shortfall: str = ""


@dataclass(frozen=True)
class WeightUpdate:
    """By how much weights moved from a base that the reader has. Rows that did not move are not in it.

    base: names the weights that it is added to. dense: name -> float32 [n], flat. rows: by vocabulary, float32 [m, n].
    Each dense tensor and each row is sent as int8 with a scale, so a number is off by at most 1/254 of the largest
    beside it.
    """

    base: str
    dense: Mapping[str, Float32]
    rows: Mapping[str, Rows]


class _Column(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    name: str
    kind: str
    parts: tuple[bytes, ...]


class _Batch(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    vocabularies: dict[str, bytes]
    columns: list[_Column]
    labels: bytes
    steps: int


class _Query(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    encoder: str
    centroids: Scaled
    limit: int
    held: bytes


class _DirectoryQuery(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    encoder: str
    directory: str
    weights: bytes
    limit: int
    held: bytes


class _Rows(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    ids: bytes
    tensors: dict[str, Tensor]


class _MovedRows(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    ids: bytes
    tensors: dict[str, Scaled]


class _Update(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    base: str
    dense: dict[str, Scaled]
    rows: dict[str, _MovedRows]


class _Answer(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    candidates: _Batch
    rows: dict[str, _Rows]
    shortfall: str


_Body = TypeVar("_Body")


def encode_query(query: MatchQuery) -> bytes:
    body = _Query(query.encoder, scaled(query.centroids), query.limit, pack(query.held))
    return _frame(_QUERY, body)


def encode_directory_query(query: DirectoryQuery) -> bytes:
    """Raises: InputError: the weights are not what they must be."""
    if query.weights.dtype != np.uint8 or query.weights.ndim != 1:
        raise InputError(f"weights of a directory are bytes in a row, not {query.weights.dtype} {query.weights.shape}")
    if wrong := _wrong_weights(query.weights):
        raise InputError(wrong)
    held, weights = pack(query.held), query.weights.tobytes()
    return _frame(_DIRECTORY_QUERY, _DirectoryQuery(query.encoder, query.directory, weights, query.limit, held))


def decode_query(data: bytes) -> MatchQuery | DirectoryQuery:
    """Of either kind. Raises: WireError."""
    if kind_of(data) == _DIRECTORY_QUERY:
        asked = _open(data, _DIRECTORY_QUERY, _DirectoryQuery)
        weights = np.frombuffer(asked.weights, np.uint8)
        if wrong := _wrong_weights(weights):
            raise WireError(wrong)
        held = int32(unpack(asked.held))
        return DirectoryQuery(asked.encoder, asked.directory, weights, _limit(asked.limit), held)
    body = _open(data, _QUERY, _Query)
    centroids = rescaled(body.centroids, "the query's centroids")
    return MatchQuery(body.encoder, centroids, _limit(body.limit), int32(unpack(body.held)))


def _limit(stated: int) -> int:
    if stated < 0:
        raise WireError(f"the query asks for {stated} candidates")
    return stated


def _wrong_weights(weights: npt.NDArray[np.uint8]) -> str:
    """Why no directory has these weights, or ""."""
    if not 0 < len(weights) <= directory.MOST:
        return f"a directory has 1 to {directory.MOST} weights; given {len(weights)}"
    return "" if weights.any() else "the weights of a directory are all 0: the query asks for nothing"


def encode_answer(answer: MatchAnswer) -> bytes:
    rows = {
        name: _Rows(pack(r.ids), {key: tensor(value) for key, value in r.tensors.items()})
        for name, r in answer.rows.items()
    }
    return _frame(_ANSWER, _Answer(_batch(answer.candidates), rows, answer.shortfall))


def decode_answer(data: bytes, schema: Schema) -> MatchAnswer:
    """Raises: WireError."""
    body = _open(data, _ANSWER, _Answer)
    rows = {}
    for name, part in body.rows.items():
        ids = int32(unpack(part.ids))
        tensors = {key: array(value) for key, value in part.tensors.items()}
        for key, value in tensors.items():
            if len(value) != len(ids):
                raise WireError(f"rows of {key!r}: {len(value)} for {len(ids)} ids")
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise WireError(f"rows of {key!r} hold numbers that are not finite")
        rows[name] = Rows(ids, tensors)
    return MatchAnswer(_samples(body.candidates, schema), rows, body.shortfall)


def encode_contribution(samples: SampleBatch) -> bytes:
    return _frame(_CONTRIBUTION, _batch(samples))


def decode_contribution(data: bytes, schema: Schema) -> SampleBatch:
    """Raises: WireError."""
    return _samples(_open(data, _CONTRIBUTION, _Batch), schema)


def encode_report(report: RoundReport) -> bytes:
    """A report's JSON, its phases as columns, their seconds and MiB to four digits: no meter is better than that."""
    plain = msgspec.to_builtins(report)
    rows = plain["phases"]
    plain["phases"] = {name: [_rounded(row[name]) for row in rows] for name in (rows[0] if rows else {})}
    return seal(_REPORT, to_json(plain), REPORT_DICTIONARY)


def decode_report(data: bytes) -> bytes:
    """A report as plain JSON, still to be checked. Raises: WireError."""
    try:
        plain = msgspec.json.decode(unseal(data, _REPORT, MAX_REPORT, REPORT_DICTIONARY), type=dict[str, Any])
        columns = msgspec.convert(plain.get("phases"), dict[str, list[Any]])
        plain["phases"] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return to_json(plain)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:  # also what is not UTF-8
        raise WireError(f"the frame holds no report: {error}") from None


def encode_update(update: WeightUpdate) -> bytes:
    dense = {name: scaled(value.reshape(1, -1)) for name, value in update.dense.items()}
    rows = {
        name: _MovedRows(
            pack(moved.ids), {key: scaled(value.astype(np.float32)) for key, value in moved.tensors.items()}
        )
        for name, moved in update.rows.items()
    }
    return _frame(_UPDATE, _Update(update.base, dense, rows))


def decode_update(data: bytes) -> WeightUpdate:
    """Raises: WireError."""
    body = _open(data, _UPDATE, _Update)
    dense = {name: rescaled(value, f"the update of {name!r}").reshape(-1) for name, value in body.dense.items()}
    rows = {}
    for name, part in body.rows.items():
        ids = int32(unpack(part.ids))
        tensors = {key: rescaled(value, f"the update of {key!r}") for key, value in part.tensors.items()}
        for key, moved in tensors.items():
            if len(moved) != len(ids):
                raise WireError(f"the update of {key!r} has {len(moved)} rows for {len(ids)} ids")
        rows[name] = Rows(ids, tensors)
    return WeightUpdate(body.base, dense, rows)


def _frame(kind: int, body: object) -> bytes:
    return seal(kind, msgspec.msgpack.encode(body))


def _open(data: bytes, kind: int, body: type[_Body]) -> _Body:
    plain = unseal(data, kind)
    try:
        return msgspec.msgpack.decode(plain, type=body)
    except msgspec.DecodeError as error:
        raise WireError(f"the frame's body does not decode: {error}") from None


def _rounded(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _batch(samples: SampleBatch) -> _Batch:
    distinct: dict[str, Int32] = {}
    for name in {f.vocabulary for f in samples.schema.features if f.kind != "float"}:
        found: list[npt.NDArray[np.generic]] = []
        for feature in samples.schema.features:
            if feature.vocabulary == name:
                column = samples.columns[feature.name]
                found.append(column.newest(feature.bound).compact().values if isinstance(column, Ragged) else column)
        distinct[name] = np.unique(np.concatenate(found)).astype(np.int32)

    columns = []
    for feature in samples.schema.features:
        column = samples.columns[feature.name]
        if isinstance(column, Ragged):
            cut = column.newest(feature.bound).compact()
            at = np.searchsorted(distinct[feature.vocabulary], cut.values)
            if not feature.ordered:
                at = _gaps(at, cut.starts, cut.lengths)
            parts: tuple[bytes, ...] = (pack(at), pack(cut.starts), pack(cut.lengths))
        elif feature.kind == "id":
            parts = (pack(np.searchsorted(distinct[feature.vocabulary], column)),)
        else:
            parts = (np.asarray(column, "<f4").tobytes(),)
        columns.append(_Column(feature.name, feature.kind, parts))
    labels, steps = _packed_labels(samples.labels)
    return _Batch({k: pack(v) for k, v in sorted(distinct.items())}, columns, labels, steps)


def _packed_labels(labels: Float32) -> tuple[bytes, int]:
    """(bytes, steps): whole numbers of 1 / steps where that loses nothing, else float32 numbers and 0."""
    for steps in (1, LABEL_STEPS):
        if (in_steps(labels, steps) == labels).all():
            return pack(np.rint(labels * np.float32(steps)).astype(np.int64)), steps
    return labels.astype("<f4").tobytes(), 0


def in_steps(labels: Float32, steps: int = LABEL_STEPS) -> Float32:
    """Labels rounded to whole numbers of 1 / steps."""
    return _unpacked(np.rint(labels * np.float32(steps)), steps)


def _unpacked(numbers: npt.NDArray[np.generic], steps: int) -> Float32:
    found: Float32 = numbers.astype(np.float32) / np.float32(steps)
    return found


def _samples(body: _Batch, schema: Schema) -> SampleBatch:
    vocabularies = {name: int32(unpack(data)) for name, data in body.vocabularies.items()}
    columns: dict[str, Column] = {}
    try:
        if body.steps < 0:
            raise WireError(f"labels cannot be in steps of 1/{body.steps}")
        labels = _unpacked(unpack(body.labels), body.steps) if body.steps else np.frombuffer(body.labels, "<f4")
        for column in body.columns:
            feature = schema[column.name]
            if feature.kind != column.kind:
                raise WireError(f"column {column.name!r} is of kind {column.kind!r}; expected {feature.kind!r}")
            if column.kind == "float":
                flat = np.frombuffer(column.parts[0], "<f4").astype(np.float32)
                columns[column.name] = flat.reshape(len(labels), feature.bound)
                continue
            ids = vocabularies[feature.vocabulary]
            at = unpack(column.parts[0])
            if column.kind == "ids" and not feature.ordered:
                at = _positions(at, unpack(column.parts[1]), unpack(column.parts[2]))
            if len(at) and not (at.min() >= 0 and at.max() < len(ids)):
                raise WireError(f"column {column.name!r} points outside its {len(ids)} ids")
            if column.kind == "id":
                columns[column.name] = ids[at]
            else:
                starts, lengths = unpack(column.parts[1]), unpack(column.parts[2])
                columns[column.name] = Ragged(ids[at], int32(starts), int32(lengths))
        return SampleBatch(schema, columns, labels.astype(np.float32))
    except KeyError as missing:
        raise WireError(f"the frame speaks of {missing}, which the schema does not know") from None
    except (IndexError, ValueError) as error:
        raise WireError(f"a column's bytes do not fit its kind: {error}") from None
    except InputError as error:
        raise WireError(f"the frame holds samples that cannot be: {error}") from None


def _gaps(at: Int64, starts: Int32, lengths: Int32) -> Int64:
    """Positions as the gaps between them. Between two borders of rows all orders mean the same, and ascending has the
    smallest gaps; a stretch begins with its least position."""
    stretch = _stretches(len(at), starts.astype(np.int64), lengths.astype(np.int64))
    # one sort of whole numbers, a third of the time of one by two keys: stretches are ascending already
    offset = stretch * (int(at.max(initial=0)) + 1)
    ascending = np.sort(offset + at) - offset
    gaps = np.diff(ascending, prepend=0) - 1
    opens = np.diff(stretch, prepend=-1) > 0
    gaps[opens] = ascending[opens]
    return gaps


def _positions(gaps: Int64, starts: Int64, lengths: Int64) -> Int64:
    """What `_gaps` was given, each stretch ascending. Raises: WireError: a row points outside."""
    if len(starts) != len(lengths):
        raise WireError(f"a ragged column has {len(starts)} starts but {len(lengths)} lengths")
    if len(starts) and not (
        starts.min() >= 0
        and lengths.min() >= 0
        and max(starts.max(), lengths.max()) <= len(gaps)
        and (starts + lengths).max() <= len(gaps)
    ):
        raise WireError(f"a ragged column points outside its {len(gaps)} values")
    stretch = _stretches(len(gaps), starts, lengths)
    opens = np.flatnonzero(np.diff(stretch, prepend=-1) > 0)
    steps = gaps + 1
    steps[opens] -= 1
    sums = np.cumsum(steps)
    before = np.concatenate((np.zeros(1, np.int64), sums))[opens]
    found: Int64 = sums - np.repeat(before, np.diff(np.append(opens, len(gaps))))
    return found


def _stretches(count: int, starts: Int64, lengths: Int64) -> Int64:
    """int64 [count]: which stretch each value lies in; a new one begins wherever a row begins or ends."""
    borders = np.zeros(count + 1, np.int64)
    borders[starts] = 1
    borders[starts + lengths] = 1
    borders[0] = 0
    return np.cumsum(borders[:count])
