"""What every benchmark shares: the JSON that others script against, and the table that people read."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

import device_runtime
from device_runtime.bundle import write_atomically

Row = Mapping[str, object]


def now() -> str:
    """UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def machine() -> dict[str, object]:
    """What the figures were measured on. Nothing that names the machine or its owner."""
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def write(path: str | None, command: str, started: str, rows: Sequence[Row], **more: object) -> None:
    """The JSON of a benchmark; nothing if no path was given. Raises: StoreError."""
    if path:
        result = {
            "command": command,
            "version": device_runtime.__version__,
            "machine": machine(),
            "started": started,
            **more,
            "rows": list(rows),
        }
        write_atomically(Path(path), msgspec.json.format(msgspec.json.encode(result)) + b"\n")


def table(rows: Sequence[Row], columns: Mapping[str, str]) -> str:
    """Rows as text. columns: field -> format, such as ".2f", or "" for words; a field that is None shows as "-"."""
    cells = [[_cell(row.get(name), form) for name, form in columns.items()] for row in rows]
    titles = [name.replace("_", " ") for name in columns]
    widths = [max(len(line[i]) for line in (titles, *cells)) for i in range(len(titles))]
    left = [not form for form in columns.values()]
    return "\n".join(
        "  ".join(c.ljust(w) if side else c.rjust(w) for c, w, side in zip(line, widths, left, strict=True)).rstrip()
        for line in (titles, *cells)
    )


def _cell(value: object, form: str) -> str:
    return "-" if value is None else format(value, form)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
