"""Plots as inline SVG. Colours are CSS classes, so that one picture serves light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from cloud.report.model import DeviceResult, Difference

WIDTH = 520
_LEFT, _RIGHT, _ROW = 128, 18, 22


def _svg(height: float, title: str, text: str, body: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title><desc>{escape(text)}</desc>{''.join(body)}</svg>"
    )


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _rect(x: float, y: float, width: float, height: float, kind: str, inside: str = "") -> str:
    size = f'width="{max(width, 0):.2f}" height="{height:.1f}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} class="{kind}">{inside}</rect>'


class _Scale:
    """From values to x, over a padded range."""

    def __init__(self, values: Sequence[float], at_least: float, zero: bool = False) -> None:
        low, high = min([*values, 0.0] if zero else values), max([*values, 0.0] if zero else values)
        slack = max(at_least - (high - low), 0) / 2 + 0.06 * max(high - low, at_least)
        self.low, self.high = low - slack, high + slack
        if low >= 0 and high <= 1 and not zero:  # an AUC's axis does not go where no AUC can be
            self.low, self.high = max(self.low, 0.0), min(self.high, 1.0)

    def __call__(self, value: float) -> float:
        return _LEFT + (value - self.low) / (self.high - self.low) * (WIDTH - _LEFT - _RIGHT)

    def axis(self, y: float, ticks: int, form: str) -> list[str]:
        step = (self.high - self.low) / ticks
        found = []
        for i in range(ticks + 1):
            value = self.low + i * step
            anchor = "start" if i == 0 else "end" if i == ticks else "middle"
            found.append(_text(self(value), y + 15, format(value, form), "small", anchor))
            found.append(_line(self(value), 10, self(value), y, "grid"))
        return found


def aucs(devices: Sequence[DeviceResult]) -> str:
    """One row a device: AUC under the cloud's, the locally tuned and CoDA's weights."""
    known = [d for d in devices if d.auc.cloud is not None]
    if not known:
        return ""
    values = [v for d in known for v in (d.auc.cloud, d.auc.local, d.auc.coda) if v is not None]
    scale, bottom = _Scale(values, 0.1), 16 + _ROW * len(known)
    body = scale.axis(bottom, 4, ".2f")
    for number, device in enumerate(sorted(known, key=lambda d: d.auc.cloud or 0, reverse=True)):
        y = 16 + _ROW * number + _ROW / 2
        present = [v for v in (device.auc.cloud, device.auc.local, device.auc.coda) if v is not None]
        body.append(_text(_LEFT - 10, y + 4, f"{_short(device.id)} · {device.engine}", "small", "end"))
        body.append(_line(scale(min(present)), y, scale(max(present)), y, "range"))
        for kind, value in (("local", device.auc.local), ("cloud", device.auc.cloud), ("coda", device.auc.coda)):
            if value is not None:
                radius = 4 if kind == "coda" else 5.5
                body.append(
                    f'<circle cx="{scale(value):.1f}" cy="{y:.1f}" r="{radius}" class="dot {kind}">'
                    f"<title>{kind} {value:.4f}</title></circle>"
                )
    return _svg(bottom + 22, "AUC per device", "Each row is a device; dots are its AUC on later events.", body)


def differences(devices: Sequence[DeviceResult], found: Difference) -> str:
    """CoDA minus cloud for each device, and the mean with its interval."""
    pairs = [(d.auc.coda - d.auc.cloud, d.id) for d in devices if d.auc.coda is not None and d.auc.cloud is not None]
    if not pairs or found.mean is None or found.ci95 is None:
        return ""
    pairs.sort()
    scale = _Scale([*(v for v, _ in pairs), *found.ci95], 0.02, zero=True)
    bottom = 16 + _ROW * (len(pairs) + 1) + 8
    body = [*scale.axis(bottom, 4, "+.3f"), _line(scale(0), 10, scale(0), bottom, "zero")]
    for number, (value, name) in enumerate(reversed(pairs)):
        y = 16 + _ROW * number + _ROW / 2
        left, right = sorted((scale(0), scale(value)))
        kind = "better" if value > 0 else "worse"
        body.append(_text(_LEFT - 10, y + 4, _short(name), "small", "end"))
        body.append(_rect(left, y - 6, right - left, 12, kind))
        body.append(f'<circle cx="{scale(value):.1f}" cy="{y:.1f}" r="3" class="dot {kind}"/>')
    y = 16 + _ROW * len(pairs) + _ROW / 2 + 6
    body.append(_text(_LEFT - 10, y + 4, "mean, 95 %", "small strong", "end"))
    body.append(_line(scale(found.ci95[0]), y, scale(found.ci95[1]), y, "interval"))
    body.append(f'<circle cx="{scale(found.mean):.1f}" cy="{y:.1f}" r="5" class="dot coda"/>')
    return _svg(bottom + 22, "CoDA minus cloud, per device", f"Mean {found.mean:+.4f}, {found.claim}.", body)


def bars(rows: Mapping[str, Mapping[str, float]], unit: str, title: str, form: str = ".3f") -> str:
    """Stacked bars: row -> part -> value. Parts are coloured by the order of their first appearance."""
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))
    most = max((sum(row.values()) for row in rows.values()), default=0)
    if not most:
        return ""
    body, y = [], 8.0
    for name, row in rows.items():
        x = float(_LEFT)
        body.append(_text(_LEFT - 10, y + 16, name, "small", "end"))
        for part, value in row.items():
            width = value / most * (WIDTH - _LEFT - _RIGHT - 70)
            note = f"<title>{escape(part)} {value:{form}} {unit}</title>"
            body.append(_rect(x, y, width, 22, f"p{parts.index(part) % 9}", note))
            x += width
        body.append(_text(x + 6, y + 16, f"{sum(row.values()):{form}} {unit}", "small"))
        y += 32
    x, y = float(_LEFT), y + 8
    for number, part in enumerate(parts):
        needed = 26 + 7 * len(part)
        if x + needed > WIDTH:
            x, y = float(_LEFT), y + 18
        body.append(_rect(x, y, 11, 11, f"p{number % 9}"))
        body.append(_text(x + 16, y + 10, part, "small"))
        x += needed
    return _svg(y + 22, title, "; ".join(f"{n}: {sum(r.values()):{form}} {unit}" for n, r in rows.items()), body)


def histogram(edges: Sequence[float], kept: Sequence[int], dropped: Sequence[int]) -> str:
    """Candidates by the filter's score; kept ones stand on the dropped."""
    most = max((a + b for a, b in zip(kept, dropped, strict=True)), default=0)
    if not most:
        return ""
    left, base, height = 50.0, 170.0, 150.0
    step = (WIDTH - left - _RIGHT) / len(kept)
    body = [_line(left, base, WIDTH - _RIGHT, base, "zero"), _text(left - 8, 26, str(most), "small", "end")]
    for i, (good, bad) in enumerate(zip(kept, dropped, strict=True)):
        low, high = bad / most * height, good / most * height
        x = left + i * step + 1
        body.append(_rect(x, base - low, step - 2, low, "dropped"))
        body.append(_rect(x, base - low - high, step - 2, high, "keptbar"))
    for i in range(0, len(edges), max(1, (len(edges) - 1) // 4)):
        body.append(_text(left + i * step, base + 16, f"{edges[i]:.2f}", "small", "middle"))
    body.append(_text((left + WIDTH) / 2, base + 34, "probability of being the user's own", "small", "middle"))
    return _svg(base + 44, "What the filter kept", f"{sum(kept)} candidates kept, {sum(dropped)} dropped.", body)


def _short(name: str) -> str:
    return name if len(name) <= 11 else name[:10] + "…"
