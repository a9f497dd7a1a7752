"""What a round cost, as Prometheus text (exposition format 0.0.4), for node_exporter's textfile collector."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from device_runtime.bundle import write_atomically
from device_runtime.messages import PhaseOverhead, RoundReport

_METRICS: tuple[tuple[str, str, Callable[[PhaseOverhead], float | None]], ...] = (
    ("cpu_seconds", "CPU seconds, user and system", lambda p: p.cpu_user_s + p.cpu_system_s),
    ("wall_seconds", "Seconds by the wall clock", lambda p: p.wall_s),
    ("peak_bytes", "Highest resident memory", lambda p: p.peak_mib * (1 << 20)),
    ("stored_bytes", "Growth of the device's folder", lambda p: p.bytes_stored),
    ("sent_bytes", "Bytes sent, counted at the socket", lambda p: p.bytes_up),
    ("received_bytes", "Bytes received, counted at the socket", lambda p: p.bytes_down),
    ("instructions", "Instructions retired in user space", lambda p: p.instructions),
    ("energy_joules", "Energy of the whole package or board", lambda p: p.energy_j),
    ("temperature_celsius", "Hottest zone at the end", lambda p: p.temperature_c),
    ("frequency_hertz", "Clock of the first core at the end", lambda p: p.frequency_mhz and p.frequency_mhz * 1e6),
)


def text(report: RoundReport) -> str:
    """One gauge a figure, labelled by phase; a phase that was done twice is summed, its peak the higher one."""
    lines = []
    for name, told, value in _METRICS:
        found: dict[str, float] = {}
        for phase in report.phases:
            if (now := value(phase)) is not None:
                before = found.get(phase.phase, 0.0)
                highest = name in ("peak_bytes", "temperature_celsius", "frequency_hertz")
                found[phase.phase] = max(before, now) if highest else before + now
        if found:
            lines += [f"# HELP coda_round_{name} {told}.", f"# TYPE coda_round_{name} gauge"]
            lines += [f'coda_round_{name}{{phase="{phase}"}} {amount:.9g}' for phase, amount in found.items()]
    counts = (("local_samples", report.local), ("candidates", report.candidates), ("kept_candidates", report.kept))
    for name, count in (*counts, ("activated", int(report.outcome == "activated"))):
        lines += [f"# TYPE coda_round_{name} gauge", f"coda_round_{name} {count}"]
    return "\n".join(lines) + "\n"


def write_prometheus(path: Path, report: RoundReport) -> None:
    """Whole or not at all, as the collector wants it. Raises: StoreError."""
    write_atomically(path, text(report).encode())
    path.chmod(0o644)  # the collector is another user
