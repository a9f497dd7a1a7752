"""What some machines can tell beside CPU time: instructions, energy, temperature, clock. None where one cannot.

Instructions come from perf_event_open(2), for this process and its threads, user space only, which needs
`kernel.perf_event_paranoid` of at most 2. Energy comes from the CPU's own counters (powercap, whole package), or from
the log of an attached power meter (whole board); either includes what else the machine does.
"""

from __future__ import annotations

import csv
import ctypes
import os
import platform
import struct
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from device_runtime.errors import InputError
from device_runtime.schedule import temperature_c

_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_FLAGS = (1 << 1) | (1 << 5) | (1 << 6)  # inherit, exclude_kernel, exclude_hv


@dataclass(frozen=True)
class Reading:
    """instructions: retired so far. energy_j: joules so far. Both from anywhere; None: not known here."""

    instructions: int | None
    energy_j: float | None


class Sensors:
    """Opened once for a process. Use `read` before and after, and `state` after."""

    def __init__(
        self, root: Path = Path("/"), power_csv: Path | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """root: where sys is, for tests. power_csv: a meter's log that is being written, with the columns time_s
        (seconds since 1970) and watts.

        Raises:
            InputError: the log cannot be read, or has other columns.
        """
        self._root, self._clock = root, clock
        self._power = None if power_csv is None else PowerLog(power_csv)
        self._perf = _open_perf()
        self._last_uj: dict[Path, int] = {}
        self._energy_uj = 0

    def read(self) -> Reading:
        return Reading(self._instructions(), self._energy_j())

    def state(self) -> tuple[float | None, float | None]:
        """(temperature of the hottest zone in °C, clock of the first core in MHz)."""
        try:
            khz = int((self._root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq").read_text())
        except (OSError, ValueError):
            return temperature_c(self._root), None
        return temperature_c(self._root), khz / 1000

    def _instructions(self) -> int | None:
        if self._perf is None:
            return None
        try:
            return int(struct.unpack("q", os.read(self._perf, 8))[0])
        except OSError:
            return None

    def _energy_j(self) -> float | None:
        if self._power is not None:
            return self._power.joules(self._clock())
        zones = sorted(self._root.glob("sys/class/powercap/*:[0-9]"))  # packages; their parts are in them
        known = False
        for zone in zones:
            try:
                now, top = (int((zone / name).read_text()) for name in ("energy_uj", "max_energy_range_uj"))
            except (OSError, ValueError):
                continue
            before = self._last_uj.get(zone, now)
            self._energy_uj += now - before if now >= before else now + top - before  # the counter wraps
            self._last_uj[zone], known = now, True
        return self._energy_uj / 1e6 if known else None


class PowerLog:
    """A power meter's log: power between two lines is interpolated."""

    def __init__(self, path: Path) -> None:
        """Raises: InputError."""
        self._path = path
        self.joules(0.0)

    def joules(self, until: float) -> float | None:
        """From the first line to a time; None outside the log.

        Raises:
            InputError: it cannot be read.
        """
        times, watts = self._lines()
        at = bisect_right(times, until)
        if at == 0 or until > times[-1]:
            return None
        total = sum((watts[i] + watts[i - 1]) / 2 * (times[i] - times[i - 1]) for i in range(1, at))
        if at < len(times):
            share = (until - times[at - 1]) / (times[at] - times[at - 1])
            there = watts[at - 1] + share * (watts[at] - watts[at - 1])
            total += (watts[at - 1] + there) / 2 * (until - times[at - 1])
        return total

    def _lines(self) -> tuple[list[float], list[float]]:
        try:
            with self._path.open(newline="") as file:
                rows = csv.DictReader(file)
                if not {"time_s", "watts"} <= set(rows.fieldnames or ()):
                    raise InputError(f"{self._path} needs the columns time_s and watts; it has {rows.fieldnames}")
                pairs = sorted((float(row["time_s"]), float(row["watts"])) for row in rows if row["watts"])
        except (OSError, ValueError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the power meter's log {self._path}: {error}") from None
        return [at for at, _ in pairs], [power for _, power in pairs]


def _open_perf() -> int | None:
    """A counter of this process's instructions; None where the kernel or the machine does not allow one."""
    number = _PERF_EVENT_OPEN.get(platform.machine())
    if number is None or platform.system() != "Linux":
        return None
    attributes = struct.pack("IIQQQQQ", 0, 112, 1, 0, 0, 0, _FLAGS).ljust(112, b"\0")  # hardware, instructions
    libc = ctypes.CDLL(None, use_errno=True)
    found = libc.syscall(number, ctypes.create_string_buffer(attributes, 112), 0, -1, -1, 8)  # PERF_FLAG_FD_CLOEXEC
    return int(found) if found >= 0 else None
