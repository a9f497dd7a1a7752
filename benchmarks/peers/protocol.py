"""What a worker does between the parent's lines. Only the standard library: peers run in environments of their own."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

NO_DEPS = ("executorch",)
"""What a device installs with `pip --no-deps`: its requirements are for export."""


def serve(start: Callable[[], Callable[[], float]], packages: list[str]) -> None:
    """Prepare, take a first step, then as many as each line of standard input says.

    start: loads everything and returns the step, which returns the loss. packages: what must be installed, their
    requirements are found. Written lines: `{"first_step_ms", "loss", "peak_mib"}`, then for each chunk
    `{"ms": [...], "cpu_ms", "peak_mib", "loss"}`. first_step_ms counts from before anything is imported.
    """
    begin = time.perf_counter()
    step = start()
    loss = step()
    _write(first_step_ms=1e3 * (time.perf_counter() - begin), loss=loss, peak_mib=peak_mib())
    for line in sys.stdin:
        if line.strip() == "install":
            _write(install_mib=installed_mib(packages))
            continue
        taken, cpu = [], time.process_time()
        for _ in range(int(line)):
            begin = time.perf_counter()
            loss = step()
            taken.append(1e3 * (time.perf_counter() - begin))
        _write(ms=taken, cpu_ms=1e3 * (time.process_time() - cpu) / len(taken), peak_mib=peak_mib(), loss=loss)


def peak_mib() -> float:
    """The most memory that this program had resident; getrusage's figure counts the parent's as well."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def installed_mib(packages: list[str]) -> float:
    """Size on disk of these packages and what they require, without extras; of `NO_DEPS` only their own."""
    seen: set[str] = set()
    total, waiting = 0, list(packages)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # required on another platform only
        paths = (Path(str(found.locate_file(file))) for file in found.files or [])
        total += sum(path.stat().st_size for path in paths if path.is_file())
        needed = [r for r in found.requires or [] if "extra ==" not in r and name not in NO_DEPS]
        waiting += [re.split(r"[\s<>=!~;\[(]", r, maxsplit=1)[0] for r in needed]
    return total / (1 << 20)


def _write(**fields: object) -> None:
    print(json.dumps(fields), flush=True)
