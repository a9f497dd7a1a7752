"""Giving way: engines whose graphs ask before each run whether to go on.

A training step takes some milliseconds, so asking between steps is enough to be out of the user's way within a tenth of
a second, without a thread and without a change to what is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from device_runtime.engines import Array, Arrays, Engine, Graph, GraphSpec

Pulse = Callable[[], None]
"""Called between steps. May wait; raises `Yielded` to have the round put aside."""


class _AskingGraph:
    def __init__(self, graph: Graph, pulse: Pulse) -> None:
        self.spec = graph.spec
        self._graph, self._pulse = graph, pulse

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        self._pulse()
        return self._graph(inputs)


class AskingEngine:
    """An engine whose graphs call `pulse` before each run. name, version, format: of the engine itself."""

    def __init__(self, engine: Engine, pulse: Pulse) -> None:
        self.name, self.version, self.format = engine.name, engine.version, engine.format
        self._engine, self._pulse = engine, pulse

    def load(self, path: Path, spec: GraphSpec) -> Graph:
        return _AskingGraph(self._engine.load(path, spec), self._pulse)
