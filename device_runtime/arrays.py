"""Arrays within a body: raw floats, packed integers, and rows scaled to bytes."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from device_runtime.errors import InputError, WireError
from device_runtime.packing import pack, unpack
from device_runtime.samples import Float32, Int32


class Tensor(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[int, ...]
    data: bytes


class Scaled(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Rows of int8, and a float32 for each that they are multiples of."""

    shape: tuple[int, int]
    scales: bytes
    data: bytes


def tensor(values: npt.NDArray[np.generic]) -> Tensor:
    if values.dtype.kind == "i":
        return Tensor("int", values.shape, pack(values.reshape(-1).astype(np.int64)))
    little = values.astype(values.dtype.newbyteorder("<"))
    return Tensor(values.dtype.name, values.shape, little.tobytes())


def array(part: Tensor) -> npt.NDArray[np.generic]:
    if any(d < 0 for d in part.shape):
        raise WireError(f"a tensor claims the shape {list(part.shape)}")
    try:
        flat: npt.NDArray[np.generic]
        if part.dtype == "int":
            flat = int32(unpack(part.data))
        elif part.dtype in ("float16", "float32"):
            flat = np.frombuffer(part.data, np.dtype(part.dtype).newbyteorder("<")).astype(part.dtype)
        else:
            raise WireError(f"a tensor has the unknown dtype {part.dtype!r}")
        return flat.reshape(part.shape)
    except ValueError:
        raise WireError(f"a tensor's bytes do not fill its shape {list(part.shape)}") from None


def scaled(rows: Float32) -> Scaled:
    """float32 [n, width], rounded to multiples of a 127th of each row's largest magnitude.

    Raises:
        InputError: a number is not finite.
    """
    if not np.isfinite(rows).all():
        raise InputError("numbers that are not finite cannot be sent")
    scales = (np.abs(rows).max(1, initial=0) / 127).astype(np.float32)
    used = np.where(scales > 0, scales, np.float32(1))
    steps = np.clip(np.rint(rows / used[:, None]), -127, 127)
    return Scaled((rows.shape[0], rows.shape[1]), scales.astype("<f4").tobytes(), steps.astype(np.int8).tobytes())


def rescaled(part: Scaled, what: str) -> Float32:
    count, width = part.shape
    if count < 0 or width < 0 or len(part.data) != count * width or len(part.scales) != 4 * count:
        raise WireError(f"{what}: the bytes do not fill the shape {list(part.shape)}")
    scales = np.frombuffer(part.scales, "<f4").astype(np.float32)
    if not np.isfinite(scales).all():
        raise WireError(f"{what} must be finite")
    rows: Float32 = np.frombuffer(part.data, np.int8).reshape(count, width) * scales[:, None]
    return rows


def int32(values: npt.NDArray[np.int64]) -> Int32:
    if len(values) and not (values.min() >= -(1 << 31) and values.max() < 1 << 31):
        raise WireError("a column holds numbers beyond 32 bits")
    return values.astype(np.int32)
