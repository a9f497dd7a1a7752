"""What each store costs by the number of samples: one small picture a figure, both axes logarithmic.

`python -m benchmarks.matching_plot OUT.svg RESULT.json …` draws several runs as one.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from benchmarks import plot
from cloud.report.svg import circle, line, picture, text, width_of

_FIGURES = (
    ("Bytes of memory a sample", "bytes_per_sample"),
    ("CPU microseconds a vector asked with", "us_per_vector"),
    ("CPU microseconds to build, a sample", "build_us_per_sample"),
)
_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 260, 200, 46, 56, 54


def costs(rows: Sequence[Mapping[str, object]]) -> Markup:
    """rows: of `coda bench matching`."""
    points = [_costs(row) for row in rows]
    stores = list(dict.fromkeys(str(point["store"]) for point in points))
    body: list[str] = []
    x = 0.0
    for number, store in enumerate(stores):
        body += [circle(_LEFT + x, 14, 5, f"p{number % 9}"), text(_LEFT + x + 10, 18, store, "small")]
        x += width_of(store) + 34
    for number, (title, name) in enumerate(_FIGURES):
        body += _panel(_LEFT + number * (_WIDTH + _GAP), title, name, points, stores)
    told = "; ".join(f"{p['store']} {p['samples']:,}: " + ", ".join(f"{p[n]:.3g}" for _, n in _FIGURES) for p in points)
    width = _LEFT + len(_FIGURES) * (_WIDTH + _GAP)
    return picture(width, _TOP + _HEIGHT + 40, "Costs of stores by the number of samples", told, body)


def _costs(row: Mapping[str, object]) -> dict[str, float | str]:
    samples, memory, rate, built = (float(str(row[n])) for n in ("samples", "bytes_per_sample", "qps", "build_s"))
    return {
        "store": str(row["store"]),
        "samples": samples,
        "bytes_per_sample": memory,
        "us_per_vector": 1e6 / rate,
        "build_us_per_sample": 1e6 * built / samples,
    }


def _panel(
    left: float, title: str, name: str, points: Sequence[Mapping[str, float | str]], stores: Sequence[str]
) -> list[str]:
    # what takes nothing, as comparing with all takes nothing to build, has no place on a logarithmic axis
    found = [(str(p["store"]), math.log10(float(p["samples"])), float(p[name])) for p in points]
    shown = [(store, x, math.log10(value)) for store, x, value in found if value >= 0.1]
    body = [text(left, _TOP - 14, title, "small")]
    if not shown:
        return body
    across = _Axis([x for _, x, _ in shown], left, left + _WIDTH)
    up = _Axis([y for _, _, y in shown], _TOP + _HEIGHT, _TOP)
    for power in across.powers:
        body.append(line(across(power), _TOP, across(power), _TOP + _HEIGHT, "grid"))
        body.append(text(across(power), _TOP + _HEIGHT + 16, _power(power), "small", "middle"))
    for power in up.powers:
        body.append(line(left, up(power), left + _WIDTH, up(power), "grid"))
        body.append(text(left - 5, up(power) + 4, _power(power), "small", "end"))
    for number, store in enumerate(stores):
        mine = sorted((x, y) for one, x, y in shown if one == store)
        for (x1, y1), (x2, y2) in itertools.pairwise(mine):
            body.append(line(across(x1), up(y1), across(x2), up(y2), "flow"))
        body += [circle(across(x), up(y), 4, f"p{number % 9}", f"{store}: {10**y:.3g}") for x, y in mine]
    return body


def _power(exponent: int) -> str:
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


class _Axis:
    """From logarithms to px, between the powers of ten around them."""

    def __init__(self, values: Sequence[float], begin: float, end: float) -> None:
        low, high = math.floor(min(values) + 1e-9), math.ceil(max(values) - 1e-9)
        self.powers = list(range(low, max(high, low + 1) + 1))
        self._begin, self._end = begin, end

    def __call__(self, value: float) -> float:
        share = (value - self.powers[0]) / (self.powers[-1] - self.powers[0])
        return self._begin + share * (self._end - self._begin)


if __name__ == "__main__":
    results = [json.loads(Path(word).read_text()) for word in sys.argv[2:]]
    plot.write(Path(sys.argv[1]), costs([row for result in results for row in result["rows"]]))
