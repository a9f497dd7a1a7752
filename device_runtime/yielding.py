"""Giving way: engines whose graphs ask before each run whether to go on.

A training step takes some milliseconds, so asking between steps is enough to be out of the user's way within a tenth of
a second, without a thread and without a change to what is computed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from device_runtime.errors import Yielded

if TYPE_CHECKING:
    from device_runtime.engines import Array, Arrays, Bound, Engine, Graph, GraphSpec

Pulse = Callable[[], None]
"""Called between steps. May wait; raises `Yielded` to have the round put aside."""


class _AskingGraph:
    def __init__(self, graph: Graph, pulse: Pulse) -> None:
        self.spec = graph.spec
        self._graph, self._pulse = graph, pulse

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        self._pulse()
        return self._graph(inputs)

    def bind(self, values: Arrays) -> Bound:
        return _AskingBound(self._graph.bind(values), self._pulse)


class _AskingBound:
    def __init__(self, bound: Bound, pulse: Pulse) -> None:
        self._bound, self._pulse = bound, pulse

    def step(self, batch: Arrays) -> dict[str, Array]:
        self._pulse()
        return self._bound.step(batch)

    def values(self) -> dict[str, Array]:
        return self._bound.values()


class AskingEngine:
    """An engine whose graphs call `pulse` before each run. name, version, format: of the engine itself."""

    def __init__(self, engine: Engine, pulse: Pulse) -> None:
        self.name, self.version, self.format = engine.name, engine.version, engine.format
        self._engine, self._pulse = engine, pulse

    def load(self, path: Path, spec: GraphSpec) -> Graph:
        return _AskingGraph(self._engine.load(path, spec), self._pulse)


_GLANCE_S = 0.02


class GiveWay:
    """The pulse of a scheduled round: waits while the app is in front, and has the round put aside in the end.

    It looks for the file `HOME/foreground`, which the app (or `touch`) makes and removes, and at `stopping`, which a
    signal handler sets.
    """

    def __init__(
        self,
        foreground: Path,
        *,
        cpu_s: float,
        memory_mib: float,
        patience_s: float,
        sleep: Callable[[float], None] = time.sleep,
        cpu_clock: Callable[[], float] = time.process_time,
        resident_mib: Callable[[], float] | None = None,
    ) -> None:
        """cpu_s: that may still be used. memory_mib: resident memory that the process may have. patience_s: to wait in
        memory for the app to leave. cpu_clock: CPU seconds of this process."""
        self._foreground, self._patience_s = foreground, patience_s
        self._until_s, self._memory_mib = cpu_clock() + cpu_s, memory_mib
        self._sleep, self._cpu_clock = sleep, cpu_clock
        self._resident_mib = resident_mib or _resident_mib
        self.stopping = False

    def __call__(self) -> None:
        """Raises: Yielded."""
        waited = 0.0
        while not self.stopping and self._foreground.exists():
            if waited >= self._patience_s:
                raise Yielded("the app is in front; the round goes on from its last step when it has left")
            self._sleep(_GLANCE_S)
            waited += _GLANCE_S
        if self.stopping:
            raise Yielded("asked to stop; the round goes on from its last step when it is started again")
        if self._cpu_clock() >= self._until_s:
            raise Yielded("today's CPU seconds are used up; the round goes on from its last step tomorrow")
        if (resident := self._resident_mib()) > self._memory_mib:
            raise Yielded(f"{resident:.0f} MiB are resident, {self._memory_mib:g} are allowed: raise memory_mib")


def _resident_mib() -> float:
    """0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:  # noqa: PTH123  called before every step: pathlib costs as much again
            return int(file.read().split()[1]) * _PAGE / (1 << 20)
    except OSError:
        return 0.0


_PAGE = os.sysconf("SC_PAGE_SIZE")
