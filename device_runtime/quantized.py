"""Weights stored narrower than graphs take them: half precision, or bytes with a scale for each row.

Every graph computes in float32 and training starts from the widened numbers, so the narrow form is one of storage and
transport only: in a bundle's weights, in shards of item rows, and in the rows of an answer. An int8 tensor `NAME`
[n, ...] comes with `scale:NAME`, float16 [n]; row i is `NAME[i] * scale[i]`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from device_runtime.errors import WireError

Array = npt.NDArray[np.generic]
Float32 = npt.NDArray[np.float32]

SCALE = "scale:"


def widened(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Each tensor as graphs take it: weights float32, without the scales; integers without a scale as they are.

    Raises:
        WireError: a scale belongs to no tensor, or does not have one number for each row of it.
    """
    found: dict[str, Array] = {}
    for name, scale in tensors.items():
        of = tensors.get(name.removeprefix(SCALE))
        if name.startswith(SCALE) and (of is None or scale.shape != of.shape[:1]):
            given = "there is no such tensor" if of is None else f"it has {list(scale.shape)} for {list(of.shape)}"
            raise WireError(f"{name!r} must have one number for each row of {name.removeprefix(SCALE)!r}: {given}")
    for name, stored in tensors.items():
        if not name.startswith(SCALE):
            scale_of = tensors.get(SCALE + name)
            found[name] = scaled_up(stored, scale_of) if is_weight(stored, scale_of) else stored
    return found


def is_weight(stored: Array, scale: Array | None) -> bool:
    """Whether it stands for numbers rather than for integers as such."""
    return scale is not None or stored.dtype.kind == "f"


def scaled_up(stored: Array, scale: Array | None) -> Float32:
    """float32 [n, ...] of a weight in any form."""
    wide = stored.astype(np.float32)
    return wide if scale is None else wide * scale.astype(np.float32).reshape(-1, *[1] * (wide.ndim - 1))
