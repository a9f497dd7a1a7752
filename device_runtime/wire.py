"""What crosses the network in binary: match queries, match answers, contributions.

A frame is `CoDA`, kind, version, flags (bit 0: zstd), eight bytes of BLAKE2b over all the rest, then a msgpack
body whose typed arrays are byte strings (see `packing`). Ids go as positions in a sorted list of the distinct ids
of their vocabulary; histories that share storage are written once. `docs/wire.md` has every byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import zstandard

from device_runtime.errors import InputError, WireError
from device_runtime.packing import pack, unpack
from device_runtime.samples import Column, Float32, Int32, Ragged, SampleBatch, Schema

MAGIC = b"CoDA"
VERSION = 1
MAX_BODY = 64 << 20
"""Bytes of a decompressed body, at most."""

_QUERY, _ANSWER, _CONTRIBUTION = 1, 2, 3
_ZSTD = 1
_HEAD = len(MAGIC) + 3 + 8


@dataclass(frozen=True)
class MatchQuery:
    """What a device asks the cloud to match. No sample, id or label is in it.

    encoder: digest of the encoder that made the centroids. centroids: float32 [k, width], unit length (sent as
    float16). limit: candidates wanted. held: shards of item rows that the device already has; rows of their items
    need not be sent.
    """

    encoder: str
    centroids: Float32
    limit: int
    held: Int32


@dataclass(frozen=True)
class Rows:
    """Rows of the sliced tensors of one vocabulary.

    ids: int32 [m], ascending. tensors: name -> [m, ...], float16 weights or int32 attributes.
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


