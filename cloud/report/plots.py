"""The report's plots. Each is drawn for a width in px, so that type stays readable on a phone and on a desk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from cloud.report.model import SAME, DeviceResult, Difference, FilterFacts, Summary
from cloud.report.svg import Scale, circle, diamond, line, picture, rect, shorten, text, width_of

METHODS = {"cloud": "cloud", "local": "local only", "coda": "CoDA"}
_TOP = 8
_MEAN_GAP, _RIGHT = 10, 24


def aucs(devices: Sequence[DeviceResult], summary: Summary, width: int) -> Markup:
    """One row a device, AUC under the three sets of weights; their means below."""
    known = [d for d in devices if any(_values(d).values())]
    if not known:
        return Markup()
    left, row = _labels([d.id for d in known], width), _row(len(known))
    every = [value for device in known for value in _values(device).values()]
    scale = Scale(every, left, width - _RIGHT, about=4 if width < 400 else 5)
    bottom = _TOP + row * len(known) + _MEAN_GAP + 22
    body = scale.axis(_TOP, bottom)
    for number, device in enumerate(known):
        y = _TOP + row * (number + 0.5)
        body += _row_of(scale, left, y, shorten(device.id, _most(width)), _values(device), device.id)
    means = {n: v for n in METHODS if (v := getattr(summary.means, n)) is not None}
    y = bottom - 11
    body.append(line(left, y - 11 - _MEAN_GAP / 2, width - _RIGHT, y - 11 - _MEAN_GAP / 2, "rule"))
    body += _row_of(scale, left, y, "mean", means, f"mean of {summary.n}", "small strong")
    told = "; ".join(f"{METHODS[name]} {value:.4f}" for name, value in means.items())
    return picture(width, bottom + 24, "AUC on later events, per device", f"Means: {told or 'none'}.", body)


def gains(devices: Sequence[DeviceResult], found: Difference, width: int) -> Markup:
    """CoDA minus cloud, the rows as in `aucs`; the mean and its interval below."""
    known = [d for d in devices if any(_values(d).values())]
    every = [device.gain for device in known if device.gain is not None]
    if not every or found.mean is None:
        return Markup()
    left, row = _labels([d.id for d in known], width), _row(len(known))
    interval = found.ci95 or (found.mean, found.mean)
    scale = Scale([*every, *interval, -0.01, 0.01], left, width - _RIGHT, about=4)
    bottom = _TOP + row * len(known) + _MEAN_GAP + 22
    body = [*scale.axis(_TOP, bottom, signed=True), line(scale(0), _TOP, scale(0), bottom, "zero")]
    for number, device in enumerate(known):
        y, gain = _TOP + row * (number + 0.5), device.gain
        body.append(text(left - 12, y + 4, shorten(device.id, _most(width)), "small", "end"))
        if gain is None:
            body.append(text(scale(0) + 6, y + 4, "no AUC", "small"))
            continue
        kind = "same" if abs(gain) <= SAME else "better" if gain > 0 else "worse"
        start, end = sorted((scale(0), scale(gain)))
        body.append(rect(start, y - 3, end - start, 6, kind))
        body.append(circle(scale(gain), y, 4.5, f"dot {kind}", f"{device.id}: {gain:+.4f}"))
    y = bottom - 11
    body.append(line(left, y - 11 - _MEAN_GAP / 2, width - _RIGHT, y - 11 - _MEAN_GAP / 2, "rule"))
    body.append(text(left - 12, y + 4, "mean", "small strong", "end"))
    if found.ci95:
        body.append(line(scale(interval[0]), y, scale(interval[1]), y, "interval"))
        body += [line(scale(end), y - 5, scale(end), y + 5, "interval") for end in interval]
    body.append(circle(scale(found.mean), y, 5.5, "dot coda", f"mean {found.mean:+.4f}"))
    words = f"Mean {found.mean:+.4f} over {found.n}. {found.claim}"
    return picture(width, bottom + 24, "CoDA minus cloud, per device", words, body)


def cpu(rows: Mapping[str, Mapping[str, float]], width: int) -> Markup:
    """Stacked bars: kind of round -> phase -> seconds. The phases' colours go by their order of appearance."""
    most = max((sum(row.values()) for row in rows.values()), default=0.0)
    if not most:
        return Markup()
    phases, body, y = phase_order(rows), [], float(_TOP)
    right = width - 62
    for name, row in rows.items():
        body.append(text(0, y + 12, name, "small"))
        x, total = 0.0, sum(row.values())
        for phase in phases:
            length = row.get(phase, 0.0) / most * right
            note = f"{phase}: {row.get(phase, 0.0):.3f} s"
            body.append(rect(x, y + 18, length - min(1.0, length / 3), 20, f"p{phases.index(phase) % 9}", note))
            x += length
        body.append(text(x + 8, y + 33, f"{total:.3f} s", "strong"))
        y += 54
    told = "; ".join(f"{name} {sum(row.values()):.3f} s" for name, row in rows.items())
    return picture(width, y - 8, "CPU seconds by phase, mean round", told, body)


