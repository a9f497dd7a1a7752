"""Integer columns as few bytes: the shortest of three layouts, of the values or of their differences.

- *fixed*: every number in the same count of bits. Best where all are equally likely, such as positions.
- *split*: of each number how many bits it has, as a byte, all of them through zstd's entropy coder; then the bits
  below the leading one as they are. That is Elias gamma with its unary part entropy-coded: best for gaps, whose sizes
  are skewed while their low bits are noise.
- *bytes*: each number a byte, through zstd: best for few distinct small numbers.

All of it is vectorised: a column of ten thousand takes about a millisecond.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import zstandard

from device_runtime.errors import WireError

_FIXED, _SPLIT, _BYTES = 0, 2, 4
_DELTA = 1
MAX_COUNT = 1 << 24
"""Values in one column, at most: what a hostile frame can make a reader allocate is bounded by this."""
_CHUNK = 1 << 16
"""Values unpacked at once: bits take eight bytes each on their way."""
_LEVEL, _QUICK = 12, 1
_FEW = 16
"""Below this many values, an entropy coder's table costs more than it saves."""
_WORD = (1 << 64) - 1

Unsigned = npt.NDArray[np.uint64]


class _Compressors(threading.local):
    """Two threads must not share one."""

    def __init__(self) -> None:
        self.by_level: dict[int, zstandard.ZstdCompressor] = {}


_compressors = _Compressors()


def pack(values: npt.NDArray[np.integer]) -> bytes:
    """Pack integers (any integer dtype, within int64) of shape [n]."""
    column = np.asarray(values, np.int64)
    if not len(column):
        return bytes([_FIXED]) + _varint(0)
    found = [_best(0, column, b"")]
    if len(column) > 1:
        found.append(_best(_DELTA, np.diff(column), _varint(_zigzag(int(column[0])))))
    return min(found, key=lambda pair: pair[0])[1]()


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
        if mode > (_BYTES | _DELTA):
            raise WireError(f"a column has the unknown packing mode {mode}")
        if count == 0:
            _nothing_after(data, at)
            return np.zeros(0, np.int64)
        first = 0
        if mode & _DELTA:
            stated, at = _read_varint(data, at)
            first, count = _unzigzag(stated), count - 1
        stated, at = _read_varint(data, at)
        base, layout = _unzigzag(stated), mode & ~_DELTA
        read = _read_fixed if layout == _FIXED else _read_split if layout == _SPLIT else _read_bytes
        offsets = read(data, at, count)
    except IndexError:
        raise WireError("a packed column is truncated") from None
    column = offsets.astype(np.int64) + np.array([base & _WORD], np.uint64).astype(np.int64)
    if mode & _DELTA:
        column = np.concatenate((np.array([first & _WORD], np.uint64).astype(np.int64), column)).cumsum()
    return column


def _best(delta: int, column: npt.NDArray[np.int64], first: bytes) -> tuple[int, Callable[[], bytes]]:
    """(about the bytes that the shortest layout takes, what makes it).

    Squeezing takes nearly all of the time, so layouts are compared by a quick try, and only the winner's is thorough.
    """
    base = int(column.min())
    offsets = (column - base).astype(np.uint64)  # wraps where the range exceeds int64, and wraps back when read
    largest = int(offsets.max())
    head = _varint(len(column) + delta) + first + _varint(_zigzag(base))
    width = largest.bit_length()
    size = 1 + (width * len(column) + 7) // 8
    found = [(size, lambda: bytes([_FIXED | delta]) + head + _fixed(offsets, width))]
    if len(column) >= _FEW and 0 < largest < _WORD:
        raised = offsets + np.uint64(1)
        widths = _width(raised) - 1
        classes = widths.astype(np.uint8).tobytes()
        tried = len(_squeeze(classes, _QUICK))
        size = tried + len(_varint(tried)) + (int(widths.sum()) + 7) // 8
        found.append((size, lambda: bytes([_SPLIT | delta]) + head + _stated(classes) + _bits(raised, widths)))
    if len(column) >= _FEW and 0 < largest < 256:
        numbers = offsets.astype(np.uint8).tobytes()
        found.append((len(_squeeze(numbers, _QUICK)), lambda: bytes([_BYTES | delta]) + head + _squeeze(numbers)))
    size, make = min(found, key=lambda pair: pair[0])
    return 1 + len(head) + size, make


# -- layouts --------------------------------------------------------------------------------------------------------


def _fixed(offsets: Unsigned, width: int) -> bytes:
    return bytes([width]) + _bits(offsets, np.full(len(offsets), width, np.int64))


