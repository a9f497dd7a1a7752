"""The operators' console: releases, their evidence with intervals, what may be done to them. HTML without scripts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from cloud.catalog import AuditLine, Operator
from cloud.report import words
from cloud.report.render import both
from cloud.report.svg import Scale, circle, line, picture, text
from cloud.rollout.evidence import SILENT

POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
ACTIONS = {
    "advance": "Climb to the next rung",
    "pause": "Pause: nobody new gets it, and it is taken from nobody",
    "resume": "Go on",
    "rollback": "Stop for good, and roll back: everyone gets the previous bundle",
}
"""What may be done, in words that a button can carry."""
_POSSIBLE = {"running": ("advance", "pause", "rollback"), "paused": ("resume", "rollback"), "complete": ("rollback",)}
_WIDE = 640
_Z = 1.96


def page(view: str, **given: Any) -> str:
    """view: "login", "list", "release" or "confirm". Light or dark, as the browser prefers.

    given: what the view shows; see `cloud/dashboard/console.html`.
    """
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    filters: dict[str, Callable[..., object]] = {"day": _day, "number": words.number, "percent": words.percent}
    environment.filters.update(filters | {"signed": words.signed, "counted": words.counted, "share": _share})
    template = environment.from_string((files("cloud") / "dashboard" / "console.html").read_text("utf-8"))
    style = Markup((files("cloud") / "report" / "report.css").read_text("utf-8"))
    return template.render(view=view, style=style, actions=ACTIONS, **given)


def release(
    shown: Mapping[str, Any],
    sizes: Mapping[str, int],
    exact: bool,
    lines: Sequence[AuditLine],
    who: Operator,
    csrf: str,
) -> str:
    """shown: by `Releases.shown`. sizes: group -> devices; exact: whether they were counted. csrf: of the session."""
    judgement = shown["judgement"]
    possible = _POSSIBLE.get(shown["state"], ()) if who.role == "releaser" and not shown["retired"] else ()
    return page(
        "release",
        title=shown["name"],
        r=shown,
        rows=_rows(judgement["evidence"]) if judgement else [],
        worth=judgement["finding"]["evidence"] if judgement else {},
        quality=both(lambda width: _quality(judgement, shown["gate"], width), _WIDE) if judgement else Markup(),
        sizes=sizes,
        exact=exact,
        lines=lines,
        who=who,
        csrf=csrf,
        possible=possible,
    )


def wilson(events: int, of: int) -> tuple[float, float, float]:
    """A share, and its 95 % interval at one look (Wilson 1927); the gate's own tests hold at all looks together."""
    if not of:
        return math.nan, 0.0, 1.0
    share = events / of
    middle, half = share + _Z**2 / (2 * of), _Z * math.sqrt(share * (1 - share) / of + _Z**2 / (4 * of * of))
    return share, max(0.0, (middle - half) / (1 + _Z**2 / of)), min(1.0, (middle + half) / (1 + _Z**2 / of))


def _rows(evidence: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a test: treatment and control as (events, of how many, share, low, high)."""
    rows = []
    for name, counts in evidence["events"].items():
        of = evidence["watched" if name == SILENT else "pairs"]
        each = [(count, of, *wilson(count, of)) for count in counts]
        rows.append({"name": name, "treatment": each[0], "control": each[1]})
    return rows


def _quality(judgement: Mapping[str, Any], gate: Mapping[str, Any], width: int) -> Markup:
    """The interval of the difference in AUC, between what stops a release and what lets it climb."""
    found = judgement["finding"]["quality"]
    if not found:
        return Markup()
    estimate, low, high = found
    stop, climb = -gate["quality_tolerance"], -gate["quality_margin"]
    scale = Scale([low, high, stop, climb, 0.0], 14, width - 14)
    body = scale.axis(26, 70, signed=True)
    body += [line(scale(stop), 20, scale(stop), 70, "zero"), line(scale(climb), 20, scale(climb), 70, "range")]
    body += [
        text(scale(stop), 14, "stop below", "small"),
        text(scale(climb), 14, "climb above", "small", "end"),
    ]
    body += [line(scale(low), 48, scale(high), 48, "interval"), circle(scale(estimate), 48, 5.5, "dot coda")]
    said = f"{estimate:+.4f}, between {low:+.4f} and {high:+.4f}"
    return picture(width, 94, "Difference of AUC, treatment less control", said, body)


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(at))


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"
