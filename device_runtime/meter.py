"""What a phase of a round costs: CPU, peak memory, storage and network, from inside the process.

Only what a program may ask about itself is used (getrusage, /proc/self, bytes counted by our own sockets), because
Android hides the rest from apps. Nothing is sampled and nothing traced, so the phase runs as it would without.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from device_runtime.counting import ByteCounter, Traffic
from device_runtime.errors import InputError
from device_runtime.messages import PhaseOverhead
from device_runtime.sensors import Reading, Sensors

_RESET_PEAK = "5"
"""To /proc/self/clear_refs: set the high-water mark back to what is resident now (proc_pid_clear_refs(5))."""


@dataclass(frozen=True)
class _Cpu:
    """Seconds of this process and of the children that it has waited for."""

    user_s: float
    system_s: float

    @staticmethod
    def now() -> _Cpu:
        own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return _Cpu(own.ru_utime + children.ru_utime, own.ru_stime + children.ru_stime)


class Meter:
    """Measures phases, one after another, and keeps their records.

    CPU counts all threads of the process. Peak memory is that of the whole process during the phase, what was
    resident before it included; where the kernel allows it, each phase sets the process's high-water mark back.

    Attributes:
        records: of the phases that have ended, in order, failed ones included.
        cost_s: wall seconds that the meter itself took so far; they are in no phase.
    """

    def __init__(self, home: Path, counter: ByteCounter | None, sensors: Sensors | None = None) -> None:
        """home: the folder whose growth counts as stored. counter: None where there is no network. sensors: what else
        is to be read before and after each phase."""
        self._home = home
        self._sensors = sensors
        self._counter = counter
        self._running = ""
        self.records: list[PhaseOverhead] = []
        self.cost_s = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure what is done inside, also if it raises.

        Raises:
            InputError: another phase is still running.
        """
        if self._running:
            raise InputError(f"phase {name!r} cannot start within phase {self._running!r}: phases follow one another")
        entered = time.perf_counter()
        self._running = name
        stored, traffic = _stored(self._home), self._traffic()
        resettable = _reset_peak()
        sensed = self._sensors.read() if self._sensors else Reading(None, None)
        cpu, started = _Cpu.now(), time.perf_counter()
        self.cost_s += started - entered
        try:
            yield
        finally:
            ended, cpu_after = time.perf_counter(), _Cpu.now()
            after = self._sensors.read() if self._sensors else Reading(None, None)
            temperature_c, frequency_mhz = self._sensors.state() if self._sensors else (None, None)
            peak_mib, peak_source = _peak_mib(resettable)
            moved = self._traffic() - traffic
            self.records.append(
                PhaseOverhead(
                    phase=name,
                    cpu_user_s=cpu_after.user_s - cpu.user_s,
                    cpu_system_s=cpu_after.system_s - cpu.system_s,
                    wall_s=ended - started,
                    peak_mib=peak_mib,
                    peak_source=peak_source,
                    bytes_stored=_stored(self._home) - stored,
                    bytes_up=moved.up,
                    bytes_down=moved.down,
                    instructions=_difference(sensed.instructions, after.instructions),
                    energy_j=_difference(sensed.energy_j, after.energy_j),
                    temperature_c=temperature_c,
                    frequency_mhz=frequency_mhz,
                )
            )
            self._running = ""
            self.cost_s += time.perf_counter() - ended

    def total(self) -> PhaseOverhead:
        """All phases as one, called "total": sums, and the highest peak."""
        return PhaseOverhead(
            phase="total",
            cpu_user_s=sum(r.cpu_user_s for r in self.records),
            cpu_system_s=sum(r.cpu_system_s for r in self.records),
            wall_s=sum(r.wall_s for r in self.records),
            peak_mib=max((r.peak_mib for r in self.records), default=0.0),
            peak_source="phase" if all(r.peak_source == "phase" for r in self.records) else "process",
            bytes_stored=sum(r.bytes_stored for r in self.records),
            bytes_up=sum(r.bytes_up for r in self.records),
            bytes_down=sum(r.bytes_down for r in self.records),
        )

    def _traffic(self) -> Traffic:
        return Traffic() if self._counter is None else self._counter.total


_Amount = TypeVar("_Amount", int, float)


def _difference(before: _Amount | None, after: _Amount | None) -> _Amount | None:
    return None if before is None or after is None else after - before


def merge(records: Iterable[PhaseOverhead]) -> dict[str, float | int]:
    """The overhead record of a round: cpu_s (user and system), peak_mib (the highest), bytes_down, bytes_up,
    bytes_stored (negative where phases freed more than they wrote)."""
    phases = list(records)
    return {
        "cpu_s": sum(r.cpu_user_s + r.cpu_system_s for r in phases),
        "peak_mib": max((r.peak_mib for r in phases), default=0.0),
        "bytes_down": sum(r.bytes_down for r in phases),
        "bytes_up": sum(r.bytes_up for r in phases),
        "bytes_stored": sum(r.bytes_stored for r in phases),
    }


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    except OSError:  # not Linux, or not allowed
        return False
    return _high_water_kib() is not None


def _high_water_kib() -> int | None:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return None


def _peak_mib(resettable: bool) -> tuple[float, str]:
    """Peak resident memory and its source, as in `PhaseOverhead`."""
    kib = _high_water_kib() if resettable else None
    if kib is not None:
        return kib / 1024, "phase"
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / (1 << 20), "process"


def _stored(folder: Path) -> int:
    """Bytes of all regular files below a folder; 0 if there is none.

    What vanishes meanwhile, or may not be seen, counts nothing: metering never fails a round.
    """
    total, folders = 0, [os.fspath(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        total += _size(entry)
        except OSError:
            continue
    return total


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except OSError:
        return 0
