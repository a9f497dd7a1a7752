"""Integer columns as few bytes: the smallest of constant, bit-packed, or bit-packed differences.

A packed column is one mode byte, the count and the base as varints, the bit width, then the bits. Fixed widths
keep encoding and decoding vectorised; entropy coding is left to the frame's zstd.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from device_runtime.errors import WireError

_PLAIN, _DELTA = 0, 1
MAX_COUNT = 1 << 24
"""Values in one column, at most: what a hostile frame can make a reader allocate is bounded by this."""


def pack(values: npt.NDArray[np.integer]) -> bytes:
    """Pack integers (any integer dtype, within int64) of shape [n]."""
    column = np.asarray(values, np.int64)
    if not len(column):
        return bytes([_PLAIN]) + _varint(0)
    plain = _body(_PLAIN, column)
    if len(column) < 2:
        return plain
    delta = _body(_DELTA, np.diff(column), first=int(column[0]))
    return min(plain, delta, key=len)


def unpack(data: bytes) -> npt.NDArray[np.int64]:
    """The int64 [n] that `pack` was given.

    Raises:
        WireError: the bytes are truncated, longer than they should be, or claim too many values.
    """
    try:
        mode, at = data[0], 1
        count, at = _read_varint(data, at)
        if count > MAX_COUNT:
            raise WireError(f"a column claims {count} values; at most {MAX_COUNT} are allowed")
        if count == 0:
            rest, column = data[at:], np.zeros(0, np.int64)
        elif mode == _PLAIN:
            column, rest = _read_body(data, at, count)
        elif mode == _DELTA:
            first, at = _read_varint(data, at)
            steps, rest = _read_body(data, at, count - 1)
            column = np.concatenate(([_unzigzag(first)], steps)).cumsum()
        else:
            raise WireError(f"a column has the unknown packing mode {mode}")
    except IndexError:
        raise WireError("a packed column is truncated") from None
    if rest:
        raise WireError(f"a packed column is followed by {len(rest)} stray bytes")
    return column


def _body(mode: int, column: npt.NDArray[np.int64], first: int = 0) -> bytes:
    base = int(column.min())
    offsets = (column - base).astype(np.uint64)
    width = int(offsets.max()).bit_length()
    head = bytes([mode]) + _varint(len(column) + mode)
    if mode == _DELTA:
        head += _varint(_zigzag(first))
    head += _varint(_zigzag(base)) + bytes([width])
    if not width:
        return head
    bits = (offsets[:, None] >> np.arange(width, dtype=np.uint64)) & np.uint64(1)
    return head + np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()


def _read_body(data: bytes, at: int, count: int) -> tuple[npt.NDArray[np.int64], bytes]:
    base, at = _read_varint(data, at)
    width, at = data[at], at + 1
    if width > 64:
        raise WireError(f"a packed column claims {width} bits a value")
    size = (count * width + 7) // 8
    if len(data) < at + size:
        raise WireError("a packed column is truncated")
    if not width:
        return np.full(count, _unzigzag(base), np.int64), data[at:]
    packed = np.frombuffer(data, np.uint8, size, at)
    bits = np.unpackbits(packed, count=count * width, bitorder="little").reshape(count, width)
    offsets = (bits.astype(np.uint64) << np.arange(width, dtype=np.uint64)).sum(1, dtype=np.uint64)
    return offsets.astype(np.int64) + np.int64(_unzigzag(base)), data[at + size :]


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1


def _unzigzag(value: int) -> int:
    return value >> 1 if not value & 1 else -((value + 1) >> 1)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 63:
            raise WireError("a varint is longer than 64 bits")
    return value, at
