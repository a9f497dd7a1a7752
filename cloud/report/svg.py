"""Just enough SVG for the report. Colours and type are CSS classes, so that one picture serves light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from markupsafe import Markup

_WIDTHS = {"W": 12.0, "M": 10.5, "m": 11.8, "w": 10.0, "@": 12.1, "%": 11.5, "…": 12.1}


def picture(width: float, height: float, title: str, text: str, body: Sequence[str]) -> Markup:
    """title and text: for those who do not see it."""
    return Markup(
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title><desc>{escape(text)}</desc>{''.join(body)}</svg>"
    )


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def rect(x: float, y: float, width: float, height: float, kind: str, note: str = "", round_by: float = 0) -> str:
    """note: shown on hovering."""
    size = f'width="{max(width, 0):.2f}" height="{max(height, 0):.2f}"'
    corner = f' rx="{round_by:.1f}"' if round_by else ""
    return f'<rect x="{x:.2f}" y="{y:.2f}" {size}{corner} class="{kind}">{_note(note)}</rect>'


def circle(x: float, y: float, radius: float, kind: str, note: str = "") -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" class="{kind}">{_note(note)}</circle>'


def diamond(x: float, y: float, radius: float, kind: str, note: str = "") -> str:
    r = f"{radius:.1f}"
    corners = f"M{x:.1f} {y - radius:.1f}l{r} {r}l-{r} {r}l-{r} -{r}z"
    return f'<path d="{corners}" class="{kind}">{_note(note)}</path>'


def arrow(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight arrow; its head ends at (x2, y2)."""
    length = math.hypot(x2 - x1, y2 - y1)
    ux, uy = (x2 - x1) / length, (y2 - y1) / length
    bx, by = x2 - 7 * ux, y2 - 7 * uy
    head = f"M{x2:.1f} {y2:.1f}L{bx - 4 * uy:.1f} {by + 4 * ux:.1f}L{bx + 4 * uy:.1f} {by - 4 * ux:.1f}z"
    return f'{line(x1, y1, bx, by, kind)}<path d="{head}" class="{kind} head"/>'


def width_of(words: str) -> float:
    """About the width of small type, px, where the font is as wide as DejaVu Sans; others are narrower."""
    return sum(_WIDTHS.get(c) or (7.7 if c.islower() or c.isdigit() else 8.8 if c.isascii() else 12.0) for c in words)


def shorten(name: str, most: int) -> str:
    """Names differ at either end, so what is too long loses its middle."""
    if len(name) <= most:
        return name
    tail = (most - 1) // 2
    return f"{name[: most - 1 - tail]}…{name[len(name) - tail :]}"


class Scale:
    """From values to x. The range is widened to round numbers; `ticks` lie on them, zero always among them if it is
    within the range."""

    def __init__(self, values: Sequence[float], left: float, right: float, *, about: int = 4) -> None:
        """values: what must fit. left, right: px. about: how many steps to aim at."""
        low, high = min(values), max(values)
        if high - low < 1e-9:
            low, high = low - 0.01, high + 0.01
        self.step = _round_step((high - low) / about)
        first, last = math.floor(low / self.step + 1e-9), math.ceil(high / self.step - 1e-9)
        self.ticks = [number * self.step for number in range(first, last + 1)]
        self.left, self.right = left, right

    def __call__(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def axis(self, top: float, bottom: float, *, signed: bool = False) -> list[str]:
        """Grid lines, and their values below."""
        places = max(0, -math.floor(math.log10(self.step) + 1e-9))
        body = []
        for value in self.ticks:
            plus = "+" if signed and value > 0 else ""
            words = plus + f"{value:.{places}f}".replace("-", "−") if abs(value) > 1e-12 else "0"
            body.append(line(self(value), top, self(value), bottom, "grid"))
            body.append(text(self(value), bottom + 16, words, "small", "middle"))
        return body


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _note(words: str) -> str:
    return f"<title>{escape(words)}</title>" if words else ""
