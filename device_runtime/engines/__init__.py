"""Engines: what executes graphs on a device.

An engine loads a graph file and hands back a callable over named NumPy arrays. Graphs are pure: a training step
takes weights and gives new ones. `available()` says which engines work here and, for the others, why not.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Protocol

from device_runtime.engines.spec import Array, Arrays, GraphSpec, TensorSpec
from device_runtime.errors import EngineUnavailable, InputError

__all__ = [
    "ENGINES",
    "Array",
    "Arrays",
    "Bound",
    "Engine",
    "Graph",
    "GraphSpec",
    "TensorSpec",
    "available",
    "installed",
    "open_engine",
]

ENGINES = ("onnx", "executorch", "reference")
"""By preference: the first that a bundle has graphs for and that works here is used."""


class Bound(Protocol):
    """A graph with its weights and optimizer state: see `binding.Binding`, which says what is raised."""

    def step(self, batch: Arrays) -> dict[str, Array]:
        """Run once on a batch: the outputs that are not carried."""
        ...

    def values(self) -> dict[str, Array]:
        """Copies of the carried tensors as they are now."""
        ...


class Graph(Protocol):
    """A loaded graph."""

    spec: GraphSpec

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        """Run once. The arrays given are not written to; those returned are the caller's.

        Raises:
            GraphInputError: a tensor does not fit the spec; nothing was run.
            EngineError: the engine failed while running.
        """
        ...

    def bind(self, values: Arrays) -> Bound:
        """The graph with weights that stay with the engine between steps, which is how to train: nothing is copied
        but the batch. The arrays given are not written to.

        Raises:
            GraphInputError: a tensor is missing, does not fit, or is not finite.
        """
        ...


class Engine(Protocol):
    """A way to execute graphs.

    name: as in `ENGINES`. version: of the software behind it. format: the manifest's key for graph files it reads.
    """

    name: str
    version: str
    format: str

    def load(self, path: Path, spec: GraphSpec) -> Graph:
        """Load a verified graph file.

        Raises:
            EngineError: the file is not a graph for this engine and version.
        """
        ...


def open_engine(name: str, threads: int = 1, cache: Path | None = None) -> Engine:
    """The engine of that name, with at most `threads` threads for computing.

    cache: the folder for what an engine must build at first use; None: the user's cache (`shim.cache_folder`).

    Raises:
        EngineUnavailable: with the reason, and what to install.
        InputError: no such engine, or fewer than one thread.
    """
    if name not in ENGINES:
        raise InputError(f"no engine is called {name!r}; there are {', '.join(ENGINES)}")
    if threads < 1:
        raise InputError(f"an engine needs at least one thread, not {threads}")
    module = importlib.import_module(f"device_runtime.engines.{name}")
    create: Callable[[int, Path | None], Engine] = module.create
    return create(threads, cache)


def installed() -> dict[str, str]:
    """Engine name -> version of the software behind it, "" if that is not installed. Imports nothing: to say what
    a device has must not cost what using it costs."""
    software = {"onnx": "onnxruntime", "executorch": "executorch", "reference": "onnx"}
    found = {}
    for name in ENGINES:
        try:
            found[name] = metadata.version(software[name])
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def available(cache: Path | None = None) -> dict[str, str]:
    """Engine name -> "" where it works here, else the reason why not."""
    found = {}
    for name in ENGINES:
        try:
            open_engine(name, cache=cache)
            found[name] = ""
        except EngineUnavailable as reason:
            found[name] = str(reason)
    return found
