"""What turns one file of tensors into another: the rows that differ, and how.

Two files of safetensors are compared tensor by tensor. Where both have `ids`, as shards of item rows do, a row is
compared with the one of the same id, so items that came or went do not shift the others; otherwise rows are compared
by their number. Only rows that differ are told, as they are or as differences, whichever zstd makes shorter: of a
retrained model whose weights moved a little, the upper bytes of the differences are nearly all zero.

Nothing rests on a delta being genuine: whoever applies one compares the result with the hash that a manifest has.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import zstandard

from device_runtime.errors import WireError
from device_runtime.framing import seal, unseal
from device_runtime.packing import pack, unpack
from device_runtime.samples import Bool, Int64

_DELTA = 6
_FLOATS = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
_WIDTHS = _FLOATS | {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8}
_IDS = "ids"
_MOST_HEADER = 1 << 20

Words = npt.NDArray[np.unsignedinteger]


class _Part(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Of one tensor. rows: *packed* ascending numbers of those that are told; empty bytes: all of them. moved: they are
    told as differences. planes: all words' lowest bytes, then all words' next ones, and so on."""

    rows: bytes
    moved: bool
    planes: bytes


class _Delta(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """header: of the file that is made, its length before it. parts: by the tensors' names, `ids` first."""

    header: bytes
    parts: list[_Part]


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


@dataclass(frozen=True)
class _File:
    """header: with the length before it. entries: as it names them."""

    header: bytes
    entries: Mapping[str, _Entry]
    data: memoryview

    def words(self, name: str) -> Words:
        """A copy of a tensor, unsigned whole numbers [rows, words]."""
        entry = self.entries[name]
        start, stop = entry.data_offsets
        flat = np.frombuffer(self.data[start:stop], f"<u{_WIDTHS[entry.dtype]}").copy()
        return flat.reshape(_shape(entry))

    @property
    def order(self) -> list[str]:
        return sorted(self.entries, key=lambda name: (name != _IDS, name))


def delta_name(base: str, target: str) -> str:
    """64 hex digits, by which a delta between two files is kept. base, target: names of their blobs."""
    return hashlib.sha256(f"coda-delta\n{base}\n{target}".encode()).hexdigest()


def encode_delta(base: bytes, target: bytes) -> bytes:
    """What makes `target` of `base`. Raises: WireError: one of them is not a file of tensors."""
    before, after = _opened(base), _opened(target)
    parts = []
    for name in after.order:
        entry, words = after.entries[name], after.words(name)
        held = _reference(before, after.entries, name, _ids(after) if _IDS in after.entries else None)
        touched = np.flatnonzero((words != held).any(axis=1))
        told = words[touched]
        plain, moved = _planes(told), _planes(_moved(told, held[touched], entry.dtype))
        shorter = _squeezed(moved) < _squeezed(plain)
        rows = b"" if len(touched) == len(words) else pack(touched)
        parts.append(_Part(rows, shorter, moved if shorter else plain))
    return seal(_DELTA, msgspec.msgpack.encode(_Delta(after.header, parts)))


def apply_delta(base: bytes, delta: bytes, size: int) -> bytes:
    """The file of `size` bytes that a delta makes of `base`. It is not told here whether that is the right one.

    Raises:
        WireError: damaged, of another base, or of a file of another size.
    """
    plain = unseal(delta, _DELTA, 2 * size + _MOST_HEADER)
    try:
        body = msgspec.msgpack.decode(plain, type=_Delta)
    except msgspec.DecodeError as error:
        raise WireError(f"the delta does not decode: {error}") from None
    before, entries = _opened(base), _entries(body.header, size)
    made, shape = bytearray(size), _File(body.header, entries, memoryview(b""))
    made[: len(body.header)] = body.header
    if len(body.parts) != len(entries):
        raise WireError(f"the delta has {len(body.parts)} parts for {len(entries)} tensors")
    ids: Int64 | None = None
    for name, part in zip(shape.order, body.parts, strict=True):
        words = _reference(before, entries, name, ids)
        _tell(words, part, entries[name].dtype, name)
        if name == _IDS and entries[name].dtype == "I32":
            ids = words.reshape(-1).view("<i4").astype(np.int64)
        start = len(body.header) + entries[name].data_offsets[0]
        data = words.tobytes()
        made[start : start + len(data)] = data
    return bytes(made)


def _tell(words: Words, part: _Part, dtype: str, name: str) -> None:
    """Put what a part tells where it belongs. Raises: WireError."""
    rows = np.arange(len(words)) if part.rows == b"" else unpack(part.rows)
    if len(rows) and (rows[0] < 0 or rows[-1] >= len(words) or (np.diff(rows) <= 0).any()):
        raise WireError(f"the delta tells rows of {name!r} that are not there")
    if len(part.planes) != len(rows) * words.shape[1] * words.itemsize:
        raise WireError(f"the delta has {len(part.planes)} bytes for {len(rows)} rows of {name!r}")
    told = np.frombuffer(part.planes, np.uint8).reshape(words.itemsize, -1).T
    told = np.ascontiguousarray(told).view(words.dtype).reshape(len(rows), words.shape[1])
    words[rows] = _back(told, words[rows], dtype) if part.moved else told


def _reference(before: _File, entries: Mapping[str, _Entry], name: str, ids: Int64 | None) -> Words:
    """The rows of `before` that a tensor is compared with, as many as it has; zeros where there is none."""
    entry = entries[name]
    held = np.zeros(_shape(entry), f"<u{_WIDTHS[entry.dtype]}")
    was = before.entries.get(name)
    if was is None or was.dtype != entry.dtype or (words := before.words(name)).shape[1] != held.shape[1]:
        return held
    if ids is not None and name != _IDS and len(ids) == len(held) and (known := _ids(before)) is not None:
        at, found = _places(ids, known)
        if len(known) == len(words):
            held[found] = words[at[found]]
            return held
    both = min(len(held), len(words))
    held[:both] = words[:both]
    return held


def _ids(file: _File) -> Int64 | None:
    entry = file.entries.get(_IDS)
    if entry is None or entry.dtype != "I32":
        return None
    return file.words(_IDS).reshape(-1).view("<i4").astype(np.int64)


def _places(ids: Int64, known: Int64) -> tuple[Int64, Bool]:
    """Where each id is among the known ones, and whether it is there at all."""
    if not len(known):
        return np.zeros(len(ids), np.int64), np.zeros(len(ids), bool)
    order = np.argsort(known, kind="stable")
    at = order[np.minimum(np.searchsorted(known, ids, sorter=order), len(known) - 1)]
    return at, known[at] == ids


def _moved(words: Words, held: Words, dtype: str) -> Words:
    """Differences: of floats in the order of their magnitudes, as zigzag numbers, so that small ones are small."""
    apart = (_ordered(words, dtype) - _ordered(held, dtype)).view(f"<i{words.itemsize}")
    return ((apart << 1) ^ (apart >> (8 * words.itemsize - 1))).view(words.dtype)


def _back(told: Words, held: Words, dtype: str) -> Words:
    apart = (told >> told.dtype.type(1)) ^ (np.zeros_like(told) - (told & told.dtype.type(1)))
    return _ordered(_ordered(held, dtype) + apart, dtype, back=True)


def _ordered(words: Words, dtype: str, back: bool = False) -> Words:
    """Floats' bits as whole numbers in the order of the floats; others as they are. back: the inverse."""
    if dtype not in _FLOATS:
        return words
    sign = words.dtype.type(1 << (8 * words.itemsize - 1))
    flipped = (words & sign) == 0 if back else (words & sign) != 0
    found: Words = np.where(flipped, ~words, words ^ sign)
    return found


def _planes(words: Words) -> bytes:
    return np.ascontiguousarray(words).view(np.uint8).reshape(-1, words.itemsize).T.tobytes()


def _squeezed(data: bytes) -> int:
    return len(zstandard.ZstdCompressor(level=1).compress(data))


def _shape(entry: _Entry) -> tuple[int, int]:
    """Rows and words of each."""
    if 0 in entry.shape:
        return 0, 0
    return (entry.shape[0] if entry.shape else 1), math.prod(entry.shape[1:])


def _opened(data: bytes) -> _File:
    """Raises: WireError."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, _MOST_HEADER):
        raise WireError(f"these {len(data)} bytes are no file of tensors")
    header = data[: 8 + length]
    return _File(header, _entries(header, len(data)), memoryview(data)[8 + length :])


def _entries(header: bytes, size: int) -> dict[str, _Entry]:
    """The tensors of a file of `size` bytes, which lie side by side and fill it. Raises: WireError."""
    try:
        stated = msgspec.json.decode(header[8:], type=dict[str, msgspec.Raw])
        stated.pop("__metadata__", None)
        found = {name: msgspec.json.decode(raw, type=_Entry) for name, raw in stated.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"a file of tensors has a header that does not decode: {error}") from None
    if int.from_bytes(header[:8], "little") != len(header) - 8:
        raise WireError("a file of tensors has a header of another length than it says")
    at = 0
    for name, entry in sorted(found.items(), key=lambda item: item[1].data_offsets):
        width = _WIDTHS.get(entry.dtype)
        if width is None or min(entry.shape, default=0) < 0:
            raise WireError(f"the tensor {name!r} is of the unknown type {entry.dtype!r}, or of a shape that cannot be")
        if entry.data_offsets != (at, at + width * math.prod(entry.shape)):
            raise WireError(f"the tensor {name!r} does not lie where its shape and its neighbours have it")
        at = entry.data_offsets[1]
    if len(header) + at != size:
        raise WireError(f"a file of tensors has {size} bytes, but its header speaks of {len(header) + at}")
    return found
