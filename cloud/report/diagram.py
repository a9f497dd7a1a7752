"""The loop as a picture: what the cloud does, what the device does, and what passes between them."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from cloud.report.svg import arrow, picture, rect, text

CLOUD, DEVICE = 0, 1
_NODES = (  # lane, first and last slot in time, name, what it does
    (CLOUD, 0, 0, "train", "on others' events"),
    (CLOUD, 1, 1, "export, sign", "graphs that train"),
    (CLOUD, 2, 3, "match", "in the pool"),
    (CLOUD, 6, 6, "watch", "counts and cost"),
    (DEVICE, 1, 1, "pull", "verify, self-test"),
    (DEVICE, 2, 2, "encode", "own samples"),
    (DEVICE, 3, 3, "filter", "inside the boundary?"),
    (DEVICE, 4, 4, "fine-tune", "on own and kept"),
    (DEVICE, 5, 5, "judge", "on held-out own"),
    (DEVICE, 6, 6, "activate", "or keep the old"),
)
_WITHIN = ((CLOUD, 0), *((DEVICE, slot) for slot in range(1, 6)))  # lane, slot that an arrow to the next one leaves
_BETWEEN = (  # slot, the lane where the arrow starts, what passes
    (1, CLOUD, "bundle"),
    (2, DEVICE, "query"),
    (3, CLOUD, "candidates"),
    (6, DEVICE, "report"),
)
_TEXT = (
    "The cloud trains a model, exports and signs it. The device pulls it, encodes its samples into a query, and gets "
    "matching samples of others from the cloud. It filters them, fine-tunes on its own and the kept ones, judges the "
    "result on held-out events of its own, and activates it or keeps the old weights. It reports counts and cost."
)
_SLOTS = 7
_BOX_HEIGHT = 50.0


def loop(sizes: Mapping[str, str], width: int) -> Markup:
    """sizes: of bundle, query, candidates and report, in words. Narrow ones run downwards, wide ones to the right."""
    plan = _Downwards(width) if width < 400 else _Rightwards(width)
    body = []
    for lane, name in ((CLOUD, "cloud"), (DEVICE, "device")):
        body.append(plan.heading(lane, name))
    for lane, slot in _WITHIN:
        body.append(plan.within(lane, slot))
    for slot, start, what in _BETWEEN:
        body.append(plan.between(slot, start, what, sizes.get(what, "")))
    for lane, first, last, name, does in _NODES:
        x, y, wide, high = plan.box(lane, first, last)
        body.append(rect(x, y, wide, high, "node cloudnode" if lane == CLOUD else "node devicenode", round_by=7))
        body.append(text(x + wide / 2, y + high / 2 - 4, name, "strong", "middle"))
        body.append(text(x + wide / 2, y + high / 2 + 14, does, "small", "middle"))
    return picture(width, plan.height, "One round of the loop", _TEXT, body)


class _Rightwards:
    """Time runs to the right; the cloud is above the device."""

    height = 248.0
    _heading = 24.0
    _lane = (28.0, 190.0)

    def __init__(self, width: int) -> None:
        self._wide = width / _SLOTS - 16
        self._slot = (width - 2 - self._wide) / (_SLOTS - 1)

    def heading(self, lane: int, name: str) -> str:
        x = 1 + self._wide / 2
        y = self._lane[lane] + (-10 if lane == CLOUD else _BOX_HEIGHT / 2 + 4)
        return text(x, y, name, f"lane {'cloudlane' if lane == CLOUD else 'devicelane'}", "middle")

    def box(self, lane: int, first: int, last: int) -> tuple[float, float, float, float]:
        return 1 + first * self._slot, self._lane[lane], self._wide + (last - first) * self._slot, _BOX_HEIGHT

    def within(self, lane: int, slot: int) -> str:
        x, y = 1 + slot * self._slot + self._wide, self._lane[lane] + _BOX_HEIGHT / 2
        return arrow(x + 1, y, x + self._slot - self._wide - 1, y, "flow")

    def between(self, slot: int, start: int, what: str, size: str) -> str:
        x = 1 + slot * self._slot + self._wide / 2
        top, bottom = self._lane[CLOUD] + _BOX_HEIGHT + 3, self._lane[DEVICE] - 3
        ends = (top, bottom) if start == CLOUD else (bottom, top)
        middle = (top + bottom) / 2
        return (
            arrow(x, ends[0], x, ends[1], "flow carries")
            + text(x + 10, middle - 2, what)
            + text(x + 10, middle + 15, size, "small")
        )


class _Downwards:
    """Time runs down; the cloud is left of the device."""

    _top = 24.0
    _slot = 74.0
    height = _top + _SLOTS * _slot - 20

    def __init__(self, width: int) -> None:
        self._wide = 128.0
        self._lane = (1.0, width - 1 - self._wide)

    def heading(self, lane: int, name: str) -> str:
        kind = f"lane {'cloudlane' if lane == CLOUD else 'devicelane'}"
        return text(self._lane[lane] + self._wide / 2, self._top - 10, name, kind, "middle")

    def box(self, lane: int, first: int, last: int) -> tuple[float, float, float, float]:
        return self._lane[lane], self._top + first * self._slot, self._wide, _BOX_HEIGHT + (last - first) * self._slot

    def within(self, lane: int, slot: int) -> str:
        x, y = self._lane[lane] + self._wide / 2, self._top + slot * self._slot + _BOX_HEIGHT
        return arrow(x, y + 2, x, y + self._slot - _BOX_HEIGHT - 2, "flow")

    def between(self, slot: int, start: int, what: str, size: str) -> str:
        left, right = self._lane[CLOUD] + self._wide + 3, self._lane[DEVICE] - 3
        ends = (left, right) if start == CLOUD else (right, left)
        y = self._top + slot * self._slot + _BOX_HEIGHT / 2
        return (
            arrow(ends[0], y, ends[1], y, "flow carries")
            + text((left + right) / 2, y - 8, what, anchor="middle")
            + text((left + right) / 2, y + 17, size, "small", "middle")
        )