class _Tensor(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[int, ...]
    data: bytes


class _Column(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    name: str
    kind: str
    parts: tuple[bytes, ...]


class _Batch(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    vocabularies: dict[str, bytes]
    columns: list[_Column]
    labels: bytes
    soft: bool


class _Query(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    encoder: str
    centroids: _Tensor
    limit: int
    held: bytes


class _Rows(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    ids: bytes
    tensors: dict[str, _Tensor]


class _Answer(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    candidates: _Batch
    rows: dict[str, _Rows]
    shortfall: str


_Body = TypeVar("_Body")


def encode_query(query: MatchQuery) -> bytes:
    body = _Query(query.encoder, _tensor(query.centroids.astype(np.float16)), query.limit, pack(query.held))
    return _frame(_QUERY, body)


def decode_query(data: bytes) -> MatchQuery:
    """Raises: WireError."""
    body = _open(data, _QUERY, _Query)
    centroids = _array(body.centroids)
    if centroids.ndim != 2 or centroids.dtype != np.float16 or not np.isfinite(centroids).all():
        raise WireError("the query's centroids must be finite float16 numbers of shape [k, width]")
    if body.limit < 0:
        raise WireError(f"the query asks for {body.limit} candidates")
    return MatchQuery(body.encoder, centroids.astype(np.float32), body.limit, _int32(unpack(body.held)))


def encode_answer(answer: MatchAnswer) -> bytes:
    rows = {
        name: _Rows(pack(r.ids), {key: _tensor(value) for key, value in r.tensors.items()})
        for name, r in answer.rows.items()
    }
    return _frame(_ANSWER, _Answer(_batch(answer.candidates), rows, answer.shortfall))


def decode_answer(data: bytes, schema: Schema) -> MatchAnswer:
    """Raises: WireError."""
    body = _open(data, _ANSWER, _Answer)
    rows = {}
    for name, part in body.rows.items():
        ids = _int32(unpack(part.ids))
        tensors = {key: _array(value) for key, value in part.tensors.items()}
        for key, array in tensors.items():
            if len(array) != len(ids):
                raise WireError(f"rows of {key!r}: {len(array)} for {len(ids)} ids")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise WireError(f"rows of {key!r} hold numbers that are not finite")
        rows[name] = Rows(ids, tensors)
    return MatchAnswer(_samples(body.candidates, schema), rows, body.shortfall)


def encode_contribution(samples: SampleBatch) -> bytes:
    return _frame(_CONTRIBUTION, _batch(samples))


def decode_contribution(data: bytes, schema: Schema) -> SampleBatch:
    """Raises: WireError."""
    return _samples(_open(data, _CONTRIBUTION, _Batch), schema)


def _frame(kind: int, body: object) -> bytes:
    plain = msgspec.msgpack.encode(body)
    squeezed = zstandard.ZstdCompressor(level=9, write_content_size=True).compress(plain)
    flags, payload = (_ZSTD, squeezed) if len(squeezed) < len(plain) else (0, plain)
    head = MAGIC + bytes([kind, VERSION, flags])
    return head + _digest(head + payload) + payload


def _open(data: bytes, kind: int, body: type[_Body]) -> _Body:
    if len(data) < _HEAD or data[:4] != MAGIC:
        raise WireError(f"these {len(data)} bytes are not a CoDA frame")
    if data[5] != VERSION:
        raise WireError(f"the frame has version {data[5]}; this program reads version {VERSION}: update the older side")
    if data[4] != kind:
        raise WireError(f"a frame of kind {data[4]} stands where kind {kind} is expected")
    head, digest, payload = data[:7], data[7:_HEAD], data[_HEAD:]
    if _digest(head + payload) != digest:
        raise WireError("the frame is damaged or truncated: its checksum does not fit")
    try:
        if data[6] & _ZSTD:
            size = zstandard.get_frame_parameters(payload).content_size
            if size > MAX_BODY:  # also where the size is not stated, which is 2**64 - 1
                raise WireError(f"the frame's body would take {size} bytes; at most {MAX_BODY} are allowed")
            payload = zstandard.ZstdDecompressor().decompress(payload)
        return msgspec.msgpack.decode(payload, type=body)
    except (zstandard.ZstdError, msgspec.DecodeError) as error:
        raise WireError(f"the frame's body does not decode: {error}") from None


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest()


def _tensor(array: npt.NDArray[np.generic]) -> _Tensor:
    if array.dtype.kind == "i":
        return _Tensor("int", array.shape, pack(array.reshape(-1).astype(np.int64)))
    little = array.astype(array.dtype.newbyteorder("<"))
    return _Tensor(array.dtype.name, array.shape, little.tobytes())


def _array(tensor: _Tensor) -> npt.NDArray[np.generic]:
    if any(d < 0 for d in tensor.shape):
        raise WireError(f"a tensor claims the shape {list(tensor.shape)}")
    try:
        flat: npt.NDArray[np.generic]
        if tensor.dtype == "int":
            flat = _int32(unpack(tensor.data))
        elif tensor.dtype in ("float16", "float32"):
            flat = np.frombuffer(tensor.data, np.dtype(tensor.dtype).newbyteorder("<")).astype(tensor.dtype)
        else:
            raise WireError(f"a tensor has the unknown dtype {tensor.dtype!r}")
        return flat.reshape(tensor.shape)
    except ValueError:
        raise WireError(f"a tensor's bytes do not fill its shape {list(tensor.shape)}") from None


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
            parts: tuple[bytes, ...] = (pack(at), pack(cut.starts), pack(cut.lengths))
        elif feature.kind == "id":
            parts = (pack(np.searchsorted(distinct[feature.vocabulary], column)),)
        else:
            parts = (np.asarray(column, "<f4").tobytes(),)
        columns.append(_Column(feature.name, feature.kind, parts))
    hard = bool(np.isin(samples.labels, (0, 1)).all())
    labels = pack(samples.labels.astype(np.int64)) if hard else samples.labels.astype("<f4").tobytes()
    return _Batch({k: pack(v) for k, v in sorted(distinct.items())}, columns, labels, not hard)


def _samples(body: _Batch, schema: Schema) -> SampleBatch:
    vocabularies = {name: _int32(unpack(data)) for name, data in body.vocabularies.items()}
    columns: dict[str, Column] = {}
    try:
        labels = np.frombuffer(body.labels, "<f4") if body.soft else unpack(body.labels)
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
            if len(at) and not (at.min() >= 0 and at.max() < len(ids)):
                raise WireError(f"column {column.name!r} points outside its {len(ids)} ids")
            if column.kind == "id":
                columns[column.name] = ids[at]
            else:
                starts, lengths = unpack(column.parts[1]), unpack(column.parts[2])
                columns[column.name] = Ragged(ids[at], _int32(starts), _int32(lengths))
        return SampleBatch(schema, columns, labels.astype(np.float32))
    except KeyError as missing:
        raise WireError(f"the frame speaks of {missing}, which the schema does not know") from None
    except (IndexError, ValueError) as error:
        raise WireError(f"a column's bytes do not fit its kind: {error}") from None
    except InputError as error:
        raise WireError(f"the frame holds samples that cannot be: {error}") from None


def _int32(values: npt.NDArray[np.int64]) -> Int32:
    if len(values) and not (values.min() >= -(1 << 31) and values.max() < 1 << 31):
        raise WireError("a column holds numbers beyond 32 bits")
    return values.astype(np.int32)
