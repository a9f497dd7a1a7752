"""What a round cost, phase by phase, as a picture: SVG without any library, for a device has none to draw with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from device_runtime.bundle import write_atomically
from device_runtime.messages import PhaseOverhead, RoundReport

_ROWS: tuple[tuple[str, Callable[[PhaseOverhead], float], str], ...] = (
    ("CPU, ms", lambda p: 1000 * (p.cpu_user_s + p.cpu_system_s), ".0f"),
    ("peak memory, MiB", lambda p: p.peak_mib, ".0f"),
    ("received, bytes", lambda p: p.bytes_down, ",.0f"),
    ("sent, bytes", lambda p: p.bytes_up, ",.0f"),
)
_LEFT, _WIDTH, _BAR, _GAP = 110, 360, 16, 6


def svg(report: RoundReport) -> str:
    """Bars by phase for CPU, memory and bytes; colours that read on light and dark pages."""
    phases = report.phases
    block = len(phases) * (_BAR + _GAP) + 44
    height = 40 + len(_ROWS) * block
    title = escape(f"round {report.round} on {report.engine}: {report.outcome}")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 90} {height}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#808890">',
        f'<text x="0" y="20" font-size="14">{title}</text>',
    ]
    for number, (what, value, form) in enumerate(_ROWS):
        parts += _chart(what, [p.phase for p in phases], [value(p) for p in phases], form, 40 + number * block)
    return "\n".join([*parts, "</svg>\n"])


def _chart(title: str, names: Sequence[str], values: Sequence[float], form: str, top: int) -> list[str]:
    most = max([*values, 0.0]) or 1.0
    parts = [f'<text x="0" y="{top + 14}" font-weight="600">{escape(title)}</text>']
    for n, (name, value) in enumerate(zip(names, values, strict=True)):
        y = top + 24 + n * (_BAR + _GAP)
        width = max(value, 0.0) / most * _WIDTH
        parts += [
            f'<text x="{_LEFT - 8}" y="{y + 12}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2" fill="#4c8bd0"/>',
            f'<text x="{_LEFT + width + 6:.1f}" y="{y + 12}">{value:{form}}</text>',
        ]
    return parts


def write_plot(path: Path, report: RoundReport) -> None:
    """Raises: StoreError."""
    write_atomically(path, svg(report).encode())