def memory(rows: Mapping[str, Mapping[str, float]], width: int) -> Markup:
    """One row a phase, one mark a kind of round: engines differ in colour, first rounds are hollow."""
    phases = phase_order(rows)
    every = [value for row in rows.values() for value in row.values()]
    if not every:
        return Markup()
    left, row_height = 16 + max(width_of(phase) for phase in phases), 30
    scale, bottom = Scale([0.0, *every], left, width - _RIGHT), _TOP + row_height * len(phases)
    body = scale.axis(_TOP, bottom)
    engines = list(dict.fromkeys(name.split(",")[0] for name in rows))
    for number, phase in enumerate(phases):
        y = _TOP + row_height * (number + 0.5)
        body.append(text(left - 12, y + 4, phase, "small", "end"))
        for name, row in rows.items():
            if phase in row:
                engine, when = name.split(", ")
                lane = y + (engines.index(engine) - (len(engines) - 1) / 2) * 10
                kind = f"e{engines.index(engine) % 3} {when}"
                if when == "later" or f"{engine}, later" not in rows:
                    body.append(line(scale(0), lane, scale(row[phase]), lane, f"stem e{engines.index(engine) % 3}"))
                body.append(circle(scale(row[phase]), lane, 4, kind, f"{phase}, {name} round: {row[phase]:.1f} MiB"))
    told = "; ".join(f"{name} {max(row.values()):.1f} MiB" for name, row in rows.items())
    return picture(width, bottom + 24, "Peak memory by phase, median round", f"Highest: {told}.", body)


def scores(facts: FilterFacts, width: int) -> Markup:
    """Kept candidates upwards, dropped ones downwards, each to a scale of its own: the dropped are far more."""
    left, middle, height = 0.0, 112.0, 92.0
    step = (width - left) / len(facts.kept)
    body = []
    for counts, kind, up in ((facts.kept, "keptbar", True), (facts.dropped, "dropped", False)):
        most = max([*counts, 1])
        for i, count in enumerate(counts):
            tall = count / most * height if not count else max(count / most * height, 1.5)
            note = f"{facts.edges[i]:.2f} to {facts.edges[i + 1]:.2f}: {count} {'kept' if up else 'dropped'}"
            body.append(rect(left + i * step + 1, middle - tall if up else middle, step - 2, tall, kind, note))
        words = f"{sum(counts):,} {'kept' if up else 'dropped'}, at most {max(counts):,} a bar"
        body.append(text(width / 2, 12 if up else middle + height + 4, words, "small", "middle"))
    body.append(line(left, middle, width, middle, "zero"))
    base = middle + height + 30
    for i in range(0, len(facts.edges), max(1, (len(facts.edges) - 1) // 4)):
        anchor = "start" if i == 0 else "end" if i == len(facts.edges) - 1 else "middle"
        body.append(text(left + i * step, base, f"{facts.edges[i]:.2f}", "small", anchor))
    body.append(text(width / 2, base + 20, "score: probability of being the user's own", "small", "middle"))
    words = f"{sum(facts.kept)} candidates kept, {sum(facts.dropped)} dropped."
    return picture(width, base + 28, "Candidates by the filter's score", words, body)


def kept(devices: Sequence[DeviceResult], width: int) -> Markup:
    """Kept candidates per device, with how many came."""
    known = [d for d in devices if d.candidates]
    if not known:
        return Markup()
    left, row = _labels([d.id for d in known], width), _row(len(known))
    room = max(width_of(f"{d.kept} of {d.candidates}") for d in known) + 12
    most = max(1, *(d.kept for d in known))
    body = []
    for number, device in enumerate(known):
        y = _TOP + row * (number + 0.5)
        length = device.kept / most * (width - left - room)
        body.append(text(left - 12, y + 4, shorten(device.id, _most(width)), "small", "end"))
        body.append(rect(left, y - 4.5, max(length, 1), 9, "keptbar"))
        body.append(text(left + length + 8, y + 4, f"{device.kept} of {device.candidates}", "small"))
    told = f"{sum(d.kept for d in known)} of {sum(d.candidates for d in known)} candidates were kept."
    return picture(width, _TOP + row * len(known) + 4, "Kept candidates per device, last round", told, body)


def phase_order(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """All phases, in their order within the rows that have most of them."""
    fullest = sorted(rows.values(), key=len, reverse=True)
    return list(dict.fromkeys(phase for row in fullest for phase in row))


def _row_of(
    scale: Scale, left: float, y: float, label: str, values: Mapping[str, float], name: str, kind: str = "small"
) -> list[str]:
    body = [text(left - 12, y + 4, label, kind, "end")]
    if values:
        body.append(line(scale(min(values.values())), y, scale(max(values.values())), y, "range"))
    for method, value in values.items():
        note = f"{name}, {METHODS[method]}: {value:.4f}"
        if method == "cloud":
            body.append(circle(scale(value), y, 6, "cloud mark", note))
        elif method == "local":
            body.append(diamond(scale(value), y, 5, "local mark", note))
        else:
            body.append(circle(scale(value), y, 3, "coda mark", note))
    return body


def _values(device: DeviceResult) -> dict[str, float]:
    return {name: value for name in METHODS if (value := getattr(device.auc, name)) is not None}


def _most(width: int) -> int:
    """Characters of a device's name that fit beside a plot."""
    return 10 if width < 400 else 16


def _labels(names: Sequence[str], width: int) -> float:
    return 16 + max(44.0, *(width_of(shorten(name, _most(width))) for name in names))


def _row(count: int) -> int:
    """Height of a row, px: tighter where there are many."""
    return 24 if count <= 24 else 18
