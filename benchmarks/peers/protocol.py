"""What a worker does between the parent's lines. Only the standard library: peers run in environments of their own."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

NO_DEPS = ("executorch",)
"""What a device installs with `pip --no-deps`: its requirements are for export."""


class Trainer(NamedTuple):
    """step: takes so many steps, at most per_call, and gives the loss of the last. weights: parameter name, as in
    PyTorch -> NumPy array, as it is now."""

    step: Callable[[int], float]
    weights: Callable[[], Mapping[str, Any]]
    per_call: int = 1


def serve(start: Callable[[], Trainer], packages: list[str], no_deps: tuple[str, ...] = NO_DEPS) -> None:
    """Prepare, take a first step, then do what each line of standard input says.

    start: loads everything. packages: what must be installed,
    their requirements are found, but not those of `no_deps`. Lines and answers, both of one line:

    - (nothing yet): `{"first_step_ms", "loss", "peak_mib", "steps_per_call"}`; first_step_ms counts from before
      anything is imported.
    - a number: that many steps, as many in a call as fit; `{"ms": [...], "cpu_ms", "peak_mib", "loss"}`: ms has a
      number for each call, divided by its steps, cpu_ms is the mean of a step, loss that of the last.
    - `weights FOLDER`: each parameter into `FOLDER/NAME.npy`; `{"weights": [names]}`.
    - `install`: `{"install_mib"}`.
    """
    begin = time.perf_counter()
    trainer = start()
    loss = trainer.step(1)
    first = 1e3 * (time.perf_counter() - begin)
    _write(first_step_ms=first, loss=loss, peak_mib=peak_mib(), steps_per_call=trainer.per_call)
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "install":
            _write(install_mib=installed_mib(packages, no_deps))
        elif word == "weights":
            _write(weights=_save(trainer.weights(), Path(rest)))
        else:
            count, taken, cpu = int(word), [], time.process_time()
            for done in range(0, count, trainer.per_call):
                part = min(trainer.per_call, count - done)
                begin = time.perf_counter()
                loss = trainer.step(part)
                taken.append(1e3 * (time.perf_counter() - begin) / part)
            _write(ms=taken, cpu_ms=1e3 * (time.process_time() - cpu) / count, peak_mib=peak_mib(), loss=loss)


def _save(weights: Mapping[str, Any], folder: Path) -> list[str]:
    import numpy as np

    for name, array in weights.items():
        np.save(folder / f"{name}.npy", array)
    return sorted(weights)


def peak_mib() -> float:
    """The most memory that this program had resident; getrusage's figure counts the parent's as well."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def installed_mib(packages: list[str], no_deps: tuple[str, ...] = NO_DEPS) -> float:
    """Size on disk of these packages and what they require, without extras; of `no_deps` only their own."""
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
        needed = [r for r in found.requires or [] if "extra ==" not in r and name not in no_deps]
        waiting += [re.split(r"[\s<>=!~;\[(]", r, maxsplit=1)[0] for r in needed]
    return total / (1 << 20)


def _write(**fields: object) -> None:
    print(json.dumps(fields), flush=True)
