"""Declared triggers over sequences of events: what becomes a sample, and what starts a round.

All triggers share one trie, as in Walle (OSDI 2022, section 5.2): an event moves every half-done match that waits for
it, whichever triggers it belongs to, so that the cost of an event grows with what it completes and not with the number
of triggers. A later event belongs to a match if it is of the same page and, where both have one, of the same item;
others may come in between.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from device_runtime.activity import KINDS, Activity, ActivityLog
from device_runtime.errors import InputError
from device_runtime.store import Event, Store

MOST_LIVE = 20_000
"""Half-done matches that are followed at once; the oldest is given up for a new one."""


class Trigger(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """sequence: kinds of events in order. unless: kinds that undo it if they come in between. within_s: seconds from
    the first to the last. then: a sample labelled 1 or 0, or with the rating of the last event; or a round."""

    name: str
    sequence: tuple[str, ...]
    then: Literal["positive", "negative", "rating", "round"]
    unless: tuple[str, ...] = ()
    within_s: float = 1800.0


DEFAULTS = (
    Trigger(name="clicked", sequence=("exposure", "click"), then="positive"),
    Trigger(name="ignored", sequence=("exposure", "page_exit"), unless=("click", "rating"), then="negative"),
    Trigger(name="rated", sequence=("rating",), then="rating"),
)


def load(path: Path) -> tuple[Trigger, ...]:
    """The triggers declared in a JSON file, or `DEFAULTS` if there is none. Raises: InputError: names what is wrong."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=tuple[Trigger, ...])
    except FileNotFoundError:
        return DEFAULTS
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"{path} does not declare triggers: {error}") from None
    check(found)
    return found


def check(triggers: Iterable[Trigger]) -> None:
    """Raises: InputError: a trigger that could never fire, or not as it says."""
    for trigger in triggers:
        for kind in (*trigger.sequence, *trigger.unless):
            if kind not in KINDS:
                raise InputError(f"trigger {trigger.name!r}: {kind!r} is not one of {', '.join(KINDS)}")
        if not trigger.sequence or not trigger.within_s > 0 or not math.isfinite(trigger.within_s):
            raise InputError(f"trigger {trigger.name!r} needs a sequence, and within_s above 0")
        if trigger.then in ("positive", "negative") and trigger.sequence[0] not in ("exposure", "click", "rating"):
            raise InputError(f"trigger {trigger.name!r} makes samples, so it must begin with an event of an item")
        if trigger.then == "rating" and trigger.sequence[-1] != "rating":
            raise InputError(f"trigger {trigger.name!r} takes a rating, so it must end with one")


@dataclass(frozen=True)
class Fired:
    """first, last: the events at the ends of the match."""

    trigger: Trigger
    first: Activity
    last: Activity


@dataclass
class _Node:
    onward: dict[str, _Node] = field(default_factory=dict)
    ends: list[Trigger] = field(default_factory=list)
    patience_ms: float = 0.0


@dataclass
class _Match:
    """A half-done match: it waits at a node."""

    node: _Node
    first: Activity


