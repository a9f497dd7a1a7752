"""Runs inside the emulated machine, on what the wheel installed there.

guest.py PHASES COMMAND …       a `coda` command, its phases marked for the counting plugin; their names go to PHASES
guest.py --shim BUILT CACHE     put a cross-compiled ExecuTorch shim where the engine looks for it
"""

from __future__ import annotations

import ctypes
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = 7777
"""A system call that no kernel has: the plugin (icount.c) sees it and notes the count."""


def run(phases: Path, words: list[str]) -> int:
    from device_runtime import meter
    from device_runtime.cli import main

    kernel = ctypes.CDLL(None)
    names: list[str] = []
    measured = meter.Meter.phase

    @contextmanager
    def marked(self: meter.Meter, name: str) -> Iterator[None]:
        number = len(names)
        names.append(name)
        with measured(self, name):
            kernel.syscall(MARK, 2 * number)
            try:
                yield
            finally:
                kernel.syscall(MARK, 2 * number + 1)

    meter.Meter.phase = marked  # type: ignore[method-assign]
    status = main(words)
    phases.write_text(json.dumps(names))
    return status


def place_shim(built: str, cache: str) -> int:
    from device_runtime.engines import shim

    # its name says what it was built from and for, so the engine's own code must choose it; only the compiler is ours
    shim._build = lambda root, target: shutil.copy(built, target)  # type: ignore[assignment]
    print(shim.shim_path(Path(cache)))
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "--shim":
        sys.exit(place_shim(*sys.argv[2:]))
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
