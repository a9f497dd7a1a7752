"""The plots of an evaluation's page. Each is drawn for a width in px."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup

from cloud.evaluation.result import Knob, Result
from cloud.evaluation.statistics import BEYOND, Difference, MethodResult
from cloud.report import words
from cloud.report.svg import Scale, circle, line, picture, rect, text, width_of

_TOP, _ROW, _RIGHT = 8, 26, 24


def forest(methods: Sequence[MethodResult], of: Callable[[MethodResult], Difference], what: str, width: int) -> Markup:
    """One row a method: the mean difference and its interval."""
    return _rows([(m.name, of(m), "bound" if m.reference else m.name) for m in methods], what, width)


def strata(method: MethodResult, width: int) -> Markup:
    """One row a stratum of local sample counts: the difference from the cloud."""
    rows = [(f"{s.local} local, {words.counted(s.users, 'user')}", s.vs_cloud, method.name) for s in method.strata]
    return _rows(rows, f"{method.name} minus cloud, by local samples", width)


def knobs(sweep: Sequence[Knob], name: str, width: int) -> Markup:
    """One row a heterogeneity: the difference of a method from the cloud."""
    rows = [
        (f"heterogeneity {knob.heterogeneity:g}", m.vs_cloud, name)
        for knob in sweep
        for m in knob.methods
        if m.name == name
    ]
    return _rows(rows, f"{name} minus cloud, by heterogeneity", width)


def by_user(result: Result, name: str, width: int) -> Markup:
    """Every examined user's difference from the cloud, a bar each, from the worst to the best."""
    differences = np.sort([user.aucs[name] - user.aucs["cloud"] for user in result.examined])
    scale = Scale([float(differences.min()), float(differences.max()), -BEYOND, BEYOND], 8, width - _RIGHT, about=5)
    tall = min(12.0, 320 / len(differences))
    bottom = _TOP + tall * len(differences)
    body = scale.axis(_TOP, bottom, signed=True)
    for number, value in enumerate(differences.tolist()):
        kind = "better" if value > BEYOND else "worse" if value < -BEYOND else "same"
        start, end = sorted((scale(0), scale(value)))
        body.append(rect(start, _TOP + tall * number, max(end - start, 0.5), tall * 0.9, kind, f"{value:+.4f}"))
    body.append(line(scale(0), _TOP, scale(0), bottom, "zero"))
    told = f"From {differences[0]:+.4f} to {differences[-1]:+.4f}, median {np.median(differences):+.4f}."
    return picture(width, bottom + 24, f"{name} minus cloud, by user", told, body)


def cost_against_gain(methods: Sequence[MethodResult], width: int) -> Markup:
    """CPU seconds across, the difference from the cloud up."""
    known = [m for m in methods if not m.reference]
    across = Scale([0.0, *(m.cost.cpu_s for m in known)], 56, width - 110)
    height = 300.0
    up = Scale([0.0, *(m.vs_cloud.mean for m in known)], height - 30, _TOP)
    body = across.axis(_TOP, height - 30)
    for value in up.ticks:
        body.append(line(56, up(value), width - 110, up(value), "grid"))
        body.append(text(48, up(value) + 4, words.signed(value), "small", "end"))
    taken: list[float] = []
    for m in sorted(known, key=lambda m: -m.vs_cloud.mean):
        x, y = across(m.cost.cpu_s), up(m.vs_cloud.mean)
        note = f"{m.name}: {m.cost.cpu_s:.3f} s, {m.vs_cloud.mean:+.4f}"
        body.append(circle(x, y, 5, f"dot {_colour(m.name)}", note))
        label = max([y, *(other + 13 for other in taken if abs(other - y) < 200)]) if taken else y
        taken.append(label)
        body.append(line(x + 5, y, across.right + 4, label, "grid"))
        body.append(text(across.right + 8, label + 4, m.name, "small"))
    body.append(text((56 + across.right) / 2, height + 4, "CPU seconds of a round", "small", "middle"))
    told = "; ".join(f"{m.name} {m.cost.cpu_s:.2f} s {m.vs_cloud.mean:+.4f}" for m in known)
    tall = max(height + 12, max(taken) + 12)
    return picture(width, tall, "Gain over the cloud against CPU seconds", told, body)


def _rows(rows: Sequence[tuple[str, Difference, str]], what: str, width: int) -> Markup:
    left = 16 + max(width_of(name) for name, _, _ in rows)
    every = [value for _, found, _ in rows for value in (found.mean, *(found.ci95 or ()))]
    scale, bottom = Scale([0.0, *every], left, width - _RIGHT, about=4), _TOP + _ROW * len(rows)
    body = [*scale.axis(_TOP, bottom, signed=True), line(scale(0), _TOP, scale(0), bottom, "zero")]
    for number, (name, found, kind) in enumerate(rows):
        y = _TOP + _ROW * (number + 0.5)
        body.append(text(left - 12, y + 4, name, "small strong" if kind == "coda" else "small", "end"))
        if found.ci95:
            body.append(line(scale(found.ci95[0]), y, scale(found.ci95[1]), y, "interval"))
        body.append(circle(scale(found.mean), y, 5, f"dot {_colour(kind)}", f"{name}: {_told(found)}"))
    told = "; ".join(f"{name} {_told(found)}" for name, found, _ in rows)
    return picture(width, bottom + 24, what, told, body)


def _told(found: Difference) -> str:
    return f"{found.mean:+.4f}" + (f" [{found.ci95[0]:+.4f}, {found.ci95[1]:+.4f}]" if found.ci95 else "")


def _colour(name: str) -> str:
    return "coda" if name == "coda" else "p1" if name.startswith("local") else "p6" if name == "bound" else "same"
