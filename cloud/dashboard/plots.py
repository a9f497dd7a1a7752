"""The dashboard's plots, by the report's tools and in its colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from cloud.catalog.records import RoundRow
from cloud.report.svg import Scale, circle, line, picture, rect, text, width_of

_TALL = 150.0
_OUTCOME = {"activated": "p4", "kept": "p0", "too few samples": "p1", "failed": "p5", "other": "p8"}


def bars(title: str, counts: Sequence[tuple[str, float]], unit: str, kind: str, width: int) -> Markup:
    """A histogram: counts over buckets that are named by their upper bounds; nothing if all are zero."""
    most = max((count for _, count in counts), default=0.0)
    if not most:
        return Markup()
    used = [number for number, (_, count) in enumerate(counts) if count]
    shown = list(counts)[max(used[0] - 1, 0) : used[-1] + 2]
    step, base, total = width / len(shown), _TALL + 22, sum(count for _, count in counts)
    every = 1 + int(max(width_of(bound) for bound, _ in shown) + 6 > step)  # names beside each other must not touch
    body = [line(0, base, width, base, "zero")]
    for number, (bound, count) in enumerate(shown):
        tall = max(count / most * _TALL, 1.5) if count else 0.0
        words = f"up to {bound} {unit}" if bound else "more"
        body.append(rect(number * step + 2, base - tall, step - 4, tall, kind, f"{words}: {count:,.0f}", 2))
        if count:
            share = 100 * count / total
            label = f"{share:.0f} %" if share >= 1 else "<1 %"
            body.append(text((number + 0.5) * step, base - tall - 5, label, "small", "middle"))
        if not number % every:
            body.append(text((number + 0.5) * step, base + 16, bound or "more", "small", "middle"))
    told = "; ".join(f"up to {bound or 'more'}: {count:,.0f}" for bound, count in shown if count)
    return picture(width, base + 22, title, told, body)


def gains(values: Sequence[float], mean: float, width: int) -> Markup:
    """A histogram of differences about zero, and their mean."""
    if not values:
        return Markup()
    reach = max(float(np.quantile(np.abs(values), 0.99)), 0.02)
    scale = Scale([-reach, reach], 8, width - 8)
    low, high = scale.ticks[0], scale.ticks[-1]
    edges = np.linspace(low, high, 4 * (len(scale.ticks) - 1) + 2)  # an odd number of bars: one is about zero
    counts, _ = np.histogram(np.clip(values, low, high), edges)
    most, base = counts.max(), _TALL + 22
    body = scale.axis(14, base, signed=True)
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        middle = (left + right) / 2
        kind = "same" if left < 0 < right else "better" if middle > 0 else "worse"
        tall = max(count / most * (_TALL - 8), 1.5) if count else 0.0
        note = f"{left:+.3f} to {right:+.3f}: {count:,} rounds"
        body.append(rect(scale(left) + 1, base - tall, scale(right) - scale(left) - 2, tall, kind, note))
    body.append(line(scale(0), 14, scale(0), base, "zero"))
    body.append(circle(scale(mean), base, 5.5, "dot coda", f"mean {mean:+.4f}"))
    return picture(
        width, base + 24, "Difference of AUC per round", f"Mean {mean:+.4f} over {len(values):,} rounds.", body
    )


def outcomes(rounds: Sequence[RoundRow], width: int) -> Markup:
    """One stacked bar for each class of devices: its rounds by what they came to."""
    kinds: dict[str, dict[str, int]] = {}
    for row in rounds:
        counts = kinds.setdefault(row.device_class, dict.fromkeys(_OUTCOME, 0))
        counts[row.outcome] += 1
    if not kinds:
        return Markup()
    body, y = [], 0.0
    for name, counts in sorted(kinds.items()):
        total, x = sum(counts.values()), 0.0
        body.append(text(0, y + 13, f"{name}: {total:,} rounds", "small"))
        for outcome, count in counts.items():
            length = count / total * width
            share = f"{100 * count / total:.0f} %"
            if count:
                body.append(rect(x, y + 19, length - 1, 18, _OUTCOME[outcome], f"{outcome}: {count:,} ({share})"))
            x += length
        y += 52
    y = _key(body, y, width)
    told = "; ".join(f"{name}: {_told(counts)}" for name, counts in sorted(kinds.items()))
    return picture(width, y, "Rounds by outcome", told, body)


def segments(sizes: Sequence[int], width: int) -> Markup:
    """The pool's segments side by side, each as wide as its share of the samples."""
    total = sum(sizes)
    if not total:
        return Markup()
    body, x = [], 0.0
    for number, size in enumerate(sizes):
        length = size / total * width
        body.append(rect(x, 0, max(length - 1, 0.5), 22, f"p{number % 2 * 3}", f"segment {number}: {size:,} samples"))
        x += length
    return picture(width, 24, "Segments of the pool", f"{len(sizes)} segments, {total:,} samples.", body)


def _key(body: list[str], y: float, width: int) -> float:
    x = 0.0
    for outcome, kind in _OUTCOME.items():
        if x and x + width_of(outcome) + 18 > width:
            x, y = 0.0, y + 20
        body += [rect(x, y + 2, 11, 11, kind), text(x + 16, y + 12, outcome, "small")]
        x += width_of(outcome) + 34
    return y + 20


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
