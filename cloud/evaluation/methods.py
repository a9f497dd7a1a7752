"""The methods that are compared. Each is a small function from a device to the weights that would serve.

To add one: write such a function over `Device`'s stages and name it in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cloud.evaluation.device import Device
from device_runtime.errors import InputError
from device_runtime.model import Weights


@dataclass(frozen=True)
class Method:
    """about: one line for the tables. reference: not a method to be used, but a bound."""

    run: Callable[[Device], Weights]
    about: str
    reference: bool = False


def cloud(device: Device) -> Weights:
    return device.model.base


def local(device: Device) -> Weights:
    return device.tuned("local", device.parts.local)


def coda(device: Device) -> Weights:
    """As in `device_runtime.round`: match, filter, tune on the training part, judge on the held-out one."""
    if not device.enough:
        return device.model.base
    candidates = device.matched()
    found = device.filtered(candidates, "match")
    tuned = device.tuned("coda", device.parts.train, candidates.take(found.kept), found.weights)
    return device.judged("coda", tuned)


METHODS: dict[str, Method] = {
    "cloud": Method(cloud, "the cloud's model as it is"),
    "local": Method(local, "fine-tuned on all local samples"),
    "coda": Method(coda, "matched, filtered, tuned, judged"),
}


def chosen(names: str) -> list[str]:
    """The methods of a comma-separated list, or of `all`; cloud and local are always among them, for the differences.

    Raises:
        InputError: there is no such method.
    """
    if names == "all":
        return list(METHODS)
    asked = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in asked if name not in METHODS]:
        raise InputError(f"no method is called {unknown[0]!r}; there are {', '.join(METHODS)}, or `all`")
    return [name for name in METHODS if name in {"cloud", "local", *asked}]
