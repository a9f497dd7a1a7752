"""The demo's real processes: one server, and devices that know nothing but `coda device`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from device_runtime.errors import CodaError

_START_S = 60


def coda(*words: object, log: Path) -> None:
    """Run a `coda` command in a process of its own; its output goes to the log.

    Raises:
        CodaError: it failed; the last line that it said is in the text.
    """
    command = [sys.executable, "-m", "device_runtime", *map(str, words)]
    with log.open("ab") as file:
        status = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, env=_environment(), check=False
        ).returncode
    if status:
        raise CodaError(f"`coda {' '.join(map(str, words[:2]))}` ended with status {status}: {_last_line(log)}")


@contextmanager
def server(home: Path, log: Path) -> Iterator[str]:
    """A matching server over a home; gives its address. It is stopped gracefully at the end.

    Raises:
        CodaError: it did not come up.
    """
    port_file = home / "port"
    port_file.unlink(missing_ok=True)
    words = ["serve", "--home", str(home), "--port", "0", "--port-file", str(port_file), "--log-level", "warning"]
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "device_runtime", *words], stdout=file, stderr=subprocess.STDOUT, env=_environment()
        )
    try:
        deadline = time.monotonic() + _START_S
        while not port_file.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise CodaError(f"the server did not come up: {_last_line(log)}")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port_file.read_text().strip()}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environment() -> dict[str, str]:
    # one thread each: the demo runs as many processes as there are cores
    return os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1][:300] if lines else "it said nothing"
