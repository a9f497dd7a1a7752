"""The same records in other formats: what each takes, and how long."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

Records = Sequence[dict[str, Any]]
"""All with the same fields; a field is an int, a float, or a list of ints."""
_ZSTD_LEVEL = 9


@dataclass(frozen=True)
class Codec:
    """name: as in the rows. encode, decode: between records and bytes; decoding gives what the library gives."""

    name: str
    encode: Callable[[Records], bytes]
    decode: Callable[[bytes], object]


def others(example: dict[str, Any]) -> list[Codec]:
    """The other formats, for records that look like this one."""
    Message = _protobuf(example)  # noqa: N806

    def to_protobuf(records: Records) -> bytes:
        whole = Message()
        for record in records:
            whole.records.add(**record)
        return _squeeze(whole.SerializeToString())

    return [
        Codec("JSON", _json, json.loads),
        Codec("JSON + gzip", lambda r: gzip.compress(_json(r), 9), lambda d: json.loads(gzip.decompress(d))),
        Codec(
            "MessagePack + zstd",
            lambda r: _squeeze(msgspec.msgpack.encode(r)),
            lambda d: msgspec.msgpack.decode(_unsqueeze(d)),
        ),
        Codec("Protobuf + zstd", to_protobuf, lambda d: Message.FromString(_unsqueeze(d))),
        Codec("Arrow IPC + zstd", _arrow, lambda d: pa.ipc.open_stream(_unsqueeze(d)).read_all()),
        Codec("Parquet + zstd", _parquet, lambda d: pq.read_table(pa.BufferReader(d))),
    ]


def _json(records: Records) -> bytes:
    return json.dumps(records, separators=(",", ":")).encode()


def _arrow(records: Records) -> bytes:
    """The stream as a whole through zstd: smaller than Arrow's own compression, which squeezes each buffer alone."""
    table = _table(records)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return _squeeze(sink.getvalue())


def _parquet(records: Records) -> bytes:
    sink = io.BytesIO()
    pq.write_table(_table(records), sink, compression="zstd", compression_level=_ZSTD_LEVEL)
    return sink.getvalue()


def _table(records: Records) -> pa.Table:
    kinds = {int: pa.int32(), float: pa.float32(), list: pa.list_(pa.int32())}
    schema = pa.schema({name: kinds[type(value)] for name, value in records[0].items()})
    return pa.Table.from_pylist(list(records), schema)


def _protobuf(example: dict[str, Any]) -> Any:
    """A message class for lists of such records; lists of ints are packed, as proto3 does it."""
    file = descriptor_pb2.FileDescriptorProto(name="bench.proto", package="bench", syntax="proto3")
    record = file.message_type.add(name="Record")
    field = descriptor_pb2.FieldDescriptorProto
    for number, (name, value) in enumerate(example.items(), 1):
        kind = field.TYPE_FLOAT if isinstance(value, float) else field.TYPE_SINT32
        label = field.LABEL_REPEATED if isinstance(value, list) else field.LABEL_OPTIONAL
        record.field.add(name=name, number=number, type=kind, label=label)
    whole = file.message_type.add(name="Records")
    whole.field.add(
        name="records", number=1, type=field.TYPE_MESSAGE, type_name=".bench.Record", label=field.LABEL_REPEATED
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("bench.Records"))


def _squeeze(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_content_size=True).compress(data)


def _unsqueeze(data: bytes) -> bytes:
    plain: bytes = zstandard.ZstdDecompressor().decompress(data)
    return plain