class Trie:
    """Follows a sequence of events, oldest first."""

    def __init__(self, triggers: Iterable[Trigger]) -> None:
        self._root = _Node()
        for trigger in triggers:
            node = self._root
            for kind in trigger.sequence:
                node = node.onward.setdefault(kind, _Node())
                node.patience_ms = max(node.patience_ms, trigger.within_s * 1000)
            node.ends.append(trigger)
        # kind that is waited for -> page -> item ("" of pages) -> matches
        self._waiting: dict[str, dict[str, dict[str, list[_Match]]]] = {kind: {} for kind in KINDS}
        self._live: deque[_Match] = deque()
        self._latest: dict[tuple[str, str, str], int] = {}  # (kind, page, item) -> time, for `unless`

    def feed(self, event: Activity) -> list[Fired]:
        """What an event completes."""
        fired: list[Fired] = []
        moved = [(m.node.onward[event.kind], m.first) for m in self._met(event)]
        if event.kind in self._root.onward:
            moved.append((self._root.onward[event.kind], event))
        for node, first in moved:
            for trigger in node.ends:
                if event.at_ms - first.at_ms <= trigger.within_s * 1000 and not self._undone(trigger, first):
                    fired.append(Fired(trigger, first, event))
            if node.onward:
                self._wait(_Match(node, first))
        self._latest[event.kind, event.page, event.item] = event.at_ms
        if len(self._latest) > 4 * MOST_LIVE:
            self._forget(event.at_ms)
        return fired

    def _met(self, event: Activity) -> list[_Match]:
        """The matches that wait for this event. They stay: the same exposure may be clicked, then left."""
        by_item = self._waiting[event.kind].get(event.page, {})
        keys = [key for key in {event.item, ""} if key in by_item] if event.item else list(by_item)
        found = []
        for key in keys:
            still = [m for m in by_item[key] if event.at_ms - m.first.at_ms <= m.node.patience_ms]
            found += still
            if event.kind == "page_exit":  # nothing on a page outlives it
                still = []
            if still:
                by_item[key] = still
            else:
                del by_item[key]
        if not by_item:
            self._waiting[event.kind].pop(event.page, None)
        return found

    def _wait(self, match: _Match) -> None:
        for kind in match.node.onward:
            by_item = self._waiting[kind].setdefault(match.first.page, {})
            by_item.setdefault(match.first.item, []).append(match)
        self._live.append(match)
        if len(self._live) > MOST_LIVE:
            self._give_up(self._live.popleft())

    def _give_up(self, match: _Match) -> None:
        for kind in match.node.onward:
            by_item = self._waiting[kind].get(match.first.page, {})
            left = [m for m in by_item.get(match.first.item, ()) if m is not match]
            if left:
                by_item[match.first.item] = left
            else:
                by_item.pop(match.first.item, None)

    def _undone(self, trigger: Trigger, first: Activity) -> bool:
        """Whether an `unless` event came since the first one, and before this one."""
        keys = ((kind, first.page, item) for kind in trigger.unless for item in {first.item, ""})
        return any(self._latest.get(key, -1) >= first.at_ms for key in keys)

    def _forget(self, now_ms: int) -> None:
        longest = max((node.patience_ms for node in self._root.onward.values()), default=0.0)
        self._latest = {key: at for key, at in self._latest.items() if at >= now_ms - longest}


@dataclass(frozen=True)
class Digest:
    """events: that were read anew. samples: that came of them. rounds: names of the triggers that want a round."""

    events: int
    samples: int
    rounds: tuple[str, ...]


def digest(store: Store, log: ActivityLog, triggers: tuple[Trigger, ...]) -> Digest:
    """Turn what has arrived since the last time into samples; harmless if it is cut off, or done twice.

    Events that arrive late are put where they belong: reading starts so far before the earliest new one that every
    match it can be part of is seen whole. Samples that were made before are recognized by item and time; a click that
    arrives after its page was left makes a positive of what had become a negative.

    Raises:
        StoreError.
    """
    done = int(store.setting("digested") or 0)
    last, earliest = log.last(), log.earliest_after(done)
    if earliest is None:
        return Digest(0, 0, ())
    reach_ms = int(max((t.within_s for t in triggers), default=0.0) * 1000)
    trie, fresh, came = Trie(triggers), 0, 0
    wanted: dict[str, None] = {}
    made: list[Event] = []
    for seq, event in log.read(since_ms=earliest - reach_ms):
        new = seq > done
        fresh += new
        for fired in trie.feed(event):
            if fired.trigger.then == "round":
                if new:
                    wanted[fired.trigger.name] = None
            else:
                made.append(_sample(fired))
        if len(made) >= 5000:
            came += store.add_samples(made)
            made = []
    came += store.add_samples(made)
    store.set(digested=str(last))
    return Digest(fresh, came, tuple(wanted))


def _sample(fired: Fired) -> Event:
    at, item = fired.first.at_ms // 1000, fired.first.item
    if fired.trigger.then == "rating":
        return Event(fired.last.item, at, None, fired.last.value)
    return Event(item, at, 1.0 if fired.trigger.then == "positive" else 0.0)


def sequences(triggers: Iterable[Trigger]) -> Iterator[str]:
    """One line a trigger, for people."""
    for trigger in triggers:
        unless = f" unless {' or '.join(trigger.unless)}" if trigger.unless else ""
        yield f"{trigger.name}: {' > '.join(trigger.sequence)}{unless}, within {trigger.within_s:g} s: {trigger.then}"
