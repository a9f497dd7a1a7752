"""Which devices try a release: a stable place of each device on [0, 1), another one for each release.

Treatment takes places from the low end, control from the high end, both of the same share. So the groups are of equal
size in expectation, a rung's treatment contains that of the rung below, no device of the control was ever treated, and
the same devices are not the first to try every release. Next to the control, up to five times the treatment's share and
a quarter of all, is the reference: devices that go on as they did, like the control, and whose quality counts beside
its (docs/adr/0014).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

import numpy as np

from device_runtime.samples import Float64

Group = Literal["treatment", "control", "reference", "rest"]
_WIDER = 5
_WIDEST = 0.25
"""Of the devices: they are not treated before the control of a half would be."""


def place(device: str, salt: str) -> float:
    """The device's place on [0, 1): uniform over devices, and independent from one salt to another."""
    digest = hashlib.blake2b(f"{salt}\n{device}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def places(devices: Iterable[str], salt: str) -> Float64:
    """`place` of each, float64 [n]."""
    return np.fromiter((place(device, salt) for device in devices), np.float64)


def group(at: float, share: float) -> Group:
    """share: of the devices that are treated. From a half on, what is left is the control; at 1 there is none."""
    if at < share:
        return "treatment"
    if at >= 1 - share:
        return "control"
    return "reference" if at >= 1 - reference_until(share) else "rest"


def reference_until(share: float) -> float:
    """Of the devices, counted from the high end: control and reference together at a rung of this share."""
    return min(max(share, min(_WIDER * share, _WIDEST)), 1 - share)
