"""The envelope of everything binary: magic, kind, version, a checksum, and zstd where it helps."""

from __future__ import annotations

import hashlib

import zstandard

from device_runtime.errors import WireError

MAGIC = b"CoDA"
VERSION = 3
MAX_BODY = 64 << 20
"""Bytes of a decompressed body, at most."""

_ZSTD = 1
_HEAD = len(MAGIC) + 3 + 8


def seal(kind: int, plain: bytes, dictionary: bytes = b"") -> bytes:
    """A frame around a body. dictionary: bytes that zstd may refer to; the reader must be given the same."""
    squeezed = zstandard.ZstdCompressor(level=9, dict_data=_shared(dictionary), write_content_size=True).compress(plain)
    flags, payload = (_ZSTD, squeezed) if len(squeezed) < len(plain) else (0, plain)
    head = MAGIC + bytes([kind, VERSION, flags])
    return head + digest(head + payload) + payload


def kind_of(data: bytes) -> int:
    """The kind that a frame states, before anything of it is checked; 0 of what is too short to be one."""
    return data[4] if len(data) >= _HEAD else 0


def unseal(data: bytes, kind: int, most: int = MAX_BODY, dictionary: bytes = b"") -> bytes:
    """The body of a frame of that kind; most: its bytes after decompression. dictionary: as given to `seal`.

    Raises:
        WireError: another kind or version, damaged, or too large.
    """
    if len(data) < _HEAD or data[:4] != MAGIC:
        raise WireError(f"these {len(data)} bytes are not a CoDA frame")
    if data[5] != VERSION:
        raise WireError(f"the frame has version {data[5]}; this program reads version {VERSION}: update the older side")
    if data[4] != kind:
        raise WireError(f"a frame of kind {data[4]} stands where kind {kind} is expected")
    head, stated, payload = data[:7], data[7:_HEAD], data[_HEAD:]
    if digest(head + payload) != stated:
        raise WireError("the frame is damaged or truncated: its checksum does not fit")
    if not data[6] & _ZSTD:
        return payload
    try:
        size = zstandard.get_frame_parameters(payload).content_size
        if size > most:  # also where the size is not stated, which is 2**64 - 1
            raise WireError(f"the frame's body would take {size} bytes; at most {most} are allowed")
        plain: bytes = zstandard.ZstdDecompressor(dict_data=_shared(dictionary)).decompress(payload)
    except zstandard.ZstdError as error:
        raise WireError(f"the frame's body does not decode: {error}") from None
    return plain


def digest(data: bytes) -> bytes:
    """BLAKE2b-64."""
    return hashlib.blake2b(data, digest_size=8).digest()


def _shared(dictionary: bytes) -> zstandard.ZstdCompressionDict | None:
    if not dictionary:
        return None
    return zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