def _read_fixed(data: bytes, at: int, count: int) -> Unsigned:
    width, at = data[at], at + 1
    if width > 64:
        raise WireError(f"a packed column claims {width} bits a value")
    size = (count * width + 7) // 8
    if len(data) < at + size:
        raise WireError("a packed column is truncated")
    _nothing_after(data, at + size)
    if not width:
        return np.zeros(count, np.uint64)
    # chunks begin at whole bytes, because _CHUNK is a multiple of 8
    parts = []
    for start in range(0, count, _CHUNK):
        part = min(_CHUNK, count - start)
        packed = np.frombuffer(data, np.uint8, (part * width + 7) // 8, at + start * width // 8)
        bits = np.unpackbits(packed, count=part * width, bitorder="little").reshape(part, width)
        parts.append((bits.astype(np.uint64) << np.arange(width, dtype=np.uint64)).sum(1, dtype=np.uint64))
    return np.concatenate(parts)


def _read_split(data: bytes, at: int, count: int) -> Unsigned:
    """Of each number + 1: its width less one, as a byte, squeezed; then the bits below the leading one."""
    size, at = _read_varint(data, at)
    if size > len(data) - at:
        raise WireError("a packed column is truncated")
    widths = np.frombuffer(_unsqueeze(data[at : at + size], count), np.uint8).astype(np.int64)
    at += size
    if widths.max() > 63:
        raise WireError(f"a packed column claims {widths.max() + 1} bits a value")
    ends = np.cumsum(widths)
    total = int(ends[-1])
    if len(data) < at + (total + 7) // 8:
        raise WireError("a packed column is truncated")
    _nothing_after(data, at + (total + 7) // 8)
    packed = np.frombuffer(data, np.uint8, (total + 7) // 8, at)
    parts = []
    for start in range(0, count, _CHUNK):
        wide = widths[start : start + _CHUNK]
        begins = ends[start : start + _CHUNK] - wide
        first, last = int(begins[0]), int(begins[-1] + wide[-1])
        bits = np.unpackbits(packed[first // 8 : (last + 7) // 8], bitorder="little")[first % 8 :][: last - first]
        values = np.left_shift(np.uint64(1), wide.astype(np.uint64))
        place = np.arange(last - first) - np.repeat(begins - first, wide)
        shifted = bits.astype(np.uint64) << place.astype(np.uint64)
        sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(shifted, dtype=np.uint64)))  # differences wrap back
        parts.append(values + (sums[begins - first + wide] - sums[begins - first]) - np.uint64(1))
    return np.concatenate(parts)


def _read_bytes(data: bytes, at: int, count: int) -> Unsigned:
    return np.frombuffer(_unsqueeze(data[at:], count), np.uint8).astype(np.uint64)


def _bits(numbers: Unsigned, widths: npt.NDArray[np.int64]) -> bytes:
    """The lowest `widths` bits of each number, least significant first, one after another."""
    ends = np.cumsum(widths)
    place = np.arange(int(ends[-1])) - np.repeat(ends - widths, widths)
    bits = (np.repeat(numbers, widths) >> place.astype(np.uint64)) & np.uint64(1)
    return np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()


def _width(numbers: Unsigned) -> npt.NDArray[np.int64]:
    """Bits of each number; exact, where a logarithm of large ones is not."""
    if int(numbers.max()) < 1 << 53:  # whole in a double, whose exponent says it
        return np.frexp(numbers.astype(np.float64))[1].astype(np.int64)
    widths = np.zeros(len(numbers), np.int64)
    rest = numbers.copy()
    for step in (32, 16, 8, 4, 2, 1):
        high = rest >= np.uint64(1 << step)
        widths[high] += step
        rest[high] >>= np.uint64(step)
    return widths + (rest > 0)


def _stated(classes: bytes) -> bytes:
    squeezed = _squeeze(classes)
    return _varint(len(squeezed)) + squeezed


def _squeeze(data: bytes, level: int = _LEVEL) -> bytes:
    known = _compressors.by_level
    if level not in known:  # making one can cost as much as squeezing a column
        known[level] = zstandard.ZstdCompressor(level=level, write_content_size=True)
    return known[level].compress(data)


def _unsqueeze(data: bytes, size: int) -> bytes:
    try:
        if zstandard.get_frame_parameters(data).content_size != size:
            raise WireError(f"a packed column's bytes are not those of {size} values")
        whole = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except (zstandard.ZstdError, ValueError) as error:
        raise WireError(f"a packed column does not decompress: {error}") from None
    if len(whole) != size:
        raise WireError(f"a packed column's bytes are not those of {size} values")
    return whole


# -- numbers --------------------------------------------------------------------------------------------------------


def _nothing_after(data: bytes, end: int) -> None:
    if len(data) > end:
        raise WireError(f"a packed column is followed by {len(data) - end} stray bytes")


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
