"""The dashboard as one HTML page: no script, nothing that a browser would fetch; it loads itself anew by and by."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.resources import files

import jinja2
from markupsafe import Markup

from cloud.dashboard import plots
from cloud.dashboard.look import ROUNDS, SAME, Look
from cloud.report import words
from cloud.report.render import both

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
_WIDE = 1032


def page(look: Look) -> str:
    """Light or dark, as the browser prefers; from a phone's width to a desk's."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    filters: dict[str, Callable[..., object]] = {
        "size": words.size,
        "signed": words.signed,
        "percent": words.percent,
        "number": words.number,
        "counted": words.counted,
        "age": _age,
        "ms": _ms,
        "day": _day,
    }
    environment.filters.update(filters)
    template = environment.from_string((files("cloud") / "dashboard" / "page.html").read_text("utf-8"))
    gain = look.gain
    return template.render(
        look=look,
        style=Markup((files("cloud") / "report" / "report.css").read_text("utf-8")),
        newest=ROUNDS,
        same_within=SAME,
        segments=both(lambda width: plots.segments(look.segments, width), _WIDE),
        latencies=both(lambda width: plots.bars("Matches by seconds", look.match_counts, "s", "p0", width)),
        recalls=both(lambda width: plots.bars("Sampled recall", look.recall_counts, "", "p4", width)),
        outcomes=both(lambda width: plots.outcomes(look.rounds, width)),
        gains=both(lambda width: plots.gains(look.gains, gain.served, width) if gain else Markup()),
    )


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{1e3 * seconds:.1f} ms" if seconds < 0.1 else f"{1e3 * seconds:,.0f} ms"


def _age(seconds: float) -> str:
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            return words.counted(int(seconds // length), unit)
    return words.counted(int(seconds), "second")


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(at))
