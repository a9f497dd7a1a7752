"""What a whole process costs, from its start to its end: interpreter, imports and all threads included.

A process inherits the high-water mark of the one that started it, and a benchmark holds torch. So a bare interpreter
stands between them: it forks, waits, and hands back what the kernel says of its child alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from device_runtime.errors import CodaError

_LAUNCHER = """
import json, os, sys, time
out, log, words = sys.argv[1], sys.argv[2], sys.argv[3:]
began = time.perf_counter()
child = os.fork()
if child == 0:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.execvp(words[0], words)
_, status, used = os.wait4(child, 0)
wall = time.perf_counter() - began
status = os.waitstatus_to_exitcode(status)
with open(out, "w") as file:
    json.dump([status, used.ru_utime, used.ru_stime, wall, used.ru_maxrss / 1024], file)
"""


@dataclass(frozen=True)
class ProcessCost:
    """Seconds of user and system CPU and of wall time, and the highest resident memory in MiB."""

    cpu_user_s: float
    cpu_system_s: float
    wall_s: float
    peak_mib: float

    @property
    def cpu_s(self) -> float:
        return self.cpu_user_s + self.cpu_system_s


def measured(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> ProcessCost:
    """Run a command to its end; what it says goes to the log.

    Raises:
        CodaError: it failed; the last line that it said is in the text.
    """
    with TemporaryDirectory() as folder:
        out = Path(folder) / "cost"
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(out), str(log), *command]
        subprocess.run(launcher, env=os.environ | dict(environment or {}), check=True)
        status, user, system, wall, peak = json.loads(out.read_text())
    if status:
        said = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        last = said[-1][:300] if said else "it said nothing"
        raise CodaError(f"`{' '.join(command[:5])} …` ended with status {status}: {last}")
    return ProcessCost(user, system, wall, peak)


def coda_command(*words: object) -> list[str]:
    """The command line of a `coda` command in an interpreter like this one."""
    return [sys.executable, "-m", "device_runtime", *map(str, words)]
